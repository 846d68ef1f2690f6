"""Movements of data, each as a function of one value, and the tensor that they are tried on."""

from collections.abc import Callable

from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.types import DType
from tests.codegen.compare import normal

X = normal(2, 6, 20)
MOVES: dict[str, Callable[[Value], Value]] = {
    "reshape to fewer axes": lambda x: ops.reshape(x, shape=(12, 20)),
    "reshape to more axes": lambda x: ops.reshape(x, shape=(2, 3, 2, 5, 4)),
    "reshape across axes": lambda x: ops.reshape(x, shape=(8, 30)),
    "reshape with ones": lambda x: ops.reshape(x, shape=(1, 2, 1, 6, 20, 1)),
    "transpose": lambda x: ops.transpose(x, order=(2, 0, 1)),
    "expand": lambda x: ops.expand(ops.slice_(x, axis=1, start=2, stop=3), shape=(3, 2, 6, 20)),
    "expand of the last axis": lambda x: ops.expand(ops.slice_(x, axis=2, start=2, stop=3), shape=(2, 6, 9)),
    "slice": lambda x: ops.slice_(x, axis=2, start=3, stop=18),
    "slice with a step": lambda x: ops.slice_(x, axis=2, start=1, stop=20, step=3),
    "flip": lambda x: ops.flip(x, axes=(0, 2)),
    "roll": lambda x: ops.roll(x, shifts=(-2, 7), axes=(1, 2)),
    "pad": lambda x: ops.pad(x, before=(0, 1, 3), after=(1, 0, 2), value=1.5),
    "concat of the last axis": lambda x: ops.concat(x, ops.neg(x), x, axis=2),
    "concat of another axis": lambda x: ops.concat(x, ops.neg(x), axis=1),
    "transpose of a sum": lambda x: ops.transpose(ops.add(x, ops.slice_(x, axis=1, start=0, stop=1)), order=(1, 2, 0)),
    "merged heads": lambda x: ops.reshape(ops.transpose(x, order=(1, 0, 2)), shape=(6, 40)),
    "a sum with a literal": lambda x: ops.add(x, ops.full(value=2.0, dtype=DType.f32)),
    "a range": lambda x: ops.mul(x, ops.cast(ops.arange(length=20, start=3, step=2), dtype=DType.f32)),
    "rotated halves": lambda x: ops.concat(
        ops.neg(ops.slice_(x, axis=2, start=10, stop=20)), ops.slice_(x, axis=2, start=0, stop=10), axis=2
    ),
}
