"""What a pass is: a frozen dataclass whose fields are its options, with a declared contract on the numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from planish.compiler.ir import Program
from planish.compiler.rewrite import Hit
from planish.hardware_profiles import Profile


@dataclass(frozen=True, slots=True)
class Exact:
    """The pass changes no number beyond the rounding of reordered sums (1e-6 relative to the largest output)."""


@dataclass(frozen=True, slots=True)
class Close:
    """The outputs stay within `rtol * |reference| + atol`."""

    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Lossy:
    """The pass trades quality, measured by `metric`."""

    metric: str


Contract = Exact | Close | Lossy


@dataclass(frozen=True, slots=True)
class Change:
    """The program after a pass and what its rules did and refused."""

    program: Program
    hits: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a pass may look at beside the program: the target's profile and the workload's sizes."""

    profile: Profile | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


class Pass(Protocol):
    """A transformation of programs. Its dataclass fields are its options."""

    name: ClassVar[str]
    contract: ClassVar[Contract]

    def apply(self, program: Program, context: Context) -> Change: ...
