"""What elementwise ops compute, lane by lane, as TIR.

Inside expressions a bool is a predicate, bf16 and f16 are float32 (rounded again by a cast and by the store), and every
other dtype is its own.
"""

from collections.abc import Callable

from tvm import tirx

from planish.codegen.tvm import short_math, wide_math
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.kernel import TVM_DTYPE
from planish.codegen.tvm.power import power
from planish.codegen.tvm.vector_math import bits, cast, either, equal, intrinsic, keep, like, select
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType

_COMPUTED = {DType.f16: "float32", DType.bf16: "float32", DType.bool: "bool"}

_Function = Callable[..., "tirx.PrimExpr"]


def compute_dtype(dtype: DType) -> str:
    """The TVM dtype that values of `dtype` have inside expressions."""
    return _COMPUTED.get(dtype, TVM_DTYPE[dtype])


def from_memory(x: "tirx.PrimExpr", dtype: DType) -> "tirx.PrimExpr":
    """An element as loaded, as expressions see it."""
    return _FROM_MEMORY[dtype](x) if dtype in _FROM_MEMORY else x


def to_memory(x: "tirx.PrimExpr", dtype: DType) -> "tirx.PrimExpr":
    """A value of an expression, as `dtype` is stored: bf16 and f16 are rounded to the nearest even."""
    return _TO_MEMORY[dtype](x) if dtype in _TO_MEMORY else x


def compute(node: Node, operands: "list[tirx.PrimExpr]") -> "tirx.PrimExpr":
    """The result of an elementwise node from its operands, which all have as many lanes."""
    function, many_uses = TABLE[node.op]
    if node.op in _WIDE and node.operands[0].dtype is DType.f64:
        function = _WIDE[node.op]
    boolean = node.operands[0].dtype is DType.bool
    if boolean and node.op not in _OF_PREDICATES:
        operands = [_number(x, "uint8") for x in operands]
    operands = [keep(x) for x in operands] if many_uses or boolean else operands
    result = function(node, *operands)
    back = boolean and node.types[0].dtype is DType.bool and vm.element_of(result) != "bool"
    return vm.differ(result, like(result, 0)) if back else result


def refuse_elementwise(node: Node) -> str | None:
    """Why an elementwise node has no kernel, or None."""
    if node.op not in _ONLY_F32:
        return None
    dtype = node.operands[0].dtype
    if dtype is DType.f64 and node.op is ops.pow_ and _small_power(node) is None:
        return f"{node.op.name} of f64 has no kernel; cast to f32, or write exp(y * log(x))"
    if dtype.is_integer and not (node.op is ops.pow_ and _small_power(node) is not None):
        return f"{node.op.name} of {dtype} has no kernel; cast to f32"
    return None


def constant_of(value: Value | None) -> float | None:
    """The number that a literal holds, seen through casts, expansions and reshapes; else None."""
    while value is not None and value.node.op in (ops.cast, ops.expand, ops.reshape):
        value = value.node.inputs[0]
    if value is None or value.node.op is not ops.full:
        return None
    number = value.node.attrs["value"]
    assert isinstance(number, int | float)
    return number


def round_bf16(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The uint16 bits of float32 values rounded to bf16, to the nearest even; not-a-number stays one."""
    raw = keep(bits(x, "uint32"))
    odd = tirx.bitwise_and(raw >> like(raw, 16), like(raw, 1))
    rounded = (raw + like(raw, 0x7FFF) + odd) >> like(raw, 16)
    quiet = tirx.bitwise_or(raw >> like(raw, 16), like(raw, 0x40))
    size = tirx.bitwise_and(raw, like(raw, 0x7FFFFFFF))
    return cast(keep(select(size > like(raw, 0x7F800000), quiet, rounded)), "uint16")


def widen_bf16(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The float32 values of bf16 bits in uint16."""
    wide = cast(x, "uint32")
    return bits(wide << like(wide, 16), "float32")


def _number(x: "tirx.PrimExpr", dtype: str) -> "tirx.PrimExpr":
    """A predicate as 0 or 1."""
    lanes = vm.lanes_of(x)
    return select(x, vm.constant(1, dtype, lanes), vm.constant(0, dtype, lanes))


_FROM_MEMORY: dict[DType, _Function] = {
    DType.bool: lambda x: vm.differ(x, like(x, 0)),
    DType.bf16: widen_bf16,
    DType.f16: lambda x: cast(x, "float32"),
}
_TO_MEMORY: dict[DType, _Function] = {
    DType.bool: lambda x: _number(x, "uint8"),
    DType.bf16: round_bf16,
    DType.f16: lambda x: cast(x, "float16"),
}


def _cast(node: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    source, target = node.operands[0].dtype, node.types[0].dtype
    if source is target:
        return x
    if source is DType.bool:
        return _number(x, compute_dtype(target))
    if target is DType.bool:
        return _truth(x)
    value = cast(x, compute_dtype(target))
    if target in (DType.bf16, DType.f16):
        return keep(from_memory(to_memory(keep(value), target), target))
    return value


def _truth(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Not zero; a predicate as it is."""
    if vm.element_of(x) == "bool":
        return x
    nonzero = vm.differ(x, like(x, 0))
    return either(nonzero, vm.is_nan(x)) if vm.is_float(x) else nonzero


def _where(_: Node, condition: "tirx.PrimExpr", x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    if vm.element_of(x) == "bool":
        return either(vm.both(condition, x), vm.both(vm.negated(condition), y))
    return select(condition, x, y)


def _clamp(node: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    low, high = node.attrs["low"], node.attrs["high"]
    if isinstance(low, int | float):
        x = keep(select(x < like(x, low), like(x, low), x))
    if isinstance(high, int | float):
        x = keep(select(x > like(x, high), like(x, high), x))
    return x


def _gelu(node: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    name = "gelu_tanh" if node.attrs["approximate"] == "tanh" else "gelu"
    return _as_rounded(name)(node, x)


def _rounded(name: str) -> _Function:
    return lambda _, x: intrinsic(name, x) if vm.is_float(x) else x


def _divide(node: Node, x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return x / y if vm.is_float(x) else cast(x, "float32") / cast(y, "float32")


def _floor_divide(_: Node, x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Rounded towards minus infinity. Integer division by zero gives 0 here, where it would stop the process."""
    if vm.is_float(x):
        quotient = keep(intrinsic("llvm.floor", x / y))
        rest = keep(vm.fma(-quotient, y, x))
        below = vm.both(vm.differ(rest, like(x, 0)), tirx.bitwise_xor(rest < like(x, 0), y < like(x, 0)))
        return keep(select(below, quotient - like(x, 1), quotient))
    quotient, _ = _integer_quotient(x, y)
    return quotient


def _remainder(_: Node, x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x - y * floor(x / y), with the sign of y; exact for floats while the quotient is below 2^24."""
    if vm.is_float(x):
        rest = keep(vm.fma(-keep(intrinsic("llvm.floor", x / y)), y, x))
        wrong = vm.both(vm.differ(rest, like(x, 0)), tirx.bitwise_xor(rest < like(x, 0), y < like(x, 0)))
        return keep(select(wrong, rest + y, rest))
    _, rest = _integer_quotient(x, y)
    return rest


def _integer_quotient(x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """Floor quotient and remainder; divisors 0 and -1, on which the processor may trap, are kept from it."""
    special = either(equal(y, like(y, 0)), equal(y, like(y, -1))) if _is_signed(y) else equal(y, like(y, 0))
    safe = keep(select(special, like(y, 1), y))
    towards_zero = keep(tirx.truncdiv(x, safe))
    rest = keep(x - towards_zero * safe)
    if _is_signed(y):
        down = vm.both(vm.differ(rest, like(x, 0)), tirx.bitwise_xor(rest < like(x, 0), safe < like(x, 0)))
        towards_zero = keep(select(down, towards_zero - like(x, 1), towards_zero))
        rest = keep(select(down, rest + safe, rest))
        towards_zero = keep(select(equal(y, like(y, -1)), like(x, 0) - x, towards_zero))
    return keep(select(equal(y, like(y, 0)), like(x, 0), towards_zero)), rest


def _is_signed(x: "tirx.PrimExpr") -> bool:
    return vm.element_of(x).startswith("int")


def _small_power(node: Node) -> float | None:
    exponent = constant_of(node.inputs[1])
    known = exponent in _POWERS and (node.types[0].dtype.is_float or exponent in (1, 2, 3, 4))
    return exponent if known else None


def _power(node: Node, x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    known = _small_power(node)
    return power(x, y) if known is None else keep(_POWERS[known](x))


def _inverse(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return like(x, 1) / x


_POWERS: dict[float, _Function] = {
    0.5: vm.square_root,
    -0.5: lambda x: _inverse(vm.square_root(x)),
    1: lambda x: x,
    -1: _inverse,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    4: lambda x: keep(x * x) * keep(x * x),
    -2: lambda x: _inverse(keep(x * x)),
}


def _relu(_: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return select(x < like(x, 0), like(x, 0), x)


def _is_nan(_: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return vm.is_nan(x) if vm.is_float(x) else vm.constant(0, "bool", vm.lanes_of(x))


def _negate(_: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return x * like(x, -1) if vm.is_float(x) else like(x, 0) - x


def _batch_norm(node: Node, *operands: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Operands are the present ones of (mean, variance, x, w, b)."""
    rest = list(operands)
    mean, variance, x = rest[:3]
    given = dict(zip((i for i, v in enumerate(node.inputs) if v is not None), operands, strict=True))
    eps = node.attrs["eps"]
    assert isinstance(eps, float)
    result = (x - mean) * keep(_inverse(vm.square_root(variance + like(x, eps))))
    result = result * given[3] if 3 in given else result
    return result + given[4] if 4 in given else result


def _unary(function: _Function) -> _Function:
    return lambda _, x: function(x)


def _as_rounded(name: str) -> _Function:
    """The function of that name, only as accurate as bf16 where the result is one."""
    full, short = getattr(vm, name), getattr(short_math, name)
    return lambda node, x: short(x) if node.types[0].dtype is DType.bf16 else full(x)


def _binary(function: _Function) -> _Function:
    return lambda _, x, y: function(x, y)


# each op's function, and whether it uses an operand more than once, so that operands are to be variables
TABLE: dict[Op, tuple[_Function, bool]] = {
    ops.neg: (_negate, False),
    ops.abs_: (_unary(vm.absolute), True),
    ops.exp: (_as_rounded("exp"), True),
    ops.log: (_unary(vm.log), True),
    ops.sqrt: (_unary(vm.square_root), False),
    ops.rsqrt: (_unary(lambda x: _inverse(vm.square_root(x))), False),
    ops.reciprocal: (_unary(_inverse), False),
    ops.sin: (_unary(vm.sin), True),
    ops.cos: (_unary(vm.cos), True),
    ops.tanh: (_as_rounded("tanh"), True),
    ops.sigmoid: (_as_rounded("sigmoid"), True),
    ops.erf: (_unary(vm.erf), True),
    ops.relu: (_relu, True),
    ops.silu: (_as_rounded("silu"), True),
    ops.gelu: (_gelu, True),
    ops.floor: (_rounded("llvm.floor"), False),
    ops.ceil: (_rounded("llvm.ceil"), False),
    ops.round_: (_rounded("llvm.roundeven"), False),
    ops.logical_not: (_unary(lambda x: vm.negated(_truth(x))), True),
    ops.isnan: (_is_nan, True),
    ops.clamp: (_clamp, True),
    ops.cast: (_cast, True),
    ops.where: (_where, False),
    ops.add: (_binary(lambda x, y: x + y), False),
    ops.sub: (_binary(lambda x, y: x - y), False),
    ops.mul: (_binary(lambda x, y: x * y), False),
    ops.div: (_divide, False),
    ops.floor_divide: (_floor_divide, True),
    ops.remainder: (_remainder, True),
    ops.pow_: (_power, True),
    ops.maximum: (_binary(vm.maximum), True),
    ops.minimum: (_binary(vm.minimum), True),
    ops.eq: (_binary(equal), False),
    ops.ne: (_binary(lambda x, y: vm.negated(equal(x, y))), False),
    ops.lt: (_binary(lambda x, y: x < y), False),
    ops.le: (_binary(lambda x, y: x <= y), False),
    ops.gt: (_binary(lambda x, y: x > y), False),
    ops.ge: (_binary(lambda x, y: x >= y), False),
    ops.logical_and: (_binary(lambda x, y: vm.both(_truth(x), _truth(y))), True),
    ops.logical_or: (_binary(lambda x, y: either(_truth(x), _truth(y))), True),
    ops.batch_norm: (_batch_norm, True),
}
_WIDE: dict[Op, _Function] = {
    ops.exp: _unary(wide_math.exp),
    ops.log: _unary(wide_math.log),
    ops.sin: _unary(wide_math.sin),
    ops.cos: _unary(wide_math.cos),
    ops.tanh: _unary(wide_math.tanh),
    ops.sigmoid: _unary(wide_math.sigmoid),
    ops.erf: _unary(wide_math.erf),
    ops.silu: _unary(wide_math.silu),
    ops.gelu: lambda node, x: (wide_math.gelu_tanh if node.attrs["approximate"] == "tanh" else wide_math.gelu)(x),
}
_OF_PREDICATES = (ops.logical_and, ops.logical_or, ops.logical_not, ops.where, ops.cast)
_ONLY_F32 = (ops.exp, ops.log, ops.sin, ops.cos, ops.tanh, ops.sigmoid, ops.erf, ops.silu, ops.gelu, ops.pow_)
