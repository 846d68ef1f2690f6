"""Gated layers: activations of gates, and calls that compute them from two slices of a product."""

from collections.abc import Callable

import pytest
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import Dim
from tests.codegen.harness import call_of

Gate = tuple[Callable[[Value, Value], Value], Callable[[Tensor, Tensor], Tensor]]

GATES: dict[str, Gate] = {
    "silu first": (lambda g, u: ops.mul(ops.silu(g), u), lambda g, u: functional.silu(g) * u),
    "gelu last": (lambda g, u: ops.mul(u, ops.gelu(g)), lambda g, u: functional.gelu(g) * u),
    "gelu by tanh": (
        lambda g, u: ops.mul(ops.gelu(g, approximate="tanh"), u),
        lambda g, u: functional.gelu(g, approximate="tanh") * u,
    ),
    "sigmoid": (lambda g, u: ops.mul(u, ops.sigmoid(g)), lambda g, u: g.sigmoid() * u),
    "relu": (lambda g, u: ops.mul(ops.relu(g), u), lambda g, u: g.relu() * u),
    "silu of two ops": (lambda g, u: ops.mul(ops.mul(g, ops.sigmoid(g)), u), lambda g, u: functional.silu(g) * u),
}
EVERY_GATE = pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())
SILU = GATES["silu first"]


def gated(product: Value, gate: Gate, width: int, starts: tuple[int, int] | None = None) -> Value:
    """What the gate computes of two slices of a product."""
    first, second = starts or (0, width)
    return gate[0](_columns(product, first, width), _columns(product, second, width))


def gated_call(inputs: tuple[Value, ...], product: Value, gate: Gate, width: int) -> Call:
    """The call that computes a product and its gate."""
    return call_of(Graph("main", inputs, (gated(product, gate, width),)), ops.linear)


def of_halves(product: Tensor, gate: Gate, width: int) -> Tensor:
    """The same of the numbers of the product."""
    return gate[1](product[..., :width], product[..., width : 2 * width])


def _columns(product: Value, start: int, width: int) -> Value:
    axis = len(product.shape) - 1
    stop: Dim = start + width
    return ops.slice_(product, axis=axis, start=start, stop=stop)
