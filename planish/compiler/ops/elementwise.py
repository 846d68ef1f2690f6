"""Elementwise ops: one result element from the elements at the same place, after broadcasting."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.ir import Op, op
from planish.compiler.ops.checks import check_computed, check_float, check_number, check_same_dtype
from planish.compiler.ops.structure import LARGEST_F8, TORCH_DTYPE
from planish.compiler.types import Dim, DType, Shape, TensorType, same_dim
from planish.errors import TypeRuleError


def broadcast(*shapes: Shape) -> Shape:
    """The shape that numpy-style broadcasting gives; raises TypeRuleError where two dimensions differ."""
    rank = max(len(shape) for shape in shapes)
    return tuple(_broadcast_dim([s[i - rank + len(s)] for s in shapes if i >= rank - len(s)]) for i in range(rank))


def _broadcast_dim(dims: list[Dim]) -> Dim:
    wide = [d for d in dims if d != 1]
    if any(not same_dim(wide[0], d) for d in wide[1:]):
        raise TypeRuleError(f"dimensions {', '.join(map(str, dims))} do not broadcast")
    return wide[0] if wide else 1


Check = Callable[..., None]


def _unary(name: str, reference: Callable[..., Tensor], check: Check, *, result: DType | None = None) -> Op:
    def infer(x: TensorType) -> TensorType:
        check(x)
        return x if result is None else x.with_dtype(result)

    return Op(name, infer, reference, frozenset({"elementwise"}))


def _binary(
    name: str,
    reference: Callable[..., Tensor],
    *traits: str,
    check: Check = check_computed,
    result: DType | None = None,
) -> Op:
    def infer(x: TensorType, y: TensorType) -> TensorType:
        check_same_dtype(x, y)
        check(x)
        return TensorType(broadcast(x.shape, y.shape), result or x.dtype)

    return Op(name, infer, reference, frozenset({"elementwise", *traits}))


neg = _unary("neg", torch.neg, check_number)
abs_ = _unary("abs", torch.abs, check_number)
exp = _unary("exp", torch.exp, check_float)
log = _unary("log", torch.log, check_float)
sqrt = _unary("sqrt", torch.sqrt, check_float)
rsqrt = _unary("rsqrt", torch.rsqrt, check_float)
reciprocal = _unary("reciprocal", torch.reciprocal, check_float)
sin = _unary("sin", torch.sin, check_float)
cos = _unary("cos", torch.cos, check_float)
tanh = _unary("tanh", torch.tanh, check_float)
sigmoid = _unary("sigmoid", torch.sigmoid, check_float)
erf = _unary("erf", torch.erf, check_float)
relu = _unary("relu", torch.relu, check_number)
silu = _unary("silu", functional.silu, check_float)
floor = _unary("floor", torch.floor, check_number)
ceil = _unary("ceil", torch.ceil, check_number)
round_ = _unary("round", torch.round, check_number)
logical_not = _unary("logical_not", torch.logical_not, check_computed, result=DType.bool)
isnan = _unary("isnan", torch.isnan, check_computed, result=DType.bool)

add = _binary("add", torch.add, "commutative")
sub = _binary("sub", torch.sub, check=check_number)
mul = _binary("mul", torch.mul, "commutative")
div = _binary("div", torch.div, check=check_float)
floor_divide = _binary("floor_divide", torch.floor_divide, check=check_number)
remainder = _binary("remainder", torch.remainder, check=check_number)
pow_ = _binary("pow", torch.pow, check=check_number)
maximum = _binary("maximum", torch.maximum, "commutative")
minimum = _binary("minimum", torch.minimum, "commutative")
eq = _binary("eq", torch.eq, "commutative", result=DType.bool)
ne = _binary("ne", torch.ne, "commutative", result=DType.bool)
lt = _binary("lt", torch.lt, result=DType.bool)
le = _binary("le", torch.le, result=DType.bool)
gt = _binary("gt", torch.gt, result=DType.bool)
ge = _binary("ge", torch.ge, result=DType.bool)
logical_and = _binary("logical_and", torch.logical_and, "commutative", result=DType.bool)
logical_or = _binary("logical_or", torch.logical_or, "commutative", result=DType.bool)


def _gelu(x: Tensor, *, approximate: str) -> Tensor:
    return functional.gelu(x, approximate=approximate)


@op(_gelu, "elementwise")
def gelu(x: TensorType, *, approximate: str = "none") -> TensorType:
    """Gaussian error linear unit, exact (`none`) or with tanh (`tanh`)."""
    check_float(x)
    if approximate not in ("none", "tanh"):
        raise TypeRuleError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    return x


def _clamp(x: Tensor, *, low: float | None, high: float | None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@op(_clamp, "elementwise")
def clamp(x: TensorType, *, low: float | None = None, high: float | None = None) -> TensorType:
    """Values below `low` become `low`, above `high` become `high`; integers take integer bounds."""
    check_number(x)
    if x.dtype.is_integer and not all(v is None or isinstance(v, int) for v in (low, high)):
        raise TypeRuleError(f"{x} takes integer bounds, not {low} and {high}")
    return x


def _cast(x: Tensor, *, dtype: DType) -> Tensor:
    if dtype is DType.f8:  # beyond the largest number versions of torch differ
        x = x.float().clamp(-LARGEST_F8, LARGEST_F8)
    return x.to(TORCH_DTYPE[dtype])


@op(_cast, "elementwise")
def cast(x: TensorType, *, dtype: DType) -> TensorType:
    """The same values as another dtype; what is beyond the largest f8 becomes that."""
    return x.with_dtype(dtype)


@op(torch.where, "elementwise")
def where(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
    """`x` where the condition holds, else `y`."""
    if condition.dtype is not DType.bool or x.dtype is not y.dtype:
        raise TypeRuleError(f"where takes bool and two equal dtypes, not {condition.dtype}, {x.dtype}, {y.dtype}")
    return TensorType(broadcast(condition.shape, x.shape, y.shape), x.dtype)
