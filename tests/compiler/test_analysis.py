"""Costs against formulas, lifetimes, dominators, paths, repeated blocks and cuts of small graphs."""

import pytest
import torch

from planish.compiler.analysis import (
    bytes_moved,
    costs,
    critical_path,
    cuts,
    dominators,
    flops,
    liveness,
    repeated_blocks,
    step_bytes,
    weight_names,
)
from planish.compiler.ir import Graph, Node, Program
from planish.compiler.text import parse

CHAIN = parse("""graph main<B: 1..64 = 2>(%x: f32[B, 4]) {
  %0 = linear(%x, @a: f32[8, 4], @b: f32[8]): f32[B, 8]
  %1 = relu(%0): f32[B, 8]
  %2 = exp(%0): f32[B, 8]
  %3 = add(%1, %2): f32[B, 8]
  %4 = linear(%3, @c: f32[2, 8]): f32[B, 2]
  return %4
}""")


def _node(graph: Graph, name: str) -> Node:
    return next(node for node in graph.nodes() if node.op.name == name)


def _one(line: str, inputs: str) -> Node:
    return parse(f"graph main<B: 1..64 = 2>({inputs}) {{\n  %0 = {line}\n  return %0\n}}").outputs[0].node


@pytest.mark.parametrize(
    ("line", "inputs", "expected"),
    [
        ("linear(%x, @w: f32[8, 4]): f32[B, 8]", "%x: f32[B, 4]", 2 * 3 * 8 * 4),
        ("linear(%x, @w: f32[8, 4], @b: f32[8]): f32[B, 8]", "%x: f32[B, 4]", 2 * 3 * 8 * 4 + 3 * 8),
        (
            "grouped_linear(%x, @w: f32[9, 8, 4], %i): f32[B, 2, 8]",
            "%x: f32[B, 2, 4], %i: i64[B, 2]",
            2 * 3 * 2 * 8 * 4,
        ),
        ("matmul(%x, %y): f32[B, 5, 6]", "%x: f32[B, 5, 4], %y: f32[4, 6]", 2 * 3 * 5 * 6 * 4),
        (
            "conv(%x, @w: f32[8, 3, 3, 2]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=2}: f32[B, 6, 6, 8]",
            "%x: f32[B, 6, 6, 4]",
            2 * (3 * 6 * 6 * 8) * (3 * 3 * 2),
        ),
        (
            "attention(%x, %x, %x) {scale=1.0}: f32[B, 2, 7, 4]",
            "%x: f32[B, 2, 7, 4]",
            3 * 2 * 7 * 7 * (2 * 4 + 2 * 4 + 5),
        ),
        (
            "attention(%x, %x, %x) {causal=true, scale=1.0}: f32[B, 2, 7, 4]",
            "%x: f32[B, 2, 7, 4]",
            3 * 2 * (7 * 8 // 2) * (2 * 4 + 2 * 4 + 5),
        ),
        (
            "attention(%x, %x, %x) {causal=true, window=2, scale=1.0}: f32[B, 2, 7, 4]",
            "%x: f32[B, 2, 7, 4]",
            3 * 2 * (1 + 2 * 6) * (2 * 4 + 2 * 4 + 5),
        ),
        ("relu(%x): f32[B, 4]", "%x: f32[B, 4]", 3 * 4),
        ("sum(%x) {axes=[1]}: f32[B]", "%x: f32[B, 4]", 3 * 4),
        (
            "max_pool(%x) {kernel=[2, 2], stride=[2, 2], padding=[0, 0]}: f32[B, 3, 3, 4]",
            "%x: f32[B, 6, 6, 4]",
            3 * 3 * 3 * 4 * 4,
        ),
        ("reshape(%x) {shape=[`4*B`]}: f32[4*B]", "%x: f32[B, 4]", 0),
    ],
)
def test_operations_follow_the_formula(line: str, inputs: str, expected: int) -> None:
    assert flops(_one(line, inputs), {"B": 3}) == expected


@pytest.mark.parametrize(
    ("line", "inputs", "expected"),
    [
        ("linear(%x, @w: f32[8, 4]): f32[B, 8]", "%x: f32[B, 4]", 4 * (3 * 4 + 8 * 4 + 3 * 8)),
        (
            "grouped_linear(%x, @w: f32[9, 8, 4], %i): f32[B, 2, 8]",
            "%x: f32[B, 2, 4], %i: i64[B, 2]",
            4 * (6 * 4 + 6 * 8 * 4 + 6 * 8) + 8 * 6,
        ),
        (
            "grouped_linear(%x, @w: f32[5, 8, 4], %i): f32[B, 2, 8]",
            "%x: f32[B, 2, 4], %i: i64[B, 2]",
            4 * (6 * 4 + 5 * 8 * 4 + 6 * 8) + 8 * 6,
        ),
        ("mul(%x, %x): f32[B, 4]", "%x: f32[B, 4]", 4 * (3 * 4 + 3 * 4)),
        ("embedding(@t: f16[1000, 4], %x): f16[B, 4]", "%x: i64[B]", 2 * 2 * 3 * 4 + 8 * 3),
        ("reshape(%x) {shape=[`4*B`]}: f32[4*B]", "%x: f32[B, 4]", 0),
        ("slice(%x) {axis=1, stop=1}: f32[B, 1]", "%x: f32[B, 4]", 2 * 4 * 3),
    ],
)
def test_bytes_are_operands_and_results_once(line: str, inputs: str, expected: int) -> None:
    assert bytes_moved(_one(line, inputs), {"B": 3}) == expected


def test_costs_count_computed_nodes_and_the_weights_that_are_read() -> None:
    weights = {"a": torch.zeros(8, 4), "b": torch.zeros(8), "c": torch.zeros(2, 8), "unused": torch.zeros(99)}
    found = costs(Program({"main": CHAIN}, weights), {})
    assert found.ops == 5
    assert found.weight_bytes == 4 * (32 + 8 + 16)
    assert found.flops == found.flops_by_dtype["f32"] == 2 * 2 * 8 * 4 + 16 + 3 * 16 + 2 * 2 * 2 * 8
    assert costs(Program({"main": CHAIN}, weights), {"B": 20}).flops == 10 * found.flops


def test_weight_names_are_in_order_of_use() -> None:
    assert weight_names(Program({"main": CHAIN}, {})) == ("a", "b", "c")


def test_values_live_from_their_node_to_their_last_reader() -> None:
    nodes = CHAIN.nodes()
    spans = liveness(CHAIN)
    first = _node(CHAIN, "linear").values[0]
    assert spans[first] == (nodes.index(first.node), nodes.index(_node(CHAIN, "exp")))
    assert spans[CHAIN.outputs[0]][1] == len(nodes)


def test_a_cut_is_where_one_value_carries_everything() -> None:
    assert [v.node.op.name for v in cuts(CHAIN)] == ["linear", "add", "linear"]


def test_the_dominator_of_a_join_is_where_it_forked() -> None:
    found = dominators(CHAIN)
    assert found[_node(CHAIN, "add")] is _node(CHAIN, "linear")
    assert found[_node(CHAIN, "relu")] is _node(CHAIN, "linear")
    assert _node(CHAIN, "weight") not in found


def test_the_critical_path_follows_the_costs() -> None:
    price = {"relu": 1.0, "exp": 5.0, "add": 1.0, "linear": 2.0, "input": 0.5}
    path = critical_path(CHAIN, lambda node: price.get(node.op.name, 0.0))
    assert [node.op.name for node in path] == ["input", "linear", "exp", "add", "linear"]


def test_equal_layers_are_one_block() -> None:
    lines = ["graph main(%x: f32[2, 4]) {"]
    for i, op in enumerate(("relu", "relu", "tanh")):
        source = f"%{2 * i - 1}" if i else "%x"
        lines.append(f"  %{2 * i} = linear({source}, @layers.{i}.w: f32[4, 4]): f32[2, 4]  # layers.{i}.fc")
        lines.append(f"  %{2 * i + 1} = {op}(%{2 * i}): f32[2, 4]  # layers.{i}")
    graph = parse("\n".join([*lines, "  return %5", "}"]))
    assert [block.scopes for block in repeated_blocks(graph)] == [("layers.0", "layers.1")]


DECODE = """graph decode<rows: 1..4 = 1>(%ids: i64[rows, 1], %cache.0.k: f16[rows, 2, 100, 8]) {
  %0 = dequantize(@table.codes: u8[50, 8], @table.scale: f16[50, 1]) {group=8, bits=4}: f32[50, 8]
  %1 = embedding(%0, %ids): f32[rows, 1, 8]
  %2 = dequantize(@w.codes: u8[6, 8], @w.scale: f16[6, 1]) {group=8, bits=4}: f32[6, 8]
  %3 = linear(%1, %2, @b: f32[6]): f32[rows, 1, 6]
  return %3, %cache.0.k
}"""


def test_a_step_reads_codes_by_their_bits_and_of_caches_what_they_hold() -> None:
    weights = 6 * 8 // 2 + 6 * 2 + 6 * 4
    assert step_bytes(parse(DECODE), 25, 1) == weights + 2 * 25 * 8 * 2
    assert step_bytes(parse(DECODE), 500, 3) == weights + 3 * 2 * 100 * 8 * 2


def test_a_table_that_is_also_multiplied_is_read() -> None:
    tied = DECODE.replace("%3 = linear(%1, %2, @b: f32[6]): f32[rows, 1, 6]", "%3 = linear(%1, %0): f32[rows, 1, 50]")
    assert step_bytes(parse(tied), 0, 1) == 50 * 8 // 2 + 50 * 2


def test_a_step_reads_of_experts_one_for_each_row_at_most() -> None:
    routed = parse(
        """graph decode<rows: 1..4 = 1>(%x: f32[rows, 2, 8], %i: i64[rows, 2]) {
  %0 = dequantize(@e.codes: u8[5, 6, 8], @e.scale: f16[5, 6, 1]) {group=8, bits=4}: f32[5, 6, 8]
  %1 = grouped_linear(%x, %0, %i): f32[rows, 2, 6]
  return %1
}"""
    )
    expert = 6 * 8 // 2 + 6 * 2
    assert [step_bytes(routed, 0, rows) for rows in (1, 2, 3)] == [2 * expert, 4 * expert, 5 * expert]
