"""Ops that hold a graph together: inputs, weights, literals and ops that only torch can run."""

import json
from typing import TYPE_CHECKING, Any

import torch

from planish.compiler.ir import op
from planish.compiler.types import Dim, DType, Shape, TensorType
from planish.errors import TypeRuleError

if TYPE_CHECKING:
    from torch import Tensor

TORCH_DTYPE = {
    DType.f64: torch.float64,
    DType.f32: torch.float32,
    DType.f16: torch.float16,
    DType.bf16: torch.bfloat16,
    DType.f8: torch.float8_e4m3fn,
    DType.i64: torch.int64,
    DType.i32: torch.int32,
    DType.i16: torch.int16,
    DType.i8: torch.int8,
    DType.u8: torch.uint8,
    DType.bool: torch.bool,
}
LARGEST_F8 = torch.finfo(torch.float8_e4m3fn).max
FROM_TORCH = {dtype: name for name, dtype in TORCH_DTYPE.items()}


def _bound_by_evaluator(**_: object) -> "Tensor":
    raise AssertionError("inputs and weights are bound by the evaluator and have no reference")


@op(_bound_by_evaluator, "leaf")
def input_(*, name: str, shape: Shape, dtype: DType) -> TensorType:
    """A tensor that the caller passes."""
    return TensorType(shape, dtype)


@op(_bound_by_evaluator, "leaf")
def weight(*, name: str, shape: Shape, dtype: DType) -> TensorType:
    """A tensor of the program's weights, by name."""
    return TensorType(shape, dtype)


def _full(*, shape: tuple[int, ...], value: float, dtype: DType) -> "Tensor":
    return torch.full(shape, value, dtype=TORCH_DTYPE[dtype])


@op(_full)
def full(*, shape: Shape = (), value: float, dtype: DType) -> TensorType:
    """A tensor of one repeated value; with an empty shape, a scalar literal."""
    if dtype is DType.f8:
        raise TypeRuleError("no literal is f8; cast one of f32")
    return TensorType(shape, dtype)


def _arange(*, length: int, start: int, step: int, dtype: DType) -> "Tensor":
    return start + step * torch.arange(length, dtype=TORCH_DTYPE[dtype])


@op(_arange)
def arange(*, length: Dim, start: Dim = 0, step: int = 1, dtype: DType = DType.i64) -> TensorType:
    """`start, start + step, ...`, `length` of them."""
    return TensorType((length,), dtype)


def _dim_value(*, value: int, dtype: DType) -> "Tensor":
    return torch.tensor(value, dtype=TORCH_DTYPE[dtype])


@op(_dim_value)
def dim_value(*, value: Dim, dtype: DType = DType.i64) -> TensorType:
    """A dimension as a scalar tensor."""
    return TensorType((), dtype)


def _opaque(*inputs: "Tensor", target: str, arguments: str, shapes: object, dtypes: object) -> "tuple[Tensor, ...]":
    packet, overload = target.removeprefix("aten.").split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    inputs = tuple(x.contiguous() for x in inputs)
    written = json.loads(arguments)
    args = _fill(written["args"], inputs)
    results = function(*args, **{name: _fill(value, inputs) for name, value in written["kwargs"].items()})
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _fill(tree: Any, inputs: "tuple[Tensor, ...]") -> Any:
    """`tree` with `{"input": i}` replaced by operand i, `{"int": i}` by its number, `{"dtype": name}` by the dtype."""
    if isinstance(tree, list):
        return [_fill(item, inputs) for item in tree]
    if isinstance(tree, dict) and set(tree) == {"input"}:
        return inputs[tree["input"]]
    if isinstance(tree, dict) and set(tree) == {"int"}:
        return int(inputs[tree["int"]])
    if isinstance(tree, dict) and set(tree) == {"dtype"}:
        return TORCH_DTYPE[DType(tree["dtype"])]
    return tree


@op(_opaque, "opaque")
def opaque(
    *inputs: TensorType, target: str, arguments: str, shapes: tuple[Shape, ...], dtypes: tuple[DType, ...]
) -> tuple[TensorType, ...]:
    """An aten op that planish does not know: it runs as torch and is named in the report.

    `target` is `aten.NAME.OVERLOAD`; `arguments` is JSON `{"args": [...], "kwargs": {...}}` in which
    `{"input": i}` stands for operand i, `{"int": i}` for the number that operand i holds and `{"dtype": "f32"}` for a
    dtype.
    """
    if not target.startswith("aten.") or target.count(".") != 2:
        raise TypeRuleError(f"an opaque op is aten.NAME.OVERLOAD, not {target!r}")
    if len(shapes) != len(dtypes) or not shapes:
        raise TypeRuleError(f"{target} has {len(shapes)} shapes and {len(dtypes)} dtypes of results")
    return tuple(TensorType(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
