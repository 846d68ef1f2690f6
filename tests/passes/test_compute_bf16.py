"""compute-bf16: operands of products are rounded once, everything else stays f32, refusals by name."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.pass_ import Context
from planish.compiler.verify import verify
from planish.hardware_profiles import load_profile
from planish.passes import ComputeBf16, parse_pass
from tests.passes.harness import evaluate_program, graph_text, program_of, random_inputs, refusals

PERCEPTRON = graph_text(
    "%x: f32[B, S, 6]",
    "layer_norm(%x): f32[B, S, 6]",
    "linear(%0, @w: f32[8, 6], @b: f32[8]): f32[B, S, 8]  # up",
    "gelu(%1): f32[B, S, 8]",
    "linear(%2, @v: f32[6, 8]): f32[B, S, 6]  # down",
    "add(%x, %3): f32[B, S, 6]",
    outputs="%4",
)
HEADS = graph_text(
    "%x: f32[B, S, 8], %p: bool[B, 1, 1, S]",
    "linear(%x, @w: f32[24, 8]): f32[B, S, 24]  # qkv",
    "reshape(%0) {shape=[`B`, `S`, 3, 2, 4]}: f32[B, S, 3, 2, 4]",
    "transpose(%1) {order=[2, 0, 3, 1, 4]}: f32[3, B, 2, S, 4]",
    *(
        line
        for i in range(3)
        for line in (
            f"slice(%2) {{axis=0, start={i}, stop={i + 1}}}: f32[1, B, 2, S, 4]",
            f"reshape(%{3 + 2 * i}) {{shape=[`B`, 2, `S`, 4]}}: f32[B, 2, S, 4]",
        )
    ),
    "attention(%4, %6, %8, %p) {scale=0.5}: f32[B, 2, S, 4]  # core",
    "transpose(%9) {order=[0, 2, 1, 3]}: f32[B, S, 2, 4]",
    "reshape(%10) {shape=[`B`, `S`, 8]}: f32[B, S, 8]",
    "linear(%11, @o: f32[8, 8]): f32[B, S, 8]  # out",
    outputs="%12",
)


def _bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def test_rounds_operands_once_and_keeps_the_rest() -> None:
    change = ComputeBf16().apply(program_of(PERCEPTRON), Context())
    verify(change.program)
    assert str(change.program.main) == graph_text(
        "%x: f32[B, S, 6]",
        "layer_norm(%x): f32[B, S, 6]",
        "cast(%0) {dtype=bf16}: bf16[B, S, 6]",
        "linear(%1, @w.bf16: bf16[8, 6], @b: f32[8]) {dtype=f32}: f32[B, S, 8]  # up",
        "gelu(%2): f32[B, S, 8]",
        "cast(%3) {dtype=bf16}: bf16[B, S, 8]",
        "linear(%4, @v.bf16: bf16[6, 8]) {dtype=f32}: f32[B, S, 6]  # down",
        "add(%x, %5): f32[B, S, 6]",
        outputs="%6",
    )
    assert change.program.weights["w.bf16"].dtype is torch.bfloat16
    assert "w" not in change.program.weights
    assert [(hit.scope, hit.refused) for hit in change.hits] == [("up", None), ("down", None)]


def test_the_numbers_are_those_of_rounded_operands() -> None:
    before = program_of(PERCEPTRON)
    (x,) = random_inputs(before.main, {"B": 2, "S": 5})
    w, b, v = (before.weights[name].float() for name in ("w", "b", "v"))
    hidden = functional.linear(_bf16(functional.layer_norm(x, (6,))), _bf16(w), b)
    expected = x + functional.linear(_bf16(functional.gelu(hidden)), _bf16(v))
    (got,) = evaluate_program(ComputeBf16().apply(before, Context()).program, [x])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_experts_are_rounded_as_other_weights_are() -> None:
    text = "%x: f32[B, S, 6], %i: i64[B, S]", "grouped_linear(%x, @w: f32[3, 8, 6], %i): f32[B, S, 8]  # experts"
    before = program_of(graph_text(*text, outputs="%0"))
    after = ComputeBf16().apply(before, Context()).program
    assert str(after.main) == graph_text(
        text[0],
        "cast(%x) {dtype=bf16}: bf16[B, S, 6]",
        "grouped_linear(%0, @w.bf16: bf16[3, 8, 6], %i) {dtype=f32}: f32[B, S, 8]  # experts",
        outputs="%1",
    )
    x, i = random_inputs(before.main, {"B": 2, "S": 5})
    expected = torch.einsum("bsk,bsnk->bsn", _bf16(x), _bf16(before.weights["w"].float())[i])
    torch.testing.assert_close(evaluate_program(after, [x, i])[0], expected, rtol=1e-5, atol=1e-5)


def test_attention_reads_and_writes_bf16_and_moves_it_so() -> None:
    program = ComputeBf16().apply(program_of(HEADS), Context()).program
    lines = str(program.main).splitlines()
    assert [line.split("= ")[1].split("(")[0] for line in lines if "bf16[" in line and "f32[B, S, 24]" not in line] == [
        *("cast", "cast", "reshape", "transpose", "slice", "reshape", "slice", "reshape", "slice", "reshape"),
        *("attention", "transpose", "reshape", "linear"),
    ]
    assert sum(" cast(" in line for line in lines) == 2


def test_attention_computes_in_f32_between_rounded_operands() -> None:
    before = program_of(HEADS)
    x, p = random_inputs(before.main, {"B": 2, "S": 5})
    w, o = (_bf16(before.weights[name].float()) for name in ("w", "o"))
    q, k, v = _bf16(functional.linear(_bf16(x), w)).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(q, k, v, p, scale=0.5).nan_to_num(0.0)
    expected = functional.linear(_bf16(attended).transpose(1, 2).reshape(2, 5, 8), o)
    (got,) = evaluate_program(ComputeBf16().apply(before, Context()).program, [x, p])
    torch.testing.assert_close(got, expected, rtol=0, atol=2**-8 * float(expected.abs().max()))


def test_a_tied_table_is_stored_once() -> None:
    tied = graph_text(
        "%ids: i64[B, S]",
        "embedding(@e: f32[50, 64], %ids): f32[B, S, 64]  # embed",
        "linear(%0, @e: f32[50, 64]): f32[B, S, 50]  # head",
        outputs="%1",
    )
    program = ComputeBf16().apply(program_of(tied), Context()).program
    assert list(program.weights) == ["e.bf16"]
    assert program.main.outputs[0].dtype.value == "f32"


def test_codes_become_bf16_where_there_are_many_rows() -> None:
    lines = (
        "dequantize(@c: i8[8, 32], @s: f16[8, 1]) {group=32}: f32[8, 32]",
        "linear(%x, %0): f32[ROWS, 8]  # map",
    )
    for rows, why in (("S", None), ("3", "up to 3 rows wait for the codes of its weight")):
        text = graph_text(f"%x: f32[{rows}, 32]", *(line.replace("ROWS", rows) for line in lines), outputs="%1")
        change = ComputeBf16().apply(program_of(text), Context())
        assert refusals(change.hits) == ([] if why is None else [why])
        assert ("dtype=bf16}: bf16[8, 32]" in str(change.program.main)) is (why is None)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "conv(%x, @w: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 8, 8, 4]",
            "9 numbers",
        ),
        (
            "conv(%x, @w: f32[3, 3, 3, 1]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=3}: f32[B, 8, 8, 3]",
            "it is depthwise",
        ),
    ],
)
def test_refuses_convolutions_that_do_not_pair(line: str, why: str) -> None:
    text = graph_text("%x: f32[B, 8, 8, 3]", line, outputs="%0", sizes="B: 1..4 = 2")
    before = program_of(text)
    change = ComputeBf16().apply(before, Context())
    (refused,) = refusals(change.hits)
    assert why in refused
    assert str(change.program.main) == str(before.main)


def test_a_processor_without_the_instruction_computes_in_f32_and_says_so() -> None:
    before = program_of(PERCEPTRON)
    change = ComputeBf16().apply(before, Context(load_profile("x86-64-v3")))
    assert str(change.program.main) == str(before.main)
    wanted = "x86-64-v3 has no dot product of bf16 (avx512bf16) that planish uses; it computes in f32"
    assert refusals(change.hits) == [wanted, wanted]


def test_products_of_two_activations_stay_and_are_named() -> None:
    text = graph_text("%x: f32[B, S, S]", "matmul(%x, %x): f32[B, S, S]  # scores", outputs="%0")
    change = ComputeBf16().apply(program_of(text), Context())
    assert [(hit.scope, hit.refused) for hit in change.hits] == [
        ("scores", "products of two activations compute in f32")
    ]
    assert str(change.program.main) == text


def test_scopes_can_be_left_alone() -> None:
    each = parse_pass('compute-bf16{skip=["up"]}')
    change = each.apply(program_of(PERCEPTRON), Context())
    assert refusals(change.hits) == ["skipped by its scope"]
    assert set(change.program.weights) == {"w", "b", "v.bf16"}
