"""Nested arguments and results: described, taken apart, put together, and refused by place."""

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from planish.errors import ArtifactError, InputError
from planish.runtime.fields import Field
from planish.runtime.signature import Signature
from planish.runtime.tree import Output, Tree, constant, describe, mapping, record, sequence, tensor

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class State:
    hidden: Any
    count: int
    extra: Any = None


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def array(value: float) -> np.ndarray:
    return np.full(2, value, np.float32)


NESTED = {"a": (array(1), [array(2), None]), "b": OrderedDict(c=array(3), d="word"), 7: Pair(array(4), 2.5)}


def test_the_tensors_come_out_in_the_order_of_torch_pytrees() -> None:
    ours = list(describe(NESTED, is_array).leaves(NESTED, "x"))
    torchs = [leaf for leaf in _pytree.tree_flatten(NESTED)[0] if is_array(leaf)]
    assert [id(leaf) for leaf in ours] == [id(leaf) for leaf in torchs]


def test_building_gives_back_an_equal_object() -> None:
    tree = describe(NESTED, is_array)
    built = tree.build(tree.leaves(NESTED, "x"))
    assert built == {
        "a": (built["a"][0], [built["a"][1][0], None]),
        "b": {"c": built["b"]["c"], "d": "word"},
        7: built[7],
    }
    assert built["a"][1][0] is NESTED["a"][1][0]
    assert type(built[7]).__name__ == "Pair"
    assert built[7].right == 2.5
    assert built[7].left is NESTED[7].left


def test_the_json_form_round_trips() -> None:
    tree = describe({**NESTED, "state": State(array(5), 3), "limit": float("inf")}, is_array)
    assert Tree.from_json(Field(json.loads(json.dumps(tree.to_json(), allow_nan=False)), "plan.json")) == tree


def test_every_tensor_has_a_readable_name() -> None:
    tree = describe((array(1), {"k": State([array(2)], 1)}), is_array)
    assert list(tree.paths("out")) == ["out[0]", "out[1]['k'].hidden[0]"]


def test_the_constructors_say_what_describe_finds() -> None:
    example = {"k": [array(1), (array(2), 5)], "s": State(array(3), 1)}
    state = record("State", {"hidden": tensor(), "count": constant(1), "extra": constant(None)})
    pair = sequence("tuple", [tensor(), constant(5)])
    assert describe(example, is_array) == mapping({"k": sequence("list", [tensor(), pair]), "s": state})


def test_a_dataclass_result_reads_like_the_output_of_transformers() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    theirs = BaseModelOutputWithPooling(last_hidden_state=torch.ones(2), attentions=(torch.zeros(1),))
    tree = describe(theirs, is_array)
    ours = tree.build(tree.leaves(theirs, "out"))
    assert isinstance(ours, Output)
    assert ours.last_hidden_state is theirs.last_hidden_state is ours["last_hidden_state"] is ours[0]
    assert ours.pooler_output is None
    assert "pooler_output" not in ours
    assert list(ours) == list(theirs.keys())
    assert len(ours.to_tuple()) == len(theirs.to_tuple()) == 2
    assert ours[1][0] is theirs[1][0]
    assert next(iter(tree.leaves(ours, "out"))) is theirs[0]


def test_an_unknown_part_of_a_result_is_named_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="State has no part 'hiden'; did you mean 'hidden'"):
        _ = Output("State", {"hidden": 1}).hiden


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((array(1),), r"'x' needs a tuple of 2, was given a tuple of 1"),
        ((array(1), [array(2)]), r"'x\[1\]' needs a dict, was given a list of 1"),
        (
            (array(1), {"k": State(array(1), 4)}),
            r"'x\[1\]\['k'\].count' was 3 when the model was compiled, was given 4",
        ),
        ((array(1), {}), r"'x\[1\]' lacks the entry 'k'"),
        ((array(1), {"k": State(array(1), 3), "kk": 1}), r"'x\[1\]' has no entry 'kk'; did you mean 'k'"),
        ((array(1), {"k": 5}), r"'x\[1\]\['k'\]' needs a State, was given 5"),
    ],
)
def test_refuses_another_form_by_place(given: Any, words: str) -> None:
    tree = describe((array(1), {"k": State(array(2), 3)}), is_array)
    with pytest.raises(InputError, match=words):
        list(tree.leaves(given, "x"))


def test_true_is_not_the_constant_one() -> None:
    with pytest.raises(InputError, match="'x' was 1 when the model was compiled, was given True"):
        list(constant(1).leaves(True, "x"))


@pytest.mark.parametrize("example", [{1.5: 1}, object(), {1, 2}, 3j, b"bytes"])
def test_refuses_to_describe_what_has_no_form(example: Any) -> None:
    with pytest.raises(InputError, match=r"'out\[0\]' is a \w+; arguments and results are tensors, None"):
        describe([example], is_array, "out")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("tensors", r"p should be a tree of tensor"),
        ({"set": []}, r"p should be a tree of"),
        ({"tuple": ["tensor", 3]}, r"p: tuple\[1\] should be a tree of .*, not 3"),
        ({"dict": [["a"]]}, r"p: dict\[0\] should be a pair"),
        ({"dict": [["a", "tensor"], ["a", "tensor"]]}, r"p: dict should be pairs with distinct keys"),
        ({"record": [["a", "tensor"]]}, r"p has no 'type'"),
        ({"record": [["__class__", "tensor"]], "type": "A"}, r"should be an identifier, not '__class__'"),
        ({"namedtuple": [], "type": "a b"}, r"p: type should be an identifier"),
        ({"constant": [1]}, r"p: constant should be None, a number or a string"),
        ({"constant": {"float": "huge"}}, r"p: constant.float should be one of inf, -inf, nan"),
    ],
)
def test_refuses_json_that_is_no_tree(data: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Tree.from_json(Field(data, "p"))


class TestSignature:
    signature = Signature.of_example(
        {"ids": array(1), "mask": array(2), "options": {"k": array(3)}, "dropout": 0.5, "cache": None},
        is_array,
        positional=2,
    )

    def test_arguments_may_be_given_by_place_or_name(self) -> None:
        by_place = self.signature.leaves((1, 2), {"options": {"k": 3}})
        by_name = self.signature.leaves((), {"options": {"k": 3}, "mask": 2, "ids": 1, "dropout": 0.5, "cache": None})
        assert by_place == by_name == [1, 2, 3]

    def test_it_round_trips_through_json(self) -> None:
        assert Signature.from_json(Field(json.loads(json.dumps(self.signature.to_json())), "p")) == self.signature

    def test_names_follow_the_parameters(self) -> None:
        assert self.signature.names == ("ids", "mask", "options['k']")
        assert self.signature.count == 3

    @pytest.mark.parametrize(
        ("args", "kwargs", "words"),
        [
            ((1,), {"options": {"k": 3}}, r"input 'mask' is missing; it takes i64\[B\]"),
            ((1, 2), {}, r"input 'options' is missing"),
            ((1, 2, 3), {}, r"3 inputs were given by place, 2 can be; inputs: ids, mask, options, dropout, cache"),
            ((1, 2), {"mask": 2}, r"input 'mask' was given twice"),
            ((1, 2), {"option": 2}, r"no input is called 'option'; did you mean 'options'"),
            ((1, 2), {"options": {"k": 3}, "dropout": 0.1}, r"'dropout' was 0.5 when the model was compiled"),
            ((1, 2), {"options": {"k": 3}, "cache": 4}, r"'cache' was None when the model was compiled, was given 4"),
        ],
    )
    def test_refuses_a_call_by_the_input_at_fault(self, args: Any, kwargs: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            self.signature.leaves(args, kwargs, ["i64[B]", "i64[B]", "f32[2]"])
