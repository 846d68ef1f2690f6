"""Shape arithmetic of ONNX models on constants alone becomes constants, so that ranks follow from it."""

from typing import Any

import numpy

# Ops whose results are as small as their operands, whatever these hold.
_ARITHMETIC = frozenset(
    {
        *("Constant", "Identity", "Cast", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Sqrt"),
        *("Floor", "Ceil", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Gather", "Slice", "Transpose"),
        *("Equal", "Less", "Greater", "Not", "And", "Or", "Where"),
    }
)


def fold_constants(proto: Any) -> None:
    """Replace, in place, the nodes that compute whole numbers from literals by literals.

    Shape inference finds the rank of a Reshape only where the length of its shape is known, and torch-mlir refuses
    values without a rank; the TorchScript exporter of torch slices shapes at computed places.
    """
    found = _foldable(proto.graph)
    results = _computed(proto, found) if any(node.op_type != "Constant" for node in found) else {}
    for node in found:
        value = results.get(node.output[0])
        if node.op_type != "Constant" and value is not None and value.dtype.kind in "iu":
            _make_literal(node, value)


def _foldable(graph: Any) -> list[Any]:
    known = {entry.name for entry in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type in _ARITHMETIC and node.domain in ("", "ai.onnx") and all(n in known for n in node.input if n):
            found.append(node)
            known.update(node.output)
    return found


def _computed(proto: Any, nodes: list[Any]) -> dict[str, numpy.ndarray[Any, Any]]:
    """What the nodes give, by the reference implementation of ONNX."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    names = [node.output[0] for node in nodes]
    outputs = [ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph(nodes, "constants", [], outputs, list(proto.graph.initializer))
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    return dict(zip(names, map(numpy.asarray, ReferenceEvaluator(model).run(None, {})), strict=True))


def _make_literal(node: Any, value: numpy.ndarray[Any, Any]) -> None:
    from onnx import helper, numpy_helper

    literal = numpy_helper.from_array(value, node.output[0])
    node.CopyFrom(helper.make_node("Constant", [], [node.output[0]], name=node.name, value=literal))
