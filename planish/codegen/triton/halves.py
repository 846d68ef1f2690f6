"""Gated layers on GPUs: what a kernel stores of its product, or of two slices of it that it walks in turns of 8.

One thread of the matrix units' results then holds a column of the one slice beside its partner of the other.
"""

from collections.abc import Sequence

from planish.codegen import halves
from planish.codegen.call import Call
from planish.codegen.halves import Halves
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.sources import Generated
from planish.compiler import ops

TURN = 8


def halves_of(call: Call) -> Halves | None:
    """The two slices that a call's result is computed from, if any; see `planish.codegen.halves`."""
    return halves.halves_of(call, TURN)


def finish_of(call: Call, groups: Sequence[Group]) -> Generated:
    """The function that stores what a call computes of its product: `Fragments.finish`, or of two slices of it."""
    found = halves_of(call)
    bias = None if call.anchor.op is ops.grouped_linear else next(iter(call.anchor.inputs[2:]), None)
    if found is None:
        return Fragments(call).finish("finish", groups, bias=bias)
    return Fragments(call).finish_slices("finish", groups, dict(zip(found.values, found.starts, strict=True)), bias)
