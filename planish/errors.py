"""Every error that planish raises on purpose; each message says what, where and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class PlanishError(Exception):
    """Base of all errors of planish."""


class InputError(PlanishError):
    """An argument or an input tensor is not what the model or the call takes."""


class ProfileError(PlanishError):
    """A hardware profile is unknown or malformed."""


class ImportGraphError(PlanishError):
    """A model cannot be turned into a program."""


class TypeRuleError(PlanishError):
    """An op was given operands or attributes that its type rule rejects."""


class ParseError(PlanishError):
    """The text of a graph, a dimension or a pass does not follow its grammar."""


class VerifyError(PlanishError):
    """A program breaks an invariant of the IR: a defect of the pass that made it."""


class PassError(PlanishError):
    """A pass is unknown, was given a wrong option, or cannot run on this program."""


class TemplateError(PlanishError):
    """No kernel template can be built for a call."""


class BuildError(PlanishError):
    """Generated code could not be compiled or linked."""


class ArtifactError(PlanishError):
    """An artifact is damaged, foreign, newer than this version, or cannot be written."""


class GenerationError(PlanishError):
    """A language model gives numbers from which no token can be chosen."""


class BackendMissing(PlanishError):
    """An optional dependency is not installed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word closest to `word`, else `"; known: a, b"`."""
    known = sorted(known)
    if not known:
        return "; nothing is known"
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
