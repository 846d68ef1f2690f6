"""plan.json: what it round-trips and what it refuses, by path."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from planish.errors import ArtifactError
from planish.runtime.plan import Plan, TensorSpec, TorchStep
from planish.runtime.values import ValueId
from tests.runtime.small import affine_plan, topk_plan, torch_plan

Change = Callable[[Any], None]


def put(*path: Any, value: Any) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def drop(*path: Any) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize("plan", [affine_plan(), topk_plan()])
def test_a_plan_round_trips_through_json(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


MAIN = ("functions", "main")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("weights"), r"plan.json has no 'weights'"),
        (put("extra", value=1), r"plan.json has the unknown key 'extra'; known: library, weights, functions"),
        (put("functions", value={}), r"plan.json: a plan needs at least one function"),
        (put("library", value=3), r"plan.json: library should be a string, not 3"),
        (put("library", value=None), r"functions.main.steps\[0\] is native, but the plan names no library"),
        (put("weights", value={"w": {"dtype": "f32", "shape": ["B"]}}), r"weights.w should have a shape of integers"),
        (put(*MAIN, "inputs", 0, "dtype", value="f33"), r"main.inputs\[0\].dtype should be one of f64, .*not 'f33'"),
        (
            put(*MAIN, "inputs", 0, "shape", 1, value=-4),
            r"main.inputs\[0\].shape\[1\] should be an integer of at least 0",
        ),
        (
            put(*MAIN, "inputs", 0, "shape", 1, value="B**2"),
            r"inputs\[0\].shape\[1\] should be a dimension \('B \*\* 2'",
        ),
        (put(*MAIN, "inputs", 0, "shape", 0, value=3), r"main: no input dimension determines size B"),
        (put(*MAIN, "sizes", 0, "hint", value=2000), r"main.sizes\[0\] should be a size \(size B needs low <= hint"),
        (
            put(*MAIN, "sizes", 0, "low", value=True),
            r"main.sizes\[0\].low should be an integer of at least 0, not True",
        ),
        (put(*MAIN, "outputs", 0, "shape", 0, value="T"), r"f32\[T, 4\] uses the size T, which is not declared"),
        (put(*MAIN, "outputs", value=[]), r"functions.main.output_tree has 1 tensors for 0 declared"),
        (put(*MAIN, "input_tree", "parameters", value=[]), r"input_tree should be a signature"),
        (put(*MAIN, "steps", value=[]), r"functions.main: no step writes output 0"),
        (put(*MAIN, "steps", 0, "kind", value="shell"), r"steps\[0\] has no 'target'"),
        (put(*MAIN, "steps", 0, "inputs", 0, value=["value", 0]), r"steps\[0\] reads value 0, which nothing before it"),
        (put(*MAIN, "steps", 0, "inputs", 0, value=["weight", "w"]), r"steps\[0\] reads weight w, which nothing"),
        (put(*MAIN, "steps", 0, "inputs", 0, value=["input"]), r"inputs\[0\] should be a pair of kind and index"),
        (
            put(*MAIN, "steps", 0, "outputs", 0, value=["input", 0]),
            r"writes input 0, which is unknown or already written",
        ),
        (put(*MAIN, "calls", 1, "segment", value=1), r"calls\[1\].segment 1 is no step"),
        (put(*MAIN, value=[1]), r"functions.main should be an object, not \[1\]"),
    ],
)
def test_refuses_a_plan_by_the_path_that_is_wrong(change: Change, words: str) -> None:
    data = json.loads(json.dumps(affine_plan().to_json()))
    change(data)
    with pytest.raises(ArtifactError, match=words):
        Plan.from_json(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            put("target", value="os.system"),
            r"steps\[1\]: 'os.system' is no op of aten, and an artifact may run no other",
        ),
        (put("target", value="torchvision.nms.default"), r"'torchvision.nms.default' is no op of aten"),
        (put("target", value="aten.__class__.default.x"), r"is no op of aten"),
        (put("target", value="aten.from_file.default"), r"'aten.from_file.default' opens files"),
        (put("arguments", 0, value={"value": ["value", 3]}), r"steps\[1\] reads value 3, which nothing"),
        (put("arguments", 0, value={"eval": "1"}), r"arguments\[0\] should be an object with one of value, dim, float"),
        (put("arguments", 0, value=[{"dtype": "f99"}]), r"arguments\[0\]\[0\].dtype should be one of"),
        (put("keywords", "dim", value={"dim": "S.real"}), r"keywords.dim.dim should be a dimension"),
    ],
)
def test_refuses_a_torch_step_that_is_outside_the_grammar(change: Change, words: str) -> None:
    data = json.loads(json.dumps(topk_plan().to_json()))
    change(data["functions"]["main"]["steps"][1])
    with pytest.raises(ArtifactError, match=words):
        Plan.from_json(data)


def test_refuses_two_calls_for_one_torch_step() -> None:
    data: Any = json.loads(json.dumps(topk_plan().to_json()))
    call = {"label": "a", "template": "torch", "op": "topk", "scope": "", "segment": 1}
    data["functions"]["main"]["calls"] = [call, call]
    with pytest.raises(ArtifactError, match=r"calls\[1\] is the second call of a torch step"):
        Plan.from_json(data)


def test_a_torch_step_reads_the_values_inside_nested_lists() -> None:
    step = TorchStep("aten.cat.default", ([{"value": ["input", 0]}, {"value": ["weight", "w"]}], 1), (None,), {})
    assert step.reads() == (ValueId("input", 0), ValueId("weight", "w"))
    plan = torch_plan(replace(step, outputs=(ValueId("output", 0),)), TensorSpec.of("f32", ["B", 8]))
    with pytest.raises(ArtifactError, match="reads weight w"):
        Plan.from_json(plan.to_json())
