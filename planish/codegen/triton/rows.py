"""Softmax and normalizations over the last axis on GPUs, with what is computed before and after them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Argument, Constant, Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.rows import norm_long, rows_whole, softmax_long
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, elements, evaluate_dim, same_dim

_WIDEST = 8192  # columns of a row that one block holds in registers
_LONG_BLOCK = 2048
_WARPS = (1, 2, 4, 8, 16)
_OF_A_THREAD = (4, 32)  # elements that keep memory busy, and that registers hold
NORMS = (ops.layer_norm, ops.rms_norm)
_FLOATS = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True, slots=True)
class Rows:
    """softmax, log_softmax, layer_norm and rms_norm along the last axis; f16 and bf16 are computed in f32."""

    name: ClassVar[str] = "rows"
    ops: ClassVar[tuple[Op, ...]] = (ops.softmax, ops.log_softmax, ops.layer_norm, ops.rms_norm)

    def refuse(self, call: Call, device: Device) -> str | None:
        anchor, x = call.anchor, call.anchor.operands[0]
        if anchor.attrs.get("axis", len(x.shape) - 1) != len(x.shape) - 1:
            return f"{anchor.op.name} along axis {anchor.attrs['axis']} of {x.type} is not along the last axis"
        if x.dtype not in _FLOATS:
            return f"{anchor.op.name} of {x.dtype} has no kernel; cast to f32"
        if call.beside is not None and not _is_whole(x.shape[-1]):
            return f"rows of {x.shape[-1]} are read several times; what they are made of is written before"
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        return Kernel((_launch(call),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)

    def writes_read(self, anchor: Node) -> bool:
        return anchor.op in NORMS


def _is_whole(columns: Dim) -> bool:
    return isinstance(columns, int) and columns <= _WIDEST


def _launch(call: Call) -> Launch:
    shape = call.anchor.operands[0].shape
    rows, columns = elements(shape[:-1]), shape[-1]
    arguments: Mapping[str, Argument | tuple[Argument, ...]] = {
        "output": Output(),
        "rows": Number(rows),
        "columns": Number(columns),
        "extras": Fragments(call).extras,
    }
    source = Written.of("source", call, call.beside)
    arguments, constants = {**arguments, **source.arguments}, {**_constants(call), **source.constants}
    if isinstance(columns, int) and _is_whole(columns):
        function, variants = rows_whole, whole_rows(call, rows, columns)
    else:
        function = softmax_long if "softmax" in call.anchor.op.name else norm_long
        variants = (long_rows(call, rows, columns),)
    known = {name: constants[name] for name in constants if name in function.arg_names}
    return Launch(function, arguments, known, (Regime(None, variants),))


def _constants(call: Call) -> Mapping[str, Constant]:
    fragments, anchor = Fragments(call), call.anchor
    x, rank = anchor.operands[0], len(anchor.operands[0].shape)
    groups, column = (Group("row", rank - 1), Group("column", 1)), (Group("column", 1),)
    scale, shift = (anchor.inputs[i] if len(anchor.inputs) > i else None for i in (1, 2))
    epsilon = anchor.attrs.get("eps", 0.0)
    assert isinstance(epsilon, float)
    return {
        "READ": fragments.read("read", x, groups),
        "SCALE": None if scale is None else fragments.read("scale", scale, column),
        "SHIFT": None if shift is None else fragments.read("shift", shift, column),
        "FINISH": fragments.finish("finish", groups),
        "KIND": anchor.op.name,
        "EPSILON": epsilon,
    }


@dataclass(frozen=True, slots=True)
class Written:
    """What a kernel is given to write a value on its way, or to leave it: arguments and constants."""

    arguments: Mapping[str, Argument | tuple[Argument, ...]]
    constants: Mapping[str, Constant]

    @classmethod
    def of(cls, name: str, call: Call, part: Call | None) -> "Written":
        """Parameters `name`, `name`_extras and FINISH_`NAME` of a kernel of rows, for a part of the call that makes the
        value, if any does."""
        names = (name, f"{name}_extras")
        if part is None:
            return cls({}, dict.fromkeys((*names, f"FINISH_{name.upper()}")))
        fragments, groups = Fragments(part), (Group("row", len(part.output.shape) - 1), Group("column", 1))
        given = (Output(list(call.parts).index(part)), fragments.extras_within(call))
        finish = fragments.finish_given(f"finish_{name}", groups, (part.output,))
        return cls(dict(zip(names, given, strict=True)), {f"FINISH_{name.upper()}": finish})


def whole_rows(call: Call, rows: Dim, columns: int, width: int = 0) -> tuple[Variant, ...]:
    """Blocks of whole rows, or of `width` columns: with every count of warps that gives each thread a sensible number
    of elements."""
    width = width or power_of_two(columns)
    across = -(-columns // width)
    found = [
        Variant(
            {"BLOCK_ROWS": down, "BLOCK_COLUMNS": width},
            (blocks(rows, down), across, 1),
            _work(call, down, min(columns, width)),
            num_warps=warps,
        )
        for down in (1, 2, 4, 8)
        for warps in _WARPS
        if _OF_A_THREAD[0] <= down * width // (32 * warps) <= _OF_A_THREAD[1]
    ]
    if found:
        return tuple(found)
    down = max(1, 32 * _OF_A_THREAD[0] // width)
    return (
        Variant(
            {"BLOCK_ROWS": down, "BLOCK_COLUMNS": width},
            (blocks(rows, down), across, 1),
            _work(call, down, min(columns, width)),
            num_warps=1,
        ),
    )


def long_rows(call: Call, rows: Dim, columns: Dim) -> Variant:
    """A row by each program, in blocks of columns."""
    return Variant({"BLOCK_COLUMNS": _LONG_BLOCK}, (rows, 1, 1), _work(call, 1, columns), num_warps=8)


def _work(call: Call, down: int, columns: Dim) -> Callable[[Mapping[str, int]], Work]:
    read = sum(view.dtype.itemsize for view in call.inputs.values() if len(view.shape) > 1)
    written = sum(v.dtype.itemsize for v in call.results.values() if same_dim(v.shape[-1], call.view.shape[-1]))

    def work(sizes: Mapping[str, int]) -> Work:
        count = down * evaluate_dim(columns, sizes)
        moved = float(count * read)
        return Work(8.0 * count, DType.f32, moved, moved, float(count * written))

    return work
