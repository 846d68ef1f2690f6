"""What the aten tables build graphs with: casts, scalars, broadcasting and size arithmetic in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy
import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
from torch._prims_common import elementwise_dtypes

from planish.compiler import ops
from planish.compiler.importers.sizes import at_most, larger, smaller
from planish.compiler.ir import Attr, Node, Op, Value
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.ops.structure import FROM_TORCH, TORCH_DTYPE
from planish.compiler.types import Dim, DType, Shape, Size, same_dim, same_shape
from planish.errors import ImportGraphError

Handler: TypeAlias = Callable[..., Any]
Table: TypeAlias = Mapping[torch._ops.OpOverload, Handler]


class UncoveredError(Exception):
    """A handler meets a use of its op that our ops do not cover: it is decomposed or becomes opaque."""


_KEEPS_VALUES = (ops.reshape, ops.expand, ops.transpose, ops.slice_, ops.index_select, ops.gather, ops.cast)
_KEEPS_SIGN = (ops.add, ops.mul, ops.floor_divide)


@dataclass(slots=True)
class Builder:
    """Builds nodes in the scope of the op that is being imported."""

    sizes: Mapping[str, Size]
    scope: str = ""
    target: str = ""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    constants: int = 0

    @property
    def where(self) -> str:
        """The op being imported, for messages."""
        return f"{self.target} in '{self.scope}'" if self.scope else self.target

    def emit(self, op: Op, *inputs: Value | None, **attrs: Attr) -> Value:
        """One node of our ops; returns its first value."""
        return op(*inputs, scope=self.scope, **attrs)

    def node(self, op: Op, inputs: Sequence[Value | None], attrs: Mapping[str, Attr]) -> Node:
        """One node of our ops, for ops with several results."""
        return op.node(tuple(inputs), attrs, self.scope)

    def dtype(self, dtype: torch.dtype) -> DType:
        """Our dtype; raises ImportGraphError for one that the IR lacks."""
        if dtype.is_complex:
            raise ImportGraphError(f"{self.where} has complex numbers, which planish lacks; compile the part around it")
        if dtype not in FROM_TORCH:
            raise ImportGraphError(f"{self.where} has dtype {dtype}, which planish lacks; convert the model to f32")
        return FROM_TORCH[dtype]

    def scalar(self, value: Any, dtype: DType) -> Value:
        """A scalar tensor from a Python number or a dimension."""
        if isinstance(value, sympy.Expr):
            return self.emit(ops.dim_value, value=value, dtype=dtype)
        number = float(value) if dtype.is_float else bool(value) if dtype is DType.bool else int(value)
        return self.emit(ops.full, shape=(), value=number, dtype=dtype)

    def constant(self, tensor: torch.Tensor) -> Value:
        """A literal: a scalar, or a weight named `constant.N`."""
        if tensor.ndim == 0:
            return self.scalar(tensor.item(), self.dtype(tensor.dtype))
        name = f"constant.{self.constants}"
        self.constants += 1
        self.weights[name] = tensor
        return ops.weight(name=name, shape=tuple(tensor.shape), dtype=self.dtype(tensor.dtype))

    def cast(self, x: Value, dtype: DType | torch.dtype | None) -> Value:
        """`x` as another dtype; nothing where it has it already."""
        wanted = self.dtype(dtype) if isinstance(dtype, torch.dtype) else dtype
        return x if wanted is None or x.dtype is wanted else self.emit(ops.cast, x, dtype=wanted)

    def promote(self, *args: Any, floating: bool = False) -> tuple[Value, ...]:
        """The operands as tensors of the one dtype that torch computes in.

        `floating` turns integers into the default float, as division and exp do.
        """
        return tuple(self.as_tensor(a, self.promoted(*args, floating=floating)) for a in args)

    def promoted(self, *args: Any, floating: bool = False) -> DType:
        """The dtype that torch's promotion gives the operands."""
        kinds = tuple((TORCH_DTYPE[a.dtype], a.type.rank > 0) if isinstance(a, Value) else _number(a) for a in args)
        return self.dtype(_promotion(kinds, floating))

    def as_tensor(self, arg: Any, dtype: DType) -> Value:
        """A value or a number as a tensor of `dtype`."""
        return self.cast(arg, dtype) if isinstance(arg, Value) else self.scalar(arg, dtype)

    def reshape(self, x: Value, shape: Shape) -> Value:
        """`x` under another shape; nothing where it is the same."""
        return x if same_shape(x.shape, shape) else self.emit(ops.reshape, x, shape=tuple(shape))

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """`x` with its axes in another order; nothing where the order is the same."""
        return x if list(order) == list(range(x.type.rank)) else self.emit(ops.transpose, x, order=tuple(order))

    def expand(self, x: Value, shape: Shape) -> Value:
        """`x` broadcast to `shape`; nothing where it has it."""
        return x if same_shape(x.shape, shape) else self.emit(ops.expand, x, shape=tuple(shape))

    def slice(self, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
        """Part of one axis with bounds inside it; nothing where it is the whole axis."""
        if step == 1 and same_dim(start, 0) and same_dim(stop, x.shape[axis]):
            return x
        return self.emit(ops.slice_, x, axis=axis, start=start, stop=stop, step=step)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """The values one after another; nothing for one value."""
        return values[0] if len(values) == 1 else self.emit(ops.concat, *values, axis=axis)

    def broadcast(self, *shapes: Shape) -> Shape:
        return broadcast(*shapes)

    def smaller(self, left: Dim, right: Dim) -> Dim:
        return smaller(left, right, self.sizes)

    def larger(self, left: Dim, right: Dim) -> Dim:
        return larger(left, right, self.sizes)

    def at_most(self, left: Dim, right: Dim) -> bool:
        return at_most(left, right, self.sizes)


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return axis % rank if rank else 0


def axes_of(axes: Sequence[int] | int | None, rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes; all of them for None or an empty list, as reductions of torch mean it."""
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        return tuple(range(rank))
    return tuple(sorted(axis_of(a, rank) for a in ((axes,) if isinstance(axes, int) else axes)))


def is_static(*dims: Dim) -> bool:
    """Whether all dimensions are plain integers."""
    return all(isinstance(d, int) for d in dims)


def never_negative(index: Value) -> bool:
    """Whether the elements are known to be zero or more."""
    node, attrs = index.node, cast(Mapping[str, Any], index.node.attrs)
    if node.op is ops.arange:
        return isinstance(attrs["start"], int) and attrs["start"] >= 0 and attrs["step"] > 0
    if node.op is ops.full:
        return bool(attrs["value"] >= 0)
    if node.op is ops.dim_value:
        return isinstance(attrs["value"], sympy.Symbol)
    if node.op is ops.clamp:
        return attrs["low"] is not None and bool(attrs["low"] >= 0)
    if node.op in _KEEPS_SIGN:
        return all(v is not None and never_negative(v) for v in node.inputs)
    parts = node.inputs[:1] if node.op in _KEEPS_VALUES else ()
    return node.op is ops.argmax or any(v is not None and never_negative(v) for v in parts)


def _number(arg: Any) -> Any:
    return type(arg) if isinstance(arg, bool | float) else int


@lru_cache
def _promotion(kinds: tuple[Any, ...], floating: bool) -> torch.dtype:
    operands = [
        kind(1) if isinstance(kind, type) else torch.empty((1,) * kind[1], dtype=kind[0], device="meta")
        for kind in kinds
    ]
    kind = KIND.INT_TO_FLOAT if floating else KIND.DEFAULT
    result: torch.dtype = elementwise_dtypes(*operands, type_promotion_kind=kind)[1]
    return result
