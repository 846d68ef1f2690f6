"""Activations as codes on GPUs, with their scales and what is computed before them, in one kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Argument, Constant, Kernel, Launch, Number, Output, Regime, Variant
from planish.codegen.triton.kernels.rows import long_rows_as_codes, rows_as_codes
from planish.codegen.triton.rows import NORMS, Written, long_rows, whole_rows
from planish.codegen.triton.tiles import power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.ops.quantize import largest_code
from planish.compiler.types import Dim, DType, elements

_WIDEST = 16384  # columns of a row that one block holds in registers
_PART = 1024  # columns of a block where groups are parts of rows


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """quantize(x, quantization_scale(x)) with its scales; x may be a norm, or computed element by element.

    x is written, too, where something else reads it, and what its norm is of.
    """

    name: ClassVar[str] = "quantized-rows"
    ops: ClassVar[tuple[Op, ...]] = (ops.quantize,)

    def refuse(self, call: Call, device: Device) -> str | None:
        if call.beside is None:
            return "its scales are computed elsewhere"
        columns, group = call.anchor.operands[0].shape[-1], integer_of(call.anchor, "group")
        if not isinstance(columns, int):
            return f"rows of {columns} are not known to fit a block"
        if group < columns and (group != power_of_two(group) or group > _WIDEST):
            return f"groups of {group} are no power of two up to {_WIDEST}"
        if columns > _WIDEST and (_norm(call) is not None or call.beside.beside is not None):
            return f"rows of {columns} are over its {_WIDEST}"
        return _refuse_before(call)

    def build(self, call: Call, device: Device) -> Kernel:
        assert call.beside is not None
        shape = call.anchor.operands[0].shape
        rows, columns = elements(shape[:-1]), shape[-1]
        assert isinstance(columns, int)
        arguments: Mapping[str, Argument | tuple[Argument, ...]] = {
            "codes": Output(0),
            "scales": Output(1),
            "rows": Number(rows),
            "columns": Number(columns),
            "extras": Fragments(call).extras,
            "scale_extras": Fragments(call.beside).extras_within(call),
        }
        constants = _constants(call, call.beside)
        if columns > _WIDEST and integer_of(call.anchor, "group") >= columns:
            known = {name: constants[name] for name in constants if name in long_rows_as_codes.arg_names}
            regime = Regime(None, (long_rows(call, rows, columns),))
            return Kernel((Launch(long_rows_as_codes, arguments, known, (regime,)),))
        written = _written(call, call.beside)
        arguments = {**arguments, **{name: a for each in written for name, a in each.arguments.items()}}
        constants = {**constants, **{name: c for each in written for name, c in each.constants.items()}}
        regime = Regime(None, _variants(call, rows, columns))
        return Kernel((Launch(rows_as_codes, arguments, constants, (regime,)),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)

    def fuses_beside(self, anchor: Node, other: Node) -> bool:
        return other.op is ops.quantization_scale and other.attrs == anchor.attrs


def _norm(call: Call) -> Node | None:
    return next((node for node in call.nodes if node.op in NORMS), None)


def _refuse_before(call: Call) -> str | None:
    """Why what makes the rows is not computed with them, or None: a norm, and elementwise nodes around it."""
    norm, scale = _norm(call), call.anchor.operands[1].node
    reached = set() if norm is None else set(norm.values)
    for node in call.prologue:
        if node in (norm, scale):
            continue
        after = norm is not None and not reached.isdisjoint(node.operands)
        if not (fuses_after(norm, node) if after and norm is not None else fuses_before(node)):
            return f"{node.op.name} is not computed element by element"
        reached.update(node.values if after else ())
    return None


def _written(call: Call, beside: Call) -> tuple[Written, Written]:
    """What the norm is of, and the rows that become codes, where parts of the call are to write them."""
    x = call.anchor.operands[0]
    others = {part.output: part for part in beside.parts if part is not beside}
    made = others.pop(x, None)
    return Written.of("source", call, next(iter(others.values()), None)), Written.of("made", call, made)


def _variants(call: Call, rows: Dim, columns: int) -> tuple[Variant, ...]:
    group, width = integer_of(call.anchor, "group"), power_of_two(columns)
    if _norm(call) is None and group < columns:
        width = min(width, max(group, _PART))
    own = {"GROUP": group if group < columns else width}
    return tuple(replace(v, constants={**v.constants, **own}) for v in whole_rows(call, rows, columns, width))


def _constants(call: Call, beside: Call) -> Mapping[str, Constant]:
    x, scale = call.anchor.operands
    norm, fragments = _norm(call), Fragments(call)
    groups, column = (Group("row", len(x.shape) - 1), Group("column", 1)), (Group("column", 1),)
    dtype = call.anchor.attrs["dtype"]
    epsilon = 0.0 if norm is None else norm.attrs["eps"]
    assert isinstance(epsilon, float)
    assert isinstance(dtype, DType)
    weight, bias = (None, None) if norm is None else (*norm.inputs[1:], None, None)[:2]
    return {
        "READ": fragments.read("read", x if norm is None else norm.operands[0], groups),
        "SCALE": None if weight is None else fragments.read("scale", weight, column),
        "SHIFT": None if bias is None else fragments.read("shift", bias, column),
        "CONTINUE": None if norm is None else fragments.continued("go_on", x, groups, norm.values[0]),
        "FINISH": fragments.finish_given("finish", groups, (x, scale)),
        "FINISH_SCALE": Fragments(beside).finish("finish_scale", groups),
        "KIND": None if norm is None else norm.op.name,
        "EPSILON": epsilon,
        "LIMIT": largest_code(dtype, integer_of(call.anchor, "bits")),
    }
