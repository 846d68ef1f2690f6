"""Rules, steps and substitution."""

from collections.abc import Callable, Mapping

import torch

from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import add, clamp, exp, linear, mul, neg, opaque, relu, sub
from planish.compiler.rewrite import Hit, Match, Rule, Step, apply_rules, apply_steps, find, substitute
from planish.compiler.text import parse
from planish.compiler.types import DType


def _graph(*lines: str, outputs: str) -> Graph:
    body = "\n".join(f"  {line}: f32[2]" for line in lines)
    return parse(f"graph main(%x: f32[2], %y: f32[2]) {{\n{body}\n  return {outputs}\n}}")


MINUS = Rule(
    "minus",
    lambda ops, a, b: ops(add, a, ops(neg, b)),
    lambda match, a, b: sub(a, b, scope=match.scope),
)


def test_a_rule_replaces_its_pattern() -> None:
    graph, hits = apply_rules(_graph("%0 = neg(%y)", "%1 = add(%x, %0)", outputs="%1"), (MINUS,))
    assert str(graph) == str(_graph("%0 = sub(%x, %y)", outputs="%0"))
    assert hits == (Hit("minus", ""),)


def test_commutative_operands_match_in_both_orders() -> None:
    graph, _ = apply_rules(_graph("%0 = neg(%y)", "%1 = add(%0, %x)", outputs="%1"), (MINUS,))
    assert str(graph) == str(_graph("%0 = sub(%x, %y)", outputs="%0"))


def test_an_inner_value_with_another_user_is_refused() -> None:
    before = _graph("%0 = neg(%y)", "%1 = add(%x, %0)", outputs="%1, %0")
    graph, hits = apply_rules(before, (MINUS,))
    assert str(graph) == str(before)
    assert hits == (Hit("minus", "", "an inner value has another user"),)


def test_an_inner_value_that_only_the_pattern_reads_is_not_shared() -> None:
    square = Rule(
        "square", lambda ops, a: ops(mul, ops(neg, a), ops(neg, a)), lambda match, a: mul(a, a, scope=match.scope)
    )
    graph, hits = apply_rules(_graph("%0 = neg(%x)", "%1 = mul(%0, %0)", outputs="%1"), (square,))
    assert str(graph) == str(_graph("%0 = mul(%x, %x)", outputs="%0"))
    assert hits == (Hit("square", ""),)


def test_a_hole_that_stands_twice_needs_equal_values() -> None:
    double = Rule("double", lambda ops, a: ops(add, a, a), lambda match, a: exp(a))
    assert apply_rules(_graph("%0 = add(%x, %y)", outputs="%0"), (double,))[1] == ()
    assert apply_rules(_graph("%0 = add(%x, %x)", outputs="%0"), (double,))[1] == (Hit("double", ""),)


def test_a_reason_of_a_rule_is_recorded_once_a_place() -> None:
    picky = Rule("picky", MINUS.pattern, MINUS.replacement, refuse=lambda match, a, b: "not today")
    assert apply_rules(_graph("%0 = neg(%y)", "%1 = add(%x, %0)", outputs="%1"), (picky,))[1] == (
        Hit("picky", "", "not today"),
    )


def test_a_pattern_that_does_not_fit_is_no_refusal() -> None:
    never = Rule("never", MINUS.pattern, MINUS.replacement, fits=lambda match, a, b: False)
    assert apply_rules(_graph("%0 = neg(%y)", "%1 = add(%x, %0)", outputs="%1"), (never,))[1] == ()


def test_rules_run_until_nothing_fires_and_count_every_firing() -> None:
    double = Rule("undo", lambda ops, a: ops(neg, ops(neg, a)), lambda match, a: a)
    lines = ["%0 = neg(%x)", *(f"%{i} = neg(%{i - 1})" for i in range(1, 6))]
    graph, hits = apply_rules(_graph(*lines, outputs="%5"), (double,))
    assert graph.outputs == graph.inputs[:1]
    assert hits == (Hit("undo", ""),) * 3


def test_a_refusal_that_a_later_firing_lifts_is_not_reported() -> None:
    def drop(node: Node, uses: Mapping[Node, int]) -> Value | str | None:
        return "still shared" if uses[node.operands[0].node] > 1 else exp(node.operands[0])

    def merge(node: Node, uses: Mapping[Node, int]) -> Value | None:
        return node.operands[0] if node.operands[0] == node.operands[1] else None

    graph = _graph("%0 = neg(%x)", "%1 = relu(%0)", "%2 = sub(%0, %0)", "%3 = add(%1, %1)", outputs="%3")
    steps = (Step("drop", (relu,), drop), Step("merge", (add,), merge))
    assert apply_steps(graph, steps)[1] == (Hit("drop", ""), Hit("merge", ""))


def test_a_step_sees_the_result_of_the_step_before_it() -> None:
    def up(node: Node, uses: Mapping[Node, int]) -> Value | None:
        inner = node.operands[0].node
        return exp(neg(inner.operands[0])) if inner.op is exp else None

    graph = _graph("%0 = exp(%x)", "%1 = neg(%0)", "%2 = neg(%1)", outputs="%2")
    after, hits = apply_steps(graph, (Step("up", (neg,), up),))
    assert str(after) == str(_graph("%0 = neg(%x)", "%1 = neg(%0)", "%2 = exp(%1)", outputs="%2"))
    assert len(hits) == 2


def test_substitution_keeps_nodes_that_do_not_change() -> None:
    graph = _graph("%0 = exp(%x)", "%1 = neg(%y)", "%2 = add(%0, %1)", outputs="%2, %0")
    after = substitute(graph, lambda node: (graph.inputs[1],) if node.op is neg else None)
    assert after.outputs[1] == graph.outputs[1]
    assert str(after) == str(_graph("%0 = exp(%x)", "%1 = add(%0, %y)", outputs="%1, %0"))


def test_nothing_changes_where_nothing_matches() -> None:
    graph = _graph("%0 = exp(%x)", "%1 = add(%0, %y)", outputs="%1, %0")
    after, hits = apply_rules(graph, (MINUS,))
    assert after.outputs == graph.outputs
    assert hits == ()


def test_nodes_that_a_rule_does_not_reach_stay_the_same_objects() -> None:
    graph = _graph(
        "%0 = exp(%x)", "%1 = neg(%y)", "%2 = add(%0, %1)", "%3 = relu(%2)", "%4 = exp(%0)", outputs="%3, %4"
    )
    after, _ = apply_rules(graph, (MINUS,))
    assert after.outputs[1] == graph.outputs[1]
    assert after.outputs[0].node.operands[0].node.op is sub
    assert after.outputs[0].node.operands[0].node.operands[0] == graph.outputs[1].node.operands[0]
    assert after.inputs == graph.inputs


def test_a_rebuilt_node_keeps_its_scope_and_a_replacement_takes_that_of_the_root() -> None:
    before = """graph main(%x: f32[2], %y: f32[2]) {
  %0 = neg(%y): f32[2]  # inner
  %1 = add(%x, %0): f32[2]  # root
  %2 = exp(%1): f32[2]  # after.it
  return %2
}"""
    after = """graph main(%x: f32[2], %y: f32[2]) {
  %0 = sub(%x, %y): f32[2]  # root
  %1 = exp(%0): f32[2]  # after.it
  return %1
}"""
    graph, hits = apply_rules(parse(before), (MINUS,))
    assert str(graph) == after
    assert hits == (Hit("minus", "root"),)


def test_sizes_and_the_name_of_the_graph_are_kept() -> None:
    graph = parse("graph decode<B: 1..8 = 2>(%x: f32[B]) {\n  %0 = neg(%x): f32[B]\n  return %0\n}")
    after = substitute(graph, lambda node: (exp(node.operands[0]),) if node.op is neg else None)
    assert (after.name, after.sizes, after.inputs) == ("decode", graph.sizes, graph.inputs)


def test_a_match_tells_its_root_its_nodes_and_its_holes() -> None:
    graph = _graph("%0 = neg(%y)", "%1 = add(%x, %0)", outputs="%1")
    (match,) = find(MINUS, graph.outputs[0].node)
    assert match.root is graph.outputs[0].node
    assert match.nodes == (match.root, match.root.operands[1].node)
    assert match.holes == {"a": graph.inputs[0], "b": graph.inputs[1]}


def test_both_orders_of_a_commutative_op_are_tried_before_giving_up() -> None:
    tried: list[Value] = []

    def refuse(match: Match, a: Value, b: Value) -> str | None:
        tried.append(a)
        return None if a == graph.inputs[0] else "only x"

    rule = Rule("picky", lambda ops, a, b: ops(add, ops(neg, a), b), lambda match, a, b: sub(b, a), refuse=refuse)
    graph = _graph("%0 = neg(%y)", "%1 = neg(%x)", "%2 = add(%0, %1)", outputs="%2")
    after, hits = apply_rules(graph, (rule,))
    assert tried == [graph.inputs[1], graph.inputs[0]]
    assert str(after) == str(_graph("%0 = neg(%y)", "%1 = sub(%0, %x)", outputs="%1"))
    assert hits == (Hit("picky", ""),)


def test_operands_of_other_ops_match_in_their_order_only() -> None:
    rule = Rule("order", lambda ops, a, b: ops(sub, ops(neg, a), b), lambda match, a, b: a)
    assert apply_rules(_graph("%0 = neg(%y)", "%1 = sub(%x, %0)", outputs="%1"), (rule,))[1] == ()


def test_an_output_is_another_user_and_a_shared_rule_does_not_mind() -> None:
    before = _graph("%0 = neg(%y)", "%1 = add(%x, %0)", "%2 = exp(%0)", outputs="%1, %2")
    assert apply_rules(before, (MINUS,))[1][0].refused == "an inner value has another user"
    after, hits = apply_rules(before, (Rule("shared", MINUS.pattern, MINUS.replacement, shared=True),))
    assert str(after) == str(_graph("%0 = sub(%x, %y)", "%1 = neg(%y)", "%2 = exp(%1)", outputs="%0, %2"))
    assert hits == (Hit("shared", ""),)


def test_a_value_that_a_replacement_reuses_counts_its_new_users() -> None:
    undo = Rule("undo", lambda ops, a: ops(neg, ops(neg, a)), lambda match, a: a)
    fuse = Rule("fuse", lambda ops, a: ops(relu, ops(exp, a)), lambda match, a: exp(relu(a)))
    before = _graph(
        *("%0 = exp(%x)", "%1 = neg(%0)", "%2 = neg(%1)", "%3 = relu(%2)", "%4 = add(%2, %y)"), outputs="%3, %4"
    )
    after, hits = apply_rules(before, (undo, fuse))
    assert str(after) == str(_graph("%0 = exp(%x)", "%1 = relu(%0)", "%2 = add(%0, %y)", outputs="%1, %2"))
    assert hits == (Hit("undo", ""), Hit("fuse", "", "an inner value has another user"))


CLAMPS = """graph main(%x: f32[2]) {
  %0 = clamp(%x) {low=0.0, high=HIGH}: f32[2]
  %1 = clamp(%0) {low=LOW, high=4.0}: f32[2]
  return %1
}"""


def _clamps(**numbers: str) -> Graph:
    text = CLAMPS
    for name, number in numbers.items():
        text = text.replace(name, number)
    return parse(text)


def test_attribute_holes_bind_and_must_agree_where_they_stand_twice() -> None:
    rule = Rule(
        "twice",
        lambda ops, a, low, inner, outer: ops(clamp, ops(clamp, a, low=low, high=inner), low=low, high=outer),
        lambda match, a, low, inner, outer: clamp(a, low=low, high=min(inner, outer)),
    )
    after, hits = apply_rules(_clamps(HIGH="3.0", LOW="0.0"), (rule,))
    assert str(after) == "graph main(%x: f32[2]) {\n  %0 = clamp(%x) {low=0.0, high=3.0}: f32[2]\n  return %0\n}"
    assert hits == (Hit("twice", ""),)
    assert apply_rules(_clamps(HIGH="3.0", LOW="1.0"), (rule,))[1] == ()


def test_a_constant_attribute_must_be_equal() -> None:
    rule = Rule("six", lambda ops, a: ops(clamp, a, low=0.0, high=6.0), lambda match, a: relu(a))
    graph, hits = apply_rules(_clamps(HIGH="6.0", LOW="none"), (rule,))
    assert len(hits) == 1
    assert graph.outputs[0].node.operands[0].node.op is relu


def test_an_absent_operand_matches_an_absent_operand_or_a_hole() -> None:
    text = """graph main(%x: f32[2, 4]) {
  %0 = linear(%x, @w: f32[3, 4]): f32[2, 3]
  %1 = linear(%x, @w: f32[3, 4], @b: f32[3]): f32[2, 3]
  return %0, %1
}"""
    bare = Rule("bare", lambda ops, x, w: ops(linear, x, w), lambda match, x, w: relu(linear(x, w)), fits=_fresh())
    assert [v.node.op for v in apply_rules(parse(text), (bare,))[0].outputs] == [relu, linear]
    seen = [dict(match.holes)["b"] for v in parse(text).outputs for match in find(AFFINE, v.node)]
    assert seen[0] is None
    assert isinstance(seen[1], Value)


AFFINE = Rule("affine", lambda ops, x, w, b: ops(linear, x, w, b), lambda match, x, w, b: x)


def _fresh() -> Callable[..., bool]:
    """True the first time: the replacement holds the pattern again."""
    left = iter((True,))
    return lambda match, **_: next(left, False)


def test_only_the_first_result_of_a_node_is_inside_a_pattern() -> None:
    text = """graph main(%x: f32[2]) {
  %0.0, %0.1 = opaque(%x) {target="aten.sort.default", arguments="", shapes=[[2], [2]], dtypes=[f32, f32]}: f32[2], f32[2]
  %1 = exp(%0.0): f32[2]
  %2 = exp(%0.1): f32[2]
  return %1, %2
}"""
    attrs = {"target": "aten.sort.default", "arguments": "", "shapes": ((2,), (2,)), "dtypes": (DType.f32, DType.f32)}
    rule = Rule("first", lambda ops, a: ops(exp, ops(opaque, a, **attrs)), lambda match, a: a, shared=True)
    after, hits = apply_rules(parse(text), (rule,))
    assert after.outputs[0] == after.inputs[0]
    assert after.outputs[1].node.op is exp
    assert hits == (Hit("first", ""),)


def test_the_first_rule_that_fits_wins() -> None:
    one = Rule("one", lambda ops, a: ops(neg, a), lambda match, a: exp(a))
    two = Rule("two", lambda ops, a: ops(neg, a), lambda match, a: relu(a))
    after, hits = apply_rules(_graph("%0 = neg(%x)", outputs="%0"), (two, one))
    assert after.outputs[0].node.op is relu
    assert hits == (Hit("two", ""),)


def test_rules_that_enable_each_other_run_to_the_end_and_keep_the_numbers() -> None:
    undo = Rule("undo", lambda ops, a: ops(neg, ops(neg, a)), lambda match, a: a)
    split = Rule("split", lambda ops, a, b: ops(sub, a, ops(neg, b)), lambda match, a, b: add(a, b))
    graph = _graph(
        *("%0 = neg(%y)", "%1 = neg(%0)", "%2 = neg(%1)", "%3 = sub(%x, %2)", "%4 = mul(%3, %x)"), outputs="%4, %3"
    )
    after, hits = apply_rules(graph, (split, undo))
    assert str(after) == str(_graph("%0 = add(%x, %y)", "%1 = mul(%0, %x)", outputs="%1, %0"))
    assert sorted(hit.rule for hit in hits) == ["split", "undo"]
    x, y = torch.tensor([1.5, -2.0]), torch.tensor([0.25, 3.0])
    assert [t.tolist() for t in evaluate(after, (x, y), {})] == [((x + y) * x).tolist(), (x + y).tolist()]


def test_substitution_gives_the_visitor_nodes_with_their_new_operands() -> None:
    graph = _graph("%0 = exp(%x)", "%1 = neg(%0)", outputs="%1")
    seen: list[Node] = []

    def visit(node: Node) -> tuple[Value, ...] | None:
        seen.append(node)
        return (relu(node.operands[0]),) if node.op is exp else None

    after = substitute(graph, visit)
    assert seen[-1].operands[0].node.op is relu
    assert after.outputs[0].node is seen[-1]
    assert graph.outputs[0].node.operands[0].node.op is exp
