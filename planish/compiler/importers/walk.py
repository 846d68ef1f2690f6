"""Walks a graph of torch.fx and builds our nodes through the aten table, op by op."""

import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from planish.compiler import ops
from planish.compiler.importers.aten import CHECKS, STORAGE_ARGUMENTS, TABLE
from planish.compiler.importers.aten_complex import constant, in_parts, is_complex
from planish.compiler.importers.builder import Builder, UncoveredError
from planish.compiler.importers.sizes import decided, dim_from_torch
from planish.compiler.importers.trace import decomposed
from planish.compiler.ir import Op, Value
from planish.compiler.types import Dim, DType, TensorType, evaluate_shape
from planish.errors import ImportGraphError, TypeRuleError


@dataclass(slots=True)
class Walk:
    """The state of one import: the builder, torch's symbols as sizes, and the ops that stayed opaque."""

    builder: Builder
    symbols: Mapping[str, sympy.Expr]
    opaque: dict[str, None] = field(default_factory=dict)

    def run(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """The values of the module's output for values of its placeholders."""
        known: dict[fx.Node, Any] = {}
        rest = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(rest)
            elif node.op == "get_attr":
                known[node] = self._attribute(operator.attrgetter(node.target)(module))
            elif node.op == "call_function":
                self._enter(node)
                known[node] = self._call(node, known)
        return self._arguments(module.graph.output_node().args[0], known)

    def _attribute(self, value: Any) -> Any:
        return constant(self.builder, value) if isinstance(value, torch.Tensor) else value

    def _enter(self, node: fx.Node) -> None:
        stack = node.meta.get("nn_module_stack")
        if stack:
            self.builder.scope = scope_of(list(stack.values())[-1][0])
        self.builder.target = str(node.target)

    def _call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        expected = node.meta.get("val")
        if node.target in CHECKS or isinstance(expected, torch.SymBool):
            return None
        if node.target is torch.ops.aten.item.default:
            return self.builder.reshape(self._arguments(node.args[0], known), ())
        if isinstance(expected, torch.SymInt):
            return self._dim(expected)
        args = self._arguments(node.args, known)
        if node.target is operator.getitem:
            return args[0][args[1]]
        kwargs = self._arguments(node.kwargs, known)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._wrapped(args)
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._python(node, args)
        result = self.overload(node, node.target, args, kwargs)
        if node.target._schema.is_mutable and isinstance(node.args[0], fx.Node):
            known[node.args[0]] = result
        return result

    def _wrapped(self, args: Sequence[Any]) -> Any:
        """The body of a region that switches gradients or autocasting off or on."""
        places = [i for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule)]
        if len(places) != 1:
            raise ImportGraphError(
                f"{self.builder.where} chooses between computations at run time; a program has one: decide it "
                "before, or compute both and choose with torch.where"
            )
        return self.run(args[places[0]], args[places[0] + 1 :])

    def _python(self, node: fx.Node, args: Sequence[Any]) -> Any:
        """Arithmetic on sizes that leaves the integers: scalars of f64, as Python computes them."""
        op = _ARITHMETIC.get(node.target)
        if op is None or not all(isinstance(arg, int | float | sympy.Expr | Value) for arg in args):
            raise ImportGraphError(f"{self.builder.where} is no op of torch that an export should hold")
        return self.builder.emit(op, *(self.builder.as_tensor(arg, DType.f64) for arg in args))

    def _arguments(self, tree: Any, known: Mapping[fx.Node, Any]) -> Any:
        if isinstance(tree, fx.Node):
            return known[tree]
        if isinstance(tree, torch.SymInt):
            return self._dim(tree)
        if isinstance(tree, tuple | list):
            return [self._arguments(item, known) for item in tree]
        if isinstance(tree, Mapping):
            return {key: self._arguments(item, known) for key, item in tree.items()}
        return tree

    def overload(
        self, node: fx.Node, called: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The op as our nodes: by the table, by torch's decomposition, or opaque."""
        target = functional(called)
        if is_complex(args, kwargs, node.meta.get("val")):
            return in_parts(self.builder, target, TABLE.get(target), ordered(target, args, kwargs))
        types = self._types(node.meta.get("val"))
        result = self.by_table(target, args, kwargs)
        if result is None:
            arguments = fx.node.map_aggregate((node.args, dict(node.kwargs)), self._traced_value)
            result = self.by_decomposition(decomposed(target, arguments), args, kwargs)
        if result is None:
            result = self.by_torch(target, args, kwargs, node.meta.get("val"))
        self._check(result, types)
        return result

    def _traced_value(self, argument: Any) -> Any:
        """What torch traced for an argument; a size that is one number as that number."""
        value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
        if not isinstance(value, torch.SymInt):
            return value
        size = dim_from_torch(value, self.symbols, self.builder.where)
        return size if isinstance(size, int) else value

    def by_table(self, target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the table makes of the op; None where it does not cover this use."""
        handler = TABLE.get(target)
        if handler is None:
            return None
        try:
            return handler(self.builder, *ordered(target, args, kwargs))
        except (UncoveredError, TypeRuleError):
            return None

    def by_decomposition(self, traced: fx.GraphModule | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the table makes of torch's decomposition of the op; None where torch has none."""
        if traced is None:
            return None
        target = self.builder.target
        given = [arg for arg in pytree.tree_leaves((args, dict(kwargs))) if isinstance(arg, Value | sympy.Expr)]
        result = self.run(traced, given)
        self.builder.target = target
        return result

    def by_torch(self, target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], like: Any) -> Any:
        """The op as an opaque node with results `like` traced tensors; it is noted by name."""
        if target.namespace != "aten":
            raise ImportGraphError(f"{self.builder.where} is no op of aten; register a decomposition of it with torch")
        types = self._types(like)
        if _is_random(target, args, kwargs):
            raise ImportGraphError(
                f"{self.builder.where} draws random numbers, which a program cannot; call model.eval() where it is a "
                "dropout, or pass the numbers in as an input"
            )
        if not types:  # such as a check that raises an error
            return None
        self.opaque[self.builder.where] = None
        inputs: list[Value] = []
        written = {name: self._json(value, inputs) for name, value in (("args", args), ("kwargs", kwargs))}
        attrs = {
            "target": f"aten.{str(target).removeprefix('aten.')}",
            "arguments": json.dumps(written),
            "shapes": tuple(t.shape for t in types),
            "dtypes": tuple(t.dtype for t in types),
        }
        values = self.builder.node(ops.opaque, inputs, attrs).values
        return values if isinstance(like, tuple | list) else values[0]

    def _json(self, value: Any, inputs: list[Value]) -> Any:
        if isinstance(value, sympy.Expr):
            inputs.append(self.builder.emit(ops.dim_value, value=value))
            return {"int": len(inputs) - 1}
        if isinstance(value, Value):
            inputs.append(value)
            return {"input": len(inputs) - 1}
        if isinstance(value, torch.dtype):
            return {"dtype": str(self.builder.dtype(value))}
        if isinstance(value, tuple | list):
            return [self._json(item, inputs) for item in value]
        if isinstance(value, Mapping):
            kept = {k: v for k, v in value.items() if k not in STORAGE_ARGUMENTS}
            return {key: self._json(item, inputs) for key, item in kept.items()}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ImportGraphError(f"{self.builder.where} takes {value!r}, which a program cannot hold")

    def _types(self, traced: Any) -> tuple[TensorType, ...]:
        leaves = pytree.tree_leaves(traced)
        return tuple(self.type_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """Our type of a traced tensor."""
        return TensorType(tuple(map(self._dim, tensor.shape)), self.builder.dtype(tensor.dtype))

    def _dim(self, size: Any) -> Dim:
        return decided(dim_from_torch(size, self.symbols, self.builder.where), self.builder.sizes)

    def _check(self, result: Any, types: tuple[TensorType, ...]) -> None:
        values = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Value)]
        hints = {name: size.hint for name, size in self.builder.sizes.items()}
        for value, wanted in zip(values, types, strict=False):
            if value.dtype is not wanted.dtype or evaluate_shape(value.shape, hints) != evaluate_shape(
                wanted.shape, hints
            ):
                raise AssertionError(f"{self.builder.where} became {value.type}, but torch computes {wanted}")


def _is_random(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the op draws random numbers with these arguments; those of layers do in training alone."""
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = {**dict(zip((a.name for a in target._schema.arguments), args, strict=False)), **kwargs}
    return all(given.get(switch) for switch in ("train", "training", "dropout_p") if switch in given)


_ARITHMETIC: Mapping[Any, Op] = {
    operator.add: ops.add,
    operator.sub: ops.sub,
    operator.mul: ops.mul,
    operator.truediv: ops.div,
    operator.pow: ops.pow_,
    operator.neg: ops.neg,
    math.sqrt: ops.sqrt,
    torch.sym_sqrt: ops.sqrt,
}
_SLICE = re.compile(r"slice\([^)]*\)\.?")


def scope_of(path: str) -> str:
    """The module path that torch recorded, without its marks for slices and repeated calls."""
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return re.sub(r"@\d+", "", _SLICE.sub("", path.removeprefix("L__self__.").removeprefix("L__self__"))).strip(".")


def functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The op that returns what an in-place op writes."""
    name = target._schema.name.removeprefix("aten::")
    if not target._schema.is_mutable or not name.endswith("_"):
        return target
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, target) if packet is not None else target


def ordered(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the op's schema, without those about storage; trailing defaults stay absent."""
    result, waiting = [], []
    for place, argument in enumerate(target._schema.arguments):
        given = place < len(args) or argument.name in kwargs
        value = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
        if argument.name in STORAGE_ARGUMENTS:
            continue
        waiting.append(value)
        if given:
            result += waiting
            waiting = []
    return result
