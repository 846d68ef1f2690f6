"""Activations as codes on GPUs, with the scale of each row and the norm before it, in one kernel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Constant, Kernel, Launch, Number, Output, Regime
from planish.codegen.triton.kernels.rows import rows_as_codes
from planish.codegen.triton.rows import whole_rows
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.ops.quantize import largest_code
from planish.compiler.types import DType, elements

_NORMS = (ops.layer_norm, ops.rms_norm)
_WIDEST = 16384  # columns of a row that one block holds in registers


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """quantize(x, quantization_scale(x)) with its scales, where a scale is for a whole row; x may be a norm."""

    name: ClassVar[str] = "quantized-rows"
    ops: ClassVar[tuple[Op, ...]] = (ops.quantize,)

    def refuse(self, call: Call, device: Device) -> str | None:
        if call.beside is None:
            return "its scales are computed elsewhere"
        columns, group = call.anchor.operands[0].shape[-1], call.anchor.attrs["group"]
        if not isinstance(columns, int) or columns > _WIDEST:
            return f"rows of {columns} are not known to have at most {_WIDEST} columns"
        assert isinstance(group, int)
        if group < columns:
            return f"groups of {group} are parts of rows"
        return _refuse_before(call)

    def build(self, call: Call, device: Device) -> Kernel:
        assert call.beside is not None
        shape = call.anchor.operands[0].shape
        rows, columns = elements(shape[:-1]), shape[-1]
        assert isinstance(columns, int)
        launch = Launch(
            rows_as_codes,
            {
                "codes": Output(0),
                "scales": Output(1),
                "rows": Number(rows),
                "columns": Number(columns),
                "extras": Fragments(call).extras,
                "scale_extras": Fragments(call.beside).extras_within(call),
            },
            _constants(call, call.beside),
            (Regime(None, whole_rows(call, rows, columns)),),
        )
        return Kernel((launch,))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)

    def fuses_beside(self, anchor: Node, other: Node) -> bool:
        return other.op is ops.quantization_scale and other.attrs == anchor.attrs


def _norm(call: Call) -> Node | None:
    return next((node for node in call.nodes if node.op in _NORMS), None)


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


def _constants(call: Call, beside: Call) -> Mapping[str, Constant]:
    x, scale = call.anchor.operands
    norm, fragments = _norm(call), Fragments(call)
    groups, column = (Group("row", len(x.shape) - 1), Group("column", 1)), (Group("column", 1),)
    bits, dtype = call.anchor.attrs["bits"], call.anchor.attrs["dtype"]
    epsilon = 0.0 if norm is None else norm.attrs["eps"]
    assert isinstance(bits, int)
    assert isinstance(dtype, DType)
    assert isinstance(epsilon, float)
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
        "LIMIT": largest_code(dtype, bits),
    }
