"""What type rules refuse, by their words."""

import re

import pytest

from planish.compiler import ops
from planish.compiler.attributes import canonical, fits, kind_text
from planish.compiler.ir import Op
from planish.compiler.text import parse
from planish.compiler.types import DType, TensorType, symbol
from planish.errors import ParseError, TypeRuleError

X = "@x: f32[2, 3, 4]"
I = "@i: i64[2, 3, 4]"  # noqa: E741
ATTENTION = "@q: f32[1, 4, 3, 6], @k: f32[1, 2, 5, 6], @v: f32[1, 2, 5, 7]"
POOL = "{kernel=[3], stride=[1], padding=[1]}"
CONV = "{stride=[1], padding=[0], dilation=[1]}"

REFUSALS = (
    (f"exp({I})", "exp: takes floating-point operands, not i64[2, 3, 4]; cast it"),
    (f"gelu({I})", "takes floating-point operands"),
    (f"gelu({X}) {{approximate=\"fast\"}}", "approximate is 'none' or 'tanh', not 'fast'"),
    ("neg(@b: f8[2])", "neg: does not compute in f8: cast f8[2]"),
    ("add(@b: f8[2], @b: f8[2])", "add: does not compute in f8"),
    ("exp(@b: f8[2])", "takes floating-point operands, not f8[2]"),
    ("linear(@x: f8[2, 3], @w: f8[4, 3])", "linear: does not compute in f8"),
    ("sum(@b: f8[2]) {axes=[0]}", "sum: does not compute in f8"),
    ("full() {value=1.0, dtype=f8}", "no literal is f8; cast one of f32"),
    ("quantize(@x: f32[2, 8], @s: f32[2, 1]) {group=8, dtype=u8}", "codes are i8 or f8, not u8"),
    ("quantization_scale(@x: f32[2, 8]) {group=8, bits=4, dtype=f8}", "codes of f8 have 8 bits, not 4"),
    ("dequantize(@q: i32[2, 8], @s: f32[2, 1]) {group=8}", "codes are i8, u8 or f8, not i32"),
    ("dequantize(@q: f8[2, 8], @s: f32[2, 1], @z: u8[2, 1]) {group=8}", "codes of f8 have no zero points"),
    ("neg(@b: bool[2])", "neg: takes numbers, not bool[2]; cast it"),
    (f"clamp({I}) {{low=0.5}}", "i64[2, 3, 4] takes integer bounds, not 0.5 and None"),
    (f"add({X}, {I})", "add: operands are f32 and i64; cast one"),
    (f"div({I}, {I})", "takes floating-point operands"),
    (f"add({X}, @y: f32[2])", "dimensions 4, 2 do not broadcast"),
    (f"where({X}, {X}, {X})", "where takes bool and two equal dtypes, not f32, f32, f32"),
    (f"where(@c: bool[4], {X}, {I})", "where takes bool and two equal dtypes, not bool, f32, i64"),
    (f"linear({X}, @w: f32[5, 3])", "x f32[2, 3, 4] and w f32[5, 3] do not contract"),
    (f"linear({X}, @w: f16[5, 4])", "operands are f32 and f16; cast one"),
    (f"linear({X}, @w: f32[5, 4], @b: f32[4])", "b f32[4] is no bias of w f32[5, 4]"),
    (f"grouped_linear({X}, @w: f32[5, 4], @i: i64[2, 3])", "x f32[2, 3, 4] and w f32[5, 4] do not contract"),
    (
        f"grouped_linear({X}, @w: f32[6, 5, 4], @i: i64[2])",
        "index i64[2] is not one expert for each row of f32[2, 3, 4]",
    ),
    (f"grouped_linear({X}, @w: f32[6, 5, 4], @i: f32[2, 3])", "takes indices of i64 or i32, not f32[2, 3]; cast it"),
    (f"matmul({X}, @y: f32[3, 4])", "f32[2, 3, 4] and f32[3, 4] do not contract"),
    (f"matmul({X}, @y: f32[4])", "f32[2, 3, 4] and f32[4] do not contract"),
    (f"matmul({X}, @y: f32[3, 4, 5])", "dimensions 2, 3 do not broadcast"),
    (f"conv({X}, @w: f32[5, 3, 2, 4]) {CONV}", "x f32[2, 3, 4] and w f32[5, 3, 2, 4] are no convolution over 1 axes"),
    (f"conv({X}, @w: f32[5, 3, 3]) {CONV}", "1 groups do not fit x f32[2, 3, 4] and w f32[5, 3, 3]"),
    (f"conv({X}, @w: f32[6, 3, 4], @b: f32[5]) {CONV}", "b f32[5] is no bias of w f32[6, 3, 4]"),
    (f"conv({X}, @w: f32[6, 5, 4]) {CONV}", "f32[2, -1, 6] has a negative dimension"),
    (f"conv({X}, @w: f32[6, 3, 4]) {{stride=[1, 1], padding=[0], dilation=[1]}}", "and a setting for each"),
    (f"conv({X}, @w: f32[6, 3, 4]) {{stride=[1], padding=[0], dilation=[1], after=[1, 1]}}", "and a setting for each"),
    (
        f"conv({X}, @w: f32[6, 3, 4]) {{stride=[1], padding=[1], dilation=[1], after=[-1]}}",
        "padding [1] and [-1] are no counts; slice the input instead",
    ),
    (f"attention({X}, {X}, {X}) {{scale=1.0}}", "attention takes three tensors of rank 4, not"),
    ("attention(@q: f32[1, 3, 3, 6], @k: f32[1, 2, 5, 6], @v: f32[1, 2, 5, 7]) {scale=1.0}", "do not attend"),
    ("attention(@q: f32[1, 2, 3, 6], @k: f32[1, 2, 5, 8], @v: f32[1, 2, 5, 7]) {scale=1.0}", "do not attend"),
    ("attention(@q: f32[1, 2, 3, 6], @k: f32[1, 2, 5, 6], @v: f32[1, 2, 4, 7]) {scale=1.0}", "do not attend"),
    (f"attention({ATTENTION}) {{window=2, scale=1.0}}", "a window is positive and needs causal attention, not 2 with causal False"),
    (f"attention({ATTENTION}) {{causal=true, window=0, scale=1.0}}", "a window is positive and needs causal attention"),
    (f"attention({ATTENTION}, @m: i64[1, 1, 3, 5]) {{scale=1.0}}", "a mask is bool or f32 of rank 4, not i64[1, 1, 3, 5]"),
    (f"attention({ATTENTION}, @m: bool[3, 5]) {{scale=1.0}}", "a mask is bool or f32 of rank 4, not bool[3, 5]"),
    (f"attention({ATTENTION}, @m: bool[2, 1, 3, 5]) {{scale=1.0}}", "does not broadcast to the scores [1, 4, 3, 5]"),
    (f"attention({ATTENTION}) {{}}", "attention needs the attribute 'scale'"),
    (f"softmax({X}) {{axis=-1}}", "axes [-1] do not fit f32[2, 3, 4]; count from 0 and name each once"),
    (f"log_softmax({X}) {{axis=3}}", "axes [3] do not fit"),
    (f"layer_norm({X}, @w: f32[3])", "f32[3] is no parameter of the last axis of f32[2, 3, 4]"),
    (f"rms_norm({X}, @w: f32[4, 1])", "f32[4, 1] is no parameter of the last axis"),
    (f"rms_norm({X}, @w: f64[4])", "parameters of f32[2, 3, 4] have its dtype or f32, unlike f64[4]; cast them"),
    ("layer_norm(@s: f32[])", "f32[] has no last axis"),
    (f"group_norm({X}) {{groups=3}}", "3 groups do not divide the channels of f32[2, 3, 4], which is [N, *spatial, C]"),
    (f"rope({X}, @c: f32[4], @s: f32[4])", "rope takes rank 4 and an even last axis, not f32[2, 3, 4]"),
    ("rope(@x: f32[1, 2, 3, 5], @c: f32[5], @s: f32[5])", "rope takes rank 4 and an even last axis"),
    ("rope(@x: f32[1, 2, 3, 4], @c: f32[2, 1, 3, 4], @s: f32[4])", "do not broadcast to x f32[1, 2, 3, 4]"),
    (f"sum({X}) {{axes=[]}}", "reducing f32[2, 3, 4] needs an axis"),
    (f"amax({X}) {{axes=[1, 1]}}", "axes [1, 1] do not fit f32[2, 3, 4]; count from 0 and name each once"),
    (f"mean({I}) {{axes=[1]}}", "takes floating-point operands"),
    ("argmax(@b: bool[2]) {axis=0}", "takes numbers, not bool[2]"),
    (f"cumsum({X}) {{axis=3}}", "axes [3] do not fit"),
    ("max_pool(@x: f32[2, 3]) {kernel=[], stride=[], padding=[]}", "windows over f32[2, 3] need one to three spatial axes"),
    ("avg_pool(@x: f32[1, 2, 2, 2, 1]) {kernel=[1, 1], stride=[1, 1], padding=[0, 0]}", "a setting for each"),
    (f"max_pool({X}) {{kernel=[2], stride=[1], padding=[2]}}", "padding [2] is over half of the kernel [2]"),
    (f"max_pool({I}) {POOL}", "takes floating-point operands"),
    (f"reshape({X}) {{shape=[5, 5]}}", "f32[2, 3, 4] has not as many elements as shape [5, 5]"),
    (f"reshape({X}) {{shape=[-4, -6]}}", "f32[-4, -6] has a negative dimension"),
    (f"transpose({X}) {{order=[0, 1]}}", "order [0, 1] is no permutation of the axes of f32[2, 3, 4]"),
    (f"transpose({X}) {{order=[0, -1, 1]}}", "order [0, -1, 1] is no permutation"),
    (f"expand({X}) {{shape=[2, 3, 5]}}", "f32[2, 3, 4] does not expand to [2, 3, 5]"),
    (f"expand({X}) {{shape=[4]}}", "f32[2, 3, 4] does not expand to [4]"),
    (f"slice({X}) {{axis=-1, stop=2}}", "slice needs an axis inside f32[2, 3, 4] and a positive step, not axis -1, step 1"),
    (f"slice({X}) {{axis=0, stop=2, step=0}}", "and a positive step, not axis 0, step 0"),
    (f"slice({X}) {{axis=1, stop=4}}", "slice 0..4 lies outside axis 1 of f32[2, 3, 4]"),
    (f"slice({X}) {{axis=1, start=-1, stop=3}}", "slice -1..3 lies outside axis 1"),
    (f"slice({X}) {{axis=1, start=3, stop=2}}", "slice 3..2 lies outside axis 1"),
    ("concat() {axis=0}", "concat needs an input"),
    (f"concat({X}, {I}) {{axis=0}}", "operands are f32 and i64; cast one"),
    (f"concat({X}, @y: f32[2, 4, 4]) {{axis=0}}", "f32[2, 3, 4] and f32[2, 4, 4] do not join along axis 0"),
    (f"concat({X}, @y: f32[2, 3]) {{axis=0}}", "f32[2, 3, 4] and f32[2, 3] do not join along axis 0"),
    (f"concat({X}) {{axis=-1}}", "axes [-1] do not fit"),
    (f"concat({X}, none) {{axis=0}}", "concat takes (), not 2 operands"),
    (f"pad({X}) {{before=[1, 0], after=[0, 0, 0]}}", "pad needs a non-negative count before and after each axis of f32[2, 3, 4]"),
    (f"pad({X}) {{before=[0, 0, 0], after=[0, -1, 0]}}", "pad needs a non-negative count"),
    (f"roll({X}) {{shifts=[1, 2], axes=[0]}}", "roll needs one shift an axis, not [1, 2] for [0]"),
    (f"roll({X}) {{shifts=[1], axes=[-1]}}", "axes [-1] do not fit"),
    (f"flip({X}) {{axes=[3]}}", "axes [3] do not fit"),
    (f"embedding({X}, {I})", "embedding takes a table of rank 2, not f32[2, 3, 4]"),
    ("embedding(@t: f32[5, 2], @i: u8[3])", "takes indices of i64 or i32, not u8[3]; cast it"),
    (f"gather({X}, @i: i64[2, 3]) {{axis=0}}", "gather takes x and index of one rank, not f32[2, 3, 4] and i64[2, 3]"),
    (f"gather({X}, @i: i64[2, 9, 5]) {{axis=1}}", "index i64[2, 9, 5] is larger than x f32[2, 3, 4] outside axis 1"),
    (f"gather({X}, {X}) {{axis=1}}", "takes indices of i64 or i32"),
    (f"index_select({X}, @i: i64[2]) {{axis=-1}}", "axes [-1] do not fit"),
    (f"index_select({X}, @i: f32[2]) {{axis=0}}", "takes indices of i64 or i32, not f32[2]"),
    (f"opaque({X}) {{target=\"aten.sin\", arguments=\"\", shapes=[[2]], dtypes=[f32]}}", "an opaque op is aten.NAME.OVERLOAD, not 'aten.sin'"),
    (f"opaque({X}) {{target=\"aten.sin.default\", arguments=\"\", shapes=[], dtypes=[f32]}}", "aten.sin.default has 0 shapes and 1 dtypes of results"),
    ("full() {value=1.0}", "full needs the attribute 'dtype'"),
    (f"exp({X}) {{axis=1}}", "exp has no attribute 'axis'; it has []"),
    (f"exp({X}, {X})", "exp takes (x), not 2 operands"),
    ("exp()", "exp takes (x), not 0 operands"),
    ("linear(@x: f32[4], none)", "linear takes (x, w, b), not 2 operands"),
)  # fmt: skip


@pytest.mark.parametrize(("line", "words"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_refuses_by_its_words(line: str, words: str) -> None:
    line = re.sub(r" \{\}$", "", line)
    with pytest.raises(ParseError, match="^line 2: .*" + re.escape(words)):
        parse(f"graph main() {{\n  %0 = {line}: f32[2]\n  return %0\n}}")


@pytest.mark.parametrize("op", [op for op in ops.OPS if op.defaults], ids=repr)
def test_refuses_every_attribute_of_another_kind(op: Op) -> None:
    wrong = (None, True, 1, 1.5, "x", DType.f32, (1,), ((1,),), (DType.f32,), symbol("B"))
    for name, kind in op.kinds.items():
        misfits = [value for value in wrong if not fits(value, kind)]
        assert misfits
        for value in misfits:
            others = {other: next(v for v in wrong if fits(v, k)) for other, k in op.kinds.items()}
            operands = tuple(ops.weight(name="w", shape=(2,), dtype=DType.f32) for _ in range(op.required))
            words = re.escape(f"{op.name} in 'net': '{name}' is {kind_text(kind)}, not {value!r}")
            with pytest.raises(TypeRuleError, match=words):
                op.node(operands, {**others, name: value}, "net")


def test_a_refusal_names_its_scope() -> None:
    x = ops.weight(name="x", shape=(2,), dtype=DType.i64)
    with pytest.raises(TypeRuleError, match=re.escape("exp in 'layers.0.mlp': takes floating-point operands")):
        ops.exp(x, scope="layers.0.mlp")


def test_trailing_absent_operands_are_dropped() -> None:
    x, w = (ops.weight(name=n, shape=s, dtype=DType.f32) for n, s in (("x", (2, 4)), ("w", (3, 4))))
    assert ops.linear(x, w, None).node.inputs == (x, w)
    bias = ops.weight(name="b", shape=(4,), dtype=DType.f32)
    assert ops.layer_norm(x, None, bias).node.inputs == (x, None, bias)
    assert ops.layer_norm(x, None, bias).node.operands == (x, bias)


def test_equal_attributes_have_one_form() -> None:
    size = symbol("B")
    assert canonical([size - size + 2, (2 * (size + 1),)]) == (2, (2 * size + 2,))
    node = ops.full(shape=[2, size * (size + 1)], value=0.0, dtype=DType.f32).node
    assert node.attrs["shape"] == (2, size**2 + size)
    assert node.types == (TensorType((2, size * size + size), DType.f32),)
