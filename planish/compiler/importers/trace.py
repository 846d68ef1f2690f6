"""Ops that the table lacks, traced by torch into simpler ones or run on tensors without data for their types."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import fx
from torch._decomp import get_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from planish.compiler.ir import Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import Dim, Shape, Size, evaluate_dim


def decomposed(target: torch._ops.OpOverload, arguments: Any) -> fx.GraphModule | None:
    """The op traced into simpler ones by torch's own decomposition; None where torch has none.

    `arguments` is `(args, kwargs)` with fake tensors and sizes; the placeholders of the result are those in order.
    """
    rule = get_decompositions([target]).get(target)
    if rule is None and not target._can_decompose():
        return None
    module = traced(target.decompose if rule is None else rule, arguments)
    return module if all(_is_importable(node) for node in module.graph.nodes) else None


def _is_importable(node: fx.Node) -> bool:
    """Whether a traced node is an op of aten (some decompositions end in torch's prims) or access to a result."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.namespace == "aten"
    return (
        node.op != "call_function" or node.target is operator.getitem or isinstance(node.meta.get("val"), torch.SymInt)
    )


def traced(function: Callable[..., Any], arguments: Any) -> fx.GraphModule:
    """The ops that `function` calls on fake arguments; tensors and sizes of torch are its placeholders."""
    leaves, spec = pytree.tree_flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor | torch.SymInt)]

    def call(*given: torch.Tensor | torch.SymInt) -> Any:
        filled = list(leaves)
        for place, value in zip(places, given, strict=True):
            filled[place] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return function(*args, **kwargs)

    with _without_onednn():
        return _graph_of(call, [leaves[place] for place in places])


@contextmanager
def _without_onednn() -> Iterator[None]:
    """With oneDNN on, torch decomposes recurrent layers into an op of oneDNN instead of into matrix products."""
    switch: Any = torch.backends.mkldnn.set_flags
    before = switch(_enabled=False, _fp32_precision=None)
    try:
        yield
    finally:
        switch(_enabled=before[0], _fp32_precision=None)


def _graph_of(call: Callable[..., Any], given: Sequence[torch.Tensor | torch.SymInt]) -> fx.GraphModule:
    modes = [t.fake_mode for t in given if isinstance(t, FakeTensor)]
    if not modes:
        return make_fx(call)(*given)
    with modes[0]:
        return make_fx(call)(*given)


class Fakes:
    """Makes tensors without data from our types; `symbols` says which dimension each of their symbols stands for."""

    def __init__(self, sizes: Mapping[str, Size]) -> None:
        self.symbols: dict[str, sympy.Expr] = {}
        self._mode = FakeTensorMode(shape_env=ShapeEnv())
        # Distinct primes keep torch from taking sizes of equal hints for one.
        primes = (sympy.prime(200 + i) for i in range(len(sizes)))
        self._hints = dict(zip(sizes, primes, strict=True))

    def of(self, value: Any) -> Any:
        """The stand-in of one argument: a value, a dimension or anything else as it is."""
        if isinstance(value, Value):
            return self._tensor(value.shape, TORCH_DTYPE[value.dtype])
        if isinstance(value, sympy.Expr):
            return self._tensor((value,), torch.float32).shape[0]
        return value

    def _tensor(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        example = torch.empty([self._hint(d) for d in shape], dtype=dtype, device="meta")
        dynamic = [DimDynamic.STATIC if isinstance(d, int) else DimDynamic.DUCK for d in shape]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic, constraint_sizes=[None] * len(shape))
        source = ConstantSource(f"value{len(self.symbols)}")
        fake: torch.Tensor = self._mode.from_tensor(example, source=source, symbolic_context=context)
        for ours, theirs in zip(shape, fake.shape, strict=True):
            if isinstance(theirs, torch.SymInt):
                self.symbols[theirs.node.expr.name] = sympy.sympify(ours)
        return fake

    def _hint(self, dim: Dim) -> int:
        return evaluate_dim(dim, self._hints)
