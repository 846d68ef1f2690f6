"""What elementwise ops compute, as Triton text over blocks of elements.

Inside expressions a bool is a predicate, f16 and bf16 are f32 (rounded by a cast and by the store), f8 is its bits, and
every other dtype is its own.
"""

import math
from collections.abc import Callable, Sequence

from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType

TRITON_DTYPE = {
    DType.f64: "float64",
    DType.f32: "float32",
    DType.f16: "float16",
    DType.bf16: "bfloat16",
    DType.f8: "uint8",  # not every architecture lets Triton name f8
    DType.i64: "int64",
    DType.i32: "int32",
    DType.i16: "int16",
    DType.i8: "int8",
    DType.u8: "uint8",
    DType.bool: "int1",
}
_COMPUTED = {DType.f16: DType.f32, DType.bf16: DType.f32}

_Text = Callable[..., str]


def compute_dtype(dtype: DType) -> str:
    """Triton's name of the dtype that values of `dtype` have inside expressions."""
    return TRITON_DTYPE[_COMPUTED.get(dtype, dtype)]


def from_memory(text: str, dtype: DType) -> str:
    """Elements as loaded, as expressions see them; a bool lies in memory as a byte."""
    if dtype is DType.bool:
        return f"({text} != 0)"
    return f"{text}.to(tl.float32)" if dtype in _COMPUTED else text


def to_memory(text: str, dtype: DType) -> str:
    """A value of an expression as `dtype` is stored."""
    return f"{text}.to(tl.{'uint8' if dtype is DType.bool else TRITON_DTYPE[dtype]})"


def compute(node: Node, operands: Sequence[str]) -> str:
    """The text of an elementwise node's result from the texts of its operands."""
    boolean = node.operands[0].dtype is DType.bool
    if boolean and node.op not in _OF_PREDICATES:
        operands = [f"{x}.to(tl.uint8)" for x in operands]
    result = TABLE[node.op](node, *operands)
    return f"({result} != 0)" if boolean and node.op in _KEEPS_BOOL else result


def refuse_elementwise(node: Node) -> str | None:
    """Why an elementwise node has no kernel, or None."""
    dtype = node.operands[0].dtype if node.operands else node.types[0].dtype
    if node.op is ops.pow_ and _exponent(node) is None and dtype is not DType.f32 and dtype not in _COMPUTED:
        return f"a general power of {dtype} has no kernel; cast to f32"
    if node.op in (ops.tanh, ops.pow_) and dtype is DType.f64 and _exponent(node) is None:
        return f"{node.op.name} of f64 has no kernel; cast to f32"
    return None


def number(value: object, dtype: DType) -> str:
    """The text of a literal of `dtype`."""
    assert isinstance(value, bool | int | float)
    if dtype is DType.f8:
        return f"tm.to_f8({number(value, DType.f32)})"
    plain = float(value) if dtype.is_float else int(value)
    text = repr(plain) if math.isfinite(plain) else f'float("{plain}")'
    return f"tl.full((), {text}, tl.{compute_dtype(dtype)})"


def _is_float(node: Node) -> bool:
    return node.operands[0].dtype.is_float


def _cast(node: Node, x: str) -> str:
    source, target = node.operands[0].dtype, node.types[0].dtype
    if source is target:
        return x
    if source is DType.f8:
        x = f"tm.from_f8({x})"
    if target is DType.f8:
        return f"tm.to_f8({x}.to(tl.float32))"
    if target is DType.bool:
        return f"({x} != 0)"
    if target in _COMPUTED:
        return f"{x}.to(tl.{TRITON_DTYPE[target]}).to(tl.float32)"
    return f"{x}.to(tl.{compute_dtype(target)})"


def _clamp(node: Node, x: str) -> str:
    low, high = node.attrs["low"], node.attrs["high"]
    if isinstance(low, int | float):
        x = f"tl.where({x} < {low!r}, {low!r}, {x})"
    if isinstance(high, int | float):
        x = f"tl.where({x} > {high!r}, {high!r}, {x})"
    return x


def _exponent(node: Node) -> float | None:
    """The constant exponent of a power that multiplications compute, or None."""
    if node.op is not ops.pow_:
        return None
    value: Value | None = node.inputs[1]
    while value is not None and value.node.op in (ops.cast, ops.expand, ops.reshape):
        value = value.node.inputs[0]
    known = value is not None and value.node.op is ops.full and value.node.attrs["value"]
    if not isinstance(known, int | float) or isinstance(known, bool) or known not in _POWERS:
        return None
    return known if node.types[0].dtype.is_float or known in (1, 2, 3, 4) else None


_POWERS = {
    0.5: "tl.sqrt({x})",
    -0.5: "tl.rsqrt({x})",
    1: "{x}",
    -1: "(1.0 / {x})",
    2: "({x} * {x})",
    3: "({x} * {x} * {x})",
    4: "({x} * {x} * {x} * {x})",
    -2: "(1.0 / ({x} * {x}))",
}


def _power(node: Node, x: str, y: str) -> str:
    known = _exponent(node)
    return f"tm.power({x}, {y})" if known is None else _POWERS[known].format(x=x)


def _gelu(node: Node, x: str) -> str:
    return f"tm.gelu_tanh({x})" if node.attrs["approximate"] == "tanh" else f"tm.gelu({x})"


def _batch_norm(node: Node, *operands: str) -> str:
    given = dict(zip((i for i, v in enumerate(node.inputs) if v is not None), operands, strict=True))
    text = f"(({given[2]} - {given[0]}) * tl.rsqrt({given[1]} + {node.attrs['eps']!r}))"
    text = f"({text} * {given[3]})" if 3 in given else text
    return f"({text} + {given[4]})" if 4 in given else text


def _call(function: str) -> _Text:
    return lambda _, *operands: f"{function}({', '.join(operands)})"


def _infix(sign: str) -> _Text:
    return lambda _, x, y: f"({x} {sign} {y})"


def _of_kind(of_float: str, of_integer: str) -> _Text:
    """Two texts: for floats, and for integers and bools."""
    return lambda node, *operands: (of_float if _is_float(node) else of_integer).format(*operands)


def _whole(function: str) -> _Text:
    return _of_kind(function + "({0})", "{0}")


TABLE: dict[Op, _Text] = {
    ops.neg: lambda _, x: f"(-{x})",
    ops.abs_: _call("tl.abs"),
    ops.exp: _call("tl.exp"),
    ops.log: _call("tl.log"),
    ops.sqrt: _call("tl.sqrt"),
    ops.rsqrt: _call("tl.rsqrt"),
    ops.reciprocal: lambda _, x: f"(1.0 / {x})",
    ops.sin: _call("tl.sin"),
    ops.cos: _call("tl.cos"),
    ops.tanh: _call("tm.tanh"),
    ops.sigmoid: _call("tm.sigmoid"),
    ops.erf: _call("tl.erf"),
    ops.relu: lambda _, x: f"tl.where({x} < 0, 0, {x})",
    ops.silu: _call("tm.silu"),
    ops.gelu: _gelu,
    ops.floor: _whole("tl.floor"),
    ops.ceil: _whole("tl.ceil"),
    ops.round_: _whole("tm.round_even"),
    ops.logical_not: lambda _, x: f"({x} == 0)",
    ops.isnan: _of_kind("({0} != {0})", "({0} != {0})"),
    ops.clamp: _clamp,
    ops.cast: _cast,
    ops.where: _call("tl.where"),
    ops.add: _infix("+"),
    ops.sub: _infix("-"),
    ops.mul: _infix("*"),
    ops.div: _of_kind("({0} / {1})", "({0}.to(tl.float32) / {1}.to(tl.float32))"),
    ops.floor_divide: _of_kind("tm.floor_divide_float({0}, {1})", "tm.floor_divide_integer({0}, {1})"),
    ops.remainder: _of_kind("tm.remainder_float({0}, {1})", "tm.remainder_integer({0}, {1})"),
    ops.pow_: _power,
    ops.maximum: _of_kind("tm.maximum({0}, {1})", "tl.maximum({0}, {1})"),
    ops.minimum: _of_kind("tm.minimum({0}, {1})", "tl.minimum({0}, {1})"),
    ops.eq: _infix("=="),
    ops.ne: _infix("!="),
    ops.lt: _infix("<"),
    ops.le: _infix("<="),
    ops.gt: _infix(">"),
    ops.ge: _infix(">="),
    ops.logical_and: lambda _, x, y: f"(({x} != 0) & ({y} != 0))",
    ops.logical_or: lambda _, x, y: f"(({x} != 0) | ({y} != 0))",
    ops.batch_norm: _batch_norm,
}
_OF_PREDICATES = (ops.logical_and, ops.logical_or, ops.logical_not, ops.where, ops.cast)
_KEEPS_BOOL = (ops.add, ops.sub, ops.mul, ops.maximum, ops.minimum, ops.relu, ops.clamp)
