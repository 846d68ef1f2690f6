"""Elementwise GPU kernels against torch in Triton's interpreter: odd shapes, views, dtypes, look-ups."""

import pytest

from planish.codegen.triton.map import Map
from planish.compiler import ops
from planish.compiler.types import DType, Size
from tests.codegen.compare import integers, normal
from tests.codegen.moves import MOVES, X
from tests.codegen.triton.harness import check

S = Size("s").symbol


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1000,), (5000,), (3, 1), (13, 31), (2, 3, 127)])
def test_elementwise_work_of_any_shape(shape: tuple[int, ...]) -> None:
    check(Map(), lambda x, y: ops.relu(ops.sub(x, y)), normal(*shape), normal(*shape, seed=1))


@pytest.mark.parametrize("n", [1, 5, 50, 700])
def test_dynamic_sizes(n: int) -> None:
    sizes, shapes = {"s": n}, ((3, S, 24), (24,))
    check(
        Map(), lambda x, b: ops.gelu(ops.add(x, b)), normal(3, n, 24), normal(24), sizes=sizes, shapes=shapes, atol=3e-6
    )


@pytest.mark.parametrize("move", MOVES)
def test_movements(move: str) -> None:
    check(Map(), MOVES[move], X)


def test_half_precision_is_computed_in_f32() -> None:
    x = normal(33, 40).half()
    check(Map(), lambda x: ops.tanh(ops.mul(x, x)), x, rtol=1e-3, atol=1e-3)


def test_bools_are_bytes_in_memory() -> None:
    x, y = normal(5, 70) > 0, normal(5, 70, seed=1) > 0
    check(Map(), lambda x, y: ops.logical_and(x, ops.logical_not(y)), x, y)
    check(Map(), lambda x: ops.cast(x, dtype=DType.f32), x)


def test_a_look_up_clamps_its_rows() -> None:
    check(Map(), ops.embedding, normal(11, 40), integers(3, 7, low=0, high=11))


def test_rotary_positions_turn_halves_of_heads() -> None:
    q, cosine, sine = normal(2, 3, 5, 16), normal(1, 1, 5, 16, seed=1), normal(1, 1, 5, 16, seed=2)
    shapes = ((2, 3, S, 16), (1, 1, S, 16), (1, 1, S, 16))
    check(Map(), ops.rope, q, cosine, sine, shapes=shapes, sizes={"s": 5})
