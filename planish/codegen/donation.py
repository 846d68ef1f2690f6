"""Donation: results that are computed in the memory of an input."""

from planish.codegen.select import Selection
from planish.compiler.ir import Node, Value
from planish.compiler.ops import cache_update
from planish.errors import TemplateError


def donations(selection: Selection) -> tuple[tuple[int, int], ...]:
    """Pairs of a result and the input whose memory it takes: one for every `cache_update`.

    Raises TemplateError where the cache is no input, has another reader, or where the update is no result.
    """
    graph = selection.graph
    users = graph.users()
    inputs = {value: i for i, value in enumerate(graph.inputs)}
    outputs = {value: i for i, value in enumerate(selection.outputs)}
    found = []
    for node in graph.nodes():
        if node.op is not cache_update:
            continue
        cache = node.operands[0]
        if cache not in inputs or len(users[cache]) > 1 or cache in graph.outputs:
            raise TemplateError(
                f"{_name(node)} is written in place: its cache must be an input that nothing else reads"
            )
        if Value(node) not in outputs:
            raise TemplateError(f"{_name(node)} is written in place: its cache must be a result of '{graph.name}'")
        found.append((outputs[Value(node)], inputs[cache]))
    return tuple(found)


def _name(node: Node) -> str:
    return f"cache_update in '{node.scope}'"
