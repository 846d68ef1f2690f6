"""aten's complex numbers as pairs of values, as rotary positions in polar coordinates need them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Handler, UncoveredError
from planish.compiler.ir import Op, Value
from planish.errors import ImportGraphError

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Complex:
    """A complex tensor as its real and its imaginary part, of one shape and dtype."""

    real: Value
    imaginary: Value


def is_complex(*trees: Any) -> bool:
    """Whether a leaf is complex: one of ours, or a traced tensor."""
    leaves = pytree.tree_leaves(trees)
    return any(isinstance(x, Complex) or (isinstance(x, torch.Tensor) and x.is_complex()) for x in leaves)


def constant(builder: Builder, tensor: torch.Tensor) -> Value | Complex:
    """A literal of any dtype."""
    if not tensor.is_complex():
        return builder.constant(tensor)
    return Complex(*(builder.constant(part.clone()) for part in (tensor.real, tensor.imag)))


def in_parts(builder: Builder, target: torch._ops.OpOverload, plain: Handler | None, args: Sequence[Any]) -> Any:
    """The op on complex numbers; `plain` is its handler for real ones, which serves where it only moves elements.

    Raises ImportGraphError where neither serves.
    """
    try:
        if target in _TABLE:
            return _TABLE[target](builder, *args)
        if target in _MOVEMENTS and plain is not None:
            return Complex(*(plain(builder, *_parts(args, name)) for name in ("real", "imaginary")))
    except UncoveredError:
        pass
    raise ImportGraphError(
        f"{builder.where} has complex numbers, which planish lacks in this op; compile the part around it, or write "
        "it with real numbers"
    )


def _parts(args: Sequence[Any], name: str) -> list[Any]:
    return [pytree.tree_map(lambda leaf: getattr(leaf, name) if isinstance(leaf, Complex) else leaf, a) for a in args]


def _polar(b: Builder, length: Value, angle: Value) -> Complex:
    length, angle = b.promote(length, angle)
    return Complex(*(b.emit(ops.mul, length, b.emit(op, angle)) for op in (ops.cos, ops.sin)))


def _from_pairs(b: Builder, x: Value) -> Complex:
    last = x.type.rank - 1
    return Complex(*(b.reshape(b.slice(x, last, i, i + 1), x.shape[:-1]) for i in (0, 1)))


def _as_pairs(b: Builder, x: Complex) -> Value:
    shape = (*x.real.shape, 1)
    return b.concat([b.reshape(part, shape) for part in (x.real, x.imaginary)], len(shape) - 1)


def _mul(b: Builder, x: Any, y: Any) -> Complex:
    if not isinstance(x, Complex):
        x, y = y, x
    if not isinstance(y, Complex):
        return Complex(*(b.emit(ops.mul, *b.promote(part, _real(y))) for part in (x.real, x.imaginary)))
    products = [b.emit(ops.mul, left, right) for left in (x.real, x.imaginary) for right in (y.real, y.imaginary)]
    return Complex(b.emit(ops.sub, products[0], products[3]), b.emit(ops.add, products[1], products[2]))


def _div(b: Builder, x: Any, y: Any) -> Complex:
    if not isinstance(x, Complex) or isinstance(y, Complex):
        raise UncoveredError
    return Complex(*(b.emit(ops.div, *b.promote(part, _real(y))) for part in (x.real, x.imaginary)))


def _sum(op: Op) -> Callable[..., Complex]:
    def handler(b: Builder, x: Any, y: Any, alpha: Any = 1) -> Complex:
        if not (isinstance(x, Complex) and isinstance(y, Complex)) or alpha != 1:
            raise UncoveredError
        return Complex(b.emit(op, x.real, y.real), b.emit(op, x.imaginary, y.imaginary))

    return handler


def _conjugate(b: Builder, x: Complex) -> Complex:
    return Complex(x.real, b.emit(ops.neg, x.imaginary))


def _abs(b: Builder, x: Complex) -> Value:
    squares = [b.emit(ops.mul, part, part) for part in (x.real, x.imaginary)]
    return b.emit(ops.sqrt, b.emit(ops.add, *squares))


def _same(b: Builder, x: Complex, *rest: Any) -> Complex:
    if not isinstance(x, Complex):
        raise UncoveredError
    return x


def _real(number: Any) -> Any:
    """A factor, which may be no complex number of Python."""
    if isinstance(number, complex):
        raise UncoveredError
    return number


_TABLE: Mapping[torch._ops.OpOverload, Handler] = {
    aten.polar.default: _polar,
    aten.complex.default: lambda b, x, y: Complex(*b.promote(x, y)),
    aten.view_as_complex.default: _from_pairs,
    aten.view_as_real.default: _as_pairs,
    aten.real.default: lambda b, x: x.real,
    aten.imag.default: lambda b, x: x.imaginary,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.add.Tensor: _sum(ops.add),
    aten.sub.Tensor: _sum(ops.sub),
    aten.conj.default: _conjugate,
    aten._conj.default: _conjugate,
    aten.abs.default: _abs,
    **dict.fromkeys((aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.resolve_conj.default), _same),
}
_MOVEMENTS = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints),
        *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.expand_as.default),
        *(aten.permute.default, aten.transpose.int, aten.t.default, aten.slice.Tensor, aten.select.int),
        *(aten.index.Tensor, aten.index_select.default, aten.cat.default, aten.stack.default, aten.repeat.default),
        *(aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default, aten.alias.default),
        *(aten.lift_fresh_copy.default, aten.to.device),
    }
)
