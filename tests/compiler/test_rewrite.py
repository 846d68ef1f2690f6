"""Rules, steps and substitution."""

from collections.abc import Mapping

from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import add, exp, mul, neg, relu, sub
from planish.compiler.rewrite import Hit, Rule, Step, apply_rules, apply_steps, substitute
from planish.compiler.text import parse


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
