"""What GPU templates compute around their anchors."""

from planish.codegen.around import Around
from planish.codegen.call import Call
from planish.codegen.triton.elementwise import TABLE, refuse_elementwise
from planish.codegen.triton.fragment import EVALUATED
from planish.codegen.triton.halves import halves_of

_AROUND = Around(TABLE, EVALUATED, refuse_elementwise)
fuses_after, fuses_before = _AROUND.fuses_after, _AROUND.fuses_before


def refuse_around(call: Call) -> str | None:
    """Why the nodes around the anchor, or around slices of it that its kernel takes together, are not computed with it,
    or None."""
    halves = halves_of(call)
    return _AROUND.refuse_around(call, () if halves is None else halves.values)
