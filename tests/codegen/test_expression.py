"""Expressions against torch: every op that they evaluate, on scalars and vectors, through a kernel of plain loops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from planish.codegen.call import Call
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, bind, kernel
from planish.codegen.tvm.loops import unravel
from planish.compiler import ops
from planish.compiler.ir import Graph, Node, Op, Value
from planish.compiler.types import DType, Size, elements, simplify
from tests.codegen import compare
from tests.codegen.compare import integers, leaf, normal
from tests.codegen.harness import call_of, run_call
from tests.codegen.moves import MOVES, X

F = DType.f32


@dataclass(frozen=True)
class Plain:
    """Every element, `lanes` at a time along the last axis where they fit, the rest one by one."""

    name: ClassVar[str] = "plain"
    ops: ClassVar[tuple[Op, ...]] = ()
    lanes: int = 4

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return None

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return True

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return True

    def build(self, call: Call, isa: Isa) -> Kernel:
        with kernel(call, isa) as (k, done):
            shape = call.output.shape or (1,)
            first, last = k.share(k.dim(elements(shape[:-1])))
            whole = bind(T.truncdiv(k.dim(shape[-1]), tirx.const(self.lanes, "int64")))
            with T.serial(last - first) as u:
                lead = unravel(k, bind(first + u), shape[:-1])
                with T.serial(whole) as v:
                    self._write(k, (*lead, v * self.lanes), self.lanes)
                with T.serial(k.dim(shape[-1]) - whole * self.lanes) as i:
                    self._write(k, (*lead, whole * self.lanes + i), 1)
        return Kernel(done[0], 0)

    @staticmethod
    def _write(k: object, index: tuple[object, ...], lanes: int) -> None:
        call = k.call  # type: ignore[attr-defined]
        index = index[: len(call.output.shape)]
        store(k, call.view, index, Expression(k).at(call.output, index, lanes), lanes)


def check(build: Callable[..., Value], *tensors: torch.Tensor, lanes: int = 4, **options: object) -> None:
    compare.check(Plain(lanes), build, *tensors, **options)  # type: ignore[arg-type]


SPECIAL = torch.tensor(
    [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -2.5, float("inf"), float("-inf"), float("nan"), 3.7, -3.7, 80.0]
)
FLOATS = torch.cat([SPECIAL, 3 * normal(50)])
BOOLS = integers(63, low=0, high=2, dtype=torch.bool)

UNARY = [
    *(ops.neg, ops.abs_, ops.exp, ops.log, ops.sqrt, ops.rsqrt, ops.reciprocal, ops.tanh, ops.sigmoid, ops.erf),
    *(ops.sin, ops.cos, ops.relu, ops.silu, ops.gelu, ops.floor, ops.ceil, ops.round_, ops.isnan),
]
BINARY = [
    *(ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.minimum, ops.eq, ops.ne, ops.lt, ops.le, ops.gt, ops.ge),
    *(ops.floor_divide, ops.remainder, ops.pow_),
]
EXACT_ON_INTEGERS = [o for o in BINARY if o not in (ops.div, ops.pow_)]


@pytest.mark.parametrize("op", UNARY, ids=str)
def test_a_function_of_one_operand_agrees_with_torch(op: Op) -> None:
    x = FLOATS if op is not ops.gelu else FLOATS[FLOATS.abs() < 1e30]
    check(lambda x: op(x), x)


@pytest.mark.parametrize("op", BINARY, ids=str)
def test_a_function_of_two_operands_agrees_with_torch(op: Op) -> None:
    finite = torch.nan_to_num(FLOATS, 1.25, 2.0, -2.0)
    y = torch.where(finite.roll(7).abs() < 0.1, 0.5, finite.roll(7))
    special = FLOATS.roll(5) if op not in (ops.floor_divide, ops.remainder) else y
    check(lambda x, y: op(x, y), finite if special is y else FLOATS, special)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("op", EXACT_ON_INTEGERS, ids=str)
def test_integers_agree_with_torch(op: Op, dtype: torch.dtype) -> None:
    low = 0 if dtype is torch.uint8 else -9
    x, y = integers(45, low=low, dtype=dtype), integers(45, low=low, dtype=dtype, seed=1)
    check(lambda x, y: op(x, y), x, torch.where(y == 0, 3, y).to(dtype))


def test_integer_division_by_zero_does_not_stop_the_process() -> None:
    x, zero = integers(9), torch.zeros(9, dtype=torch.int64)
    leaves = leaf("x0", x), leaf("x1", zero)
    graph = Graph("main", leaves, (ops.floor_divide(*leaves),))
    assert not run_call(Plain(), call_of(graph, ops.floor_divide), {"x0": x, "x1": zero}).any()


@pytest.mark.parametrize(
    "op", [ops.logical_and, ops.logical_or, ops.eq, ops.ne, ops.maximum, ops.minimum, ops.add, ops.mul], ids=str
)
def test_predicates_agree_with_torch(op: Op) -> None:
    check(lambda x, y: op(x, y), BOOLS, BOOLS.roll(1))


def test_a_choice_and_a_negation_of_predicates() -> None:
    check(lambda c, x, y: ops.where(ops.logical_not(c), x, y), BOOLS, BOOLS.roll(1), BOOLS.roll(2))
    check(lambda c, x, y: ops.where(ops.logical_not(c), x, y), BOOLS, normal(63), normal(63, seed=1))
    check(lambda x: ops.logical_not(x), FLOATS)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 0.5, -0.5, -1.0, -2.0, 1.0, 2.5])
def test_powers_with_a_literal_exponent(exponent: float) -> None:
    check(lambda x: ops.pow_(x, ops.full(value=exponent, dtype=F)), normal(33).abs() + 0.1)


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (None, 0.5), (0.5, None), (1.0, -1.0)])
def test_clamps(limits: tuple[float | None, float | None]) -> None:
    check(lambda x: ops.clamp(x, low=limits[0], high=limits[1]), FLOATS)
    check(lambda x: ops.clamp(x, low=-2, high=3), integers(33))


def test_gelu_with_tanh() -> None:
    check(lambda x: ops.gelu(x, approximate="tanh"), FLOATS[FLOATS.abs() < 1e30])


SOURCES = {
    "f32": normal(40) * 9, "f64": (normal(40) * 9).double(), "f16": normal(40).half(), "bf16": normal(40).bfloat16(),
    "i64": integers(40), "i32": integers(40, dtype=torch.int32), "i16": integers(40, dtype=torch.int16),
    "i8": integers(40, dtype=torch.int8), "u8": integers(40, low=0, dtype=torch.uint8), "bool": BOOLS[:40],
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", [dtype for dtype in DType if dtype is not DType.f8], ids=str)
def test_casts_agree_with_torch(source: str, target: DType) -> None:
    x = SOURCES[source].abs() if target is DType.u8 and source != "bool" else SOURCES[source]
    check(lambda x: ops.cast(x, dtype=target), x, rtol=0, atol=0)


def test_a_cast_to_bf16_and_back_rounds() -> None:
    check(lambda x: ops.cast(ops.cast(x, dtype=DType.bf16), dtype=F), torch.cat([SPECIAL, normal(50)]), rtol=0, atol=0)
    check(lambda x: ops.cast(ops.cast(x, dtype=DType.f16), dtype=F), normal(50), rtol=0, atol=0)


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("move", MOVES)
def test_movement_agrees_with_torch(move: str, lanes: int) -> None:
    check(MOVES[move], X, lanes=lanes)


def test_embedding_gather_and_index_select() -> None:
    table, index = normal(11, 18), integers(3, 7, low=0, high=11)
    check(lambda t, i: ops.embedding(t, i), table, index)
    check(lambda t, i: ops.embedding(t, i), table, index.int())
    check(lambda t, i: ops.index_select(t, i, axis=1), normal(4, 11, 6), index)
    check(lambda t, i: ops.index_select(t, i, axis=1), normal(4, 11), index)
    check(lambda t, i: ops.gather(t, i, axis=1), normal(3, 11), index)
    check(lambda t, i: ops.gather(t, i, axis=0), normal(11, 7), index)


def test_an_index_outside_the_table_reads_its_nearest_row() -> None:
    table, index = normal(5, 8), torch.tensor([-7, 99])
    leaves = leaf("t", table), leaf("i", index)
    graph = Graph("main", leaves, (ops.embedding(*leaves),))
    found = run_call(Plain(), call_of(graph, ops.embedding), {"t": table, "i": index})
    torch.testing.assert_close(found, table[[0, 4]])


def test_dynamic_sizes() -> None:
    s = Size("s").symbol
    x = normal(3, 7, 4)
    check(
        lambda x: ops.reshape(ops.transpose(x, order=(1, 0, 2)), shape=(s, 12)), x, sizes={"s": 7}, shapes=((3, s, 4),)
    )
    check(lambda x: ops.reshape(x, shape=(simplify(3 * s), 4)), x, sizes={"s": 7}, shapes=((3, s, 4),))
    check(lambda x: ops.concat(x, x, axis=1), x, sizes={"s": 7}, shapes=((3, s, 4),))
    check(lambda x: ops.roll(x, shifts=(-3,), axes=(1,)), x, sizes={"s": 7}, shapes=((3, s, 4),))
    causal = lambda x: ops.le(ops.arange(length=s), ops.reshape(ops.arange(length=s), shape=(s, 1)))  # noqa: E731
    check(
        lambda x: ops.where(causal(x), x, ops.full(value=-1.0, dtype=F)), normal(7, 7), sizes={"s": 7}, shapes=((s, s),)
    )
    check(lambda x: ops.add(x, ops.dim_value(value=s)), integers(7), sizes={"s": 7}, shapes=((s,),))


def test_a_long_chain_with_shared_values_compiles_quickly() -> None:
    def chain(x: Value) -> Value:
        for _ in range(24):
            x = ops.sub(ops.mul(x, x), ops.full(value=0.5, dtype=F))
        return x

    from time import perf_counter

    start = perf_counter()
    check(chain, torch.rand(33, generator=torch.Generator().manual_seed(0)), rtol=1e-3, atol=1e-3)
    assert perf_counter() - start < 5
