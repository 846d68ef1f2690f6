"""Nodes that no template takes, as ops of torch: their references, traced."""

from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.func import functionalize

from planish.compiler.attributes import Attr
from planish.compiler.importers.builder import Builder
from planish.compiler.importers.trace import Fakes, traced
from planish.compiler.importers.walk import Walk
from planish.compiler.ir import Node, Value, same_type
from planish.compiler.ops import input_
from planish.compiler.types import DType, Size
from planish.errors import ImportGraphError, TemplateError


def as_torch(node: Node, sizes: Mapping[str, Size]) -> tuple[Value, ...]:
    """What torch computes in place of the node's values: its reference as opaque ops over the same operands.

    Raises TemplateError where what the reference does depends on the data, or takes a table of its own.
    """
    module, symbols, dims = _trace(node, sizes)
    walk = _AsTorch(Builder(sizes, scope=node.scope), symbols)
    if any(each.op == "get_attr" for each in module.graph.nodes):
        raise TemplateError(f"{node.op.name} in '{node.scope}' has a table of its own and cannot run as torch")
    try:
        result = walk.run(module, (*node.operands, *dims))
    except ImportGraphError as error:
        raise TemplateError(f"{node.op.name} in '{node.scope}' cannot run as torch: {error}") from error
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(_typed(found, wanted) for found, wanted in zip(results, node.values, strict=True))


class _AsTorch(Walk):
    """Keeps every op as torch's own."""

    __slots__ = ()

    def overload(self, node: fx.Node, called: torch._ops.OpOverload, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return self.by_torch(called, args, kwargs, node.meta["val"])


def _trace(node: Node, sizes: Mapping[str, Size]) -> tuple[fx.GraphModule, Mapping[str, sympy.Expr], list[Value]]:
    """The ops of the reference over the operands and one more tensor for each dimension that the attributes name."""
    named = list(dict.fromkeys(dim for attr in node.attrs.values() for dim in _dims(attr)))
    # torch follows sizes that tensors have, and no others
    dims = [input_(name="size", shape=(dim,), dtype=DType.f32) for dim in named]
    fakes = Fakes(sizes)

    def reference(operands: list[torch.Tensor | None], lengths: list[torch.Tensor]) -> Any:
        known = {dim: tensor.shape[0] for dim, tensor in zip(named, lengths, strict=True)}
        return node.op.reference(*operands, **{name: _filled(attr, known) for name, attr in node.attrs.items()})

    operands = [None if value is None else fakes.of(value) for value in node.inputs]
    try:
        with torch.no_grad(), torch.device("meta"):
            module = traced(functionalize(reference, remove="mutations"), ((operands, [fakes.of(d) for d in dims]), {}))
    except (RuntimeError, NotImplementedError) as error:  # torch's errors of what depends on data are RuntimeErrors
        raise TemplateError(f"{node.op.name} in '{node.scope}' cannot run as torch: {error}") from error
    return module, fakes.symbols, dims


def _dims(attr: Attr) -> Iterator[sympy.Expr]:
    if isinstance(attr, tuple):
        for item in attr:
            yield from _dims(item)
    elif isinstance(attr, sympy.Expr):
        yield attr


def _filled(attr: Attr, known: Mapping[sympy.Expr, Any]) -> Any:
    if isinstance(attr, tuple):
        return tuple(_filled(item, known) for item in attr)
    return known[attr] if isinstance(attr, sympy.Expr) else attr


def _typed(found: Value, wanted: Value) -> Value:
    """The value with the shape as our type rule writes it, where torch writes the same sizes in another way."""
    if same_type(found.type, wanted.type):
        return found
    node = found.node
    shapes = [t.shape for t in node.types]
    shapes[found.index] = wanted.shape
    return Value(node.op.node(node.inputs, {**node.attrs, "shapes": tuple(shapes)}, node.scope), found.index)
