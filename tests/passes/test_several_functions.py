"""Programs of several functions over one set of weights."""

import torch

from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.pipeline import Pipeline
from planish.compiler.text import parse
from planish.passes import EXACT, FoldConstants, MergeCommonSubexpressions

PREFILL = """graph main<B: 1..8 = 2>(%x: f32[B, 8]) {
  %0 = transpose(@w: f32[8, 8]) {order=[1, 0]}: f32[8, 8]
  %1 = linear(%x, %0): f32[B, 8]
  return %1
}"""
DECODE = PREFILL.replace("graph main", "graph decode").replace("f32[B, 8]", "f32[1, 8]").replace("<B: 1..8 = 2>", "")


def test_a_weight_that_two_functions_fold_alike_is_stored_once() -> None:
    program = Program({"main": parse(PREFILL), "decode": parse(DECODE)}, {"w": torch.arange(64.0).reshape(8, 8)})
    after = FoldConstants().apply(program, Context()).program
    assert list(after.weights) == ["w.transpose"]
    assert torch.equal(after.weights["w.transpose"], program.weights["w"].T)
    assert "linear(%x, @w.transpose: f32[8, 8])" in str(after.functions["decode"])


def test_weights_that_are_equal_have_one_name_in_all_functions() -> None:
    other = DECODE.replace("@w", "@v")
    same = torch.arange(64.0).reshape(8, 8)
    program = Program({"decode": parse(other), "main": parse(PREFILL)}, {"w": same, "v": same.clone(), "u": same + 1})
    after = MergeCommonSubexpressions().apply(program, Context()).program
    assert list(after.weights) == ["w", "u"]
    assert "@v" not in str(after)


def test_the_default_pipeline_takes_several_functions() -> None:
    program = Program({"main": parse(PREFILL), "decode": parse(DECODE)}, {"w": torch.rand(8, 8)})
    after, report = Pipeline(EXACT).run(program, Context())
    assert list(after.functions) == ["main", "decode"]
    assert list(after.weights) == ["w.transpose"]
    assert report.rows[0].before.ops == 4
