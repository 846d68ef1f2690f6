"""A tiny artifact made by hand: a C library with the ABI of planish.h that computes x * w + bias."""

import platform
import subprocess
from pathlib import Path

import numpy as np

from planish.runtime.artifact import Contents
from planish.runtime.dims import SizeRange
from planish.runtime.golden import Golden
from planish.runtime.manifest import Target, Tolerance
from planish.runtime.plan import (
    CallSpec,
    FunctionPlan,
    InputSpec,
    NativeStep,
    Plan,
    Step,
    TensorSpec,
    TorchStep,
    ValueId,
)
from planish.runtime.signature import Signature
from planish.runtime.tree import Tree, record, tensor

WEIGHT = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
BIAS_OFFSET = 64
TRIPLE = f"{platform.machine()}-linux-gnu"
SOURCE = """
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <string.h>
#include <time.h>
#include "planish.h"

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

int32_t planish_threads(void) { return 3; }

int64_t planish_main_0_arena_bytes(const int64_t *sizes, int32_t threads) { return sizes[0] * 16 * (threads > 0); }

/* The input waits in the arena, so that calls that shared one would disturb each other. */
int32_t planish_main_0(const void *const *inputs, void *const *outputs, const int64_t *sizes, const void *weights,
                       void *arena, int32_t threads, double *times) {
    double start = seconds();
    const float *w = weights, *bias = (const float *)((const char *)weights + 64);
    volatile float *scratch = arena;
    if ((uintptr_t)arena % 64 || (uintptr_t)weights % 64) return 7;
    for (int64_t i = 0; i < sizes[0] * 4; i++) scratch[i] = ((const float *)inputs[0])[i];
    if (sizes[0] > 30) nanosleep(&(struct timespec){0, 200000}, 0);
    if (times) times[0] = seconds() - start;
    start = seconds();
    for (int64_t i = 0; i < sizes[0] * 4; i++) ((float *)outputs[0])[i] = scratch[i] * w[i % 4] + bias[i % 4] + OFFSET;
    if (times) times[1] = seconds() - start;
    return sizes[0] == 99 ? 5 : 0;
}
"""


def build_library(folder: Path, *, offset: float = 0) -> Path:
    """The shared library of SOURCE, built by the system's C compiler; `offset` is added to every result."""
    header = Path(__file__).parents[2] / "planish" / "runtime" / "native"
    source, library = folder / "model.c", folder / f"model{offset}.so"
    source.write_text(SOURCE)
    command = [
        "cc",
        "-O1",
        "-shared",
        "-fPIC",
        f"-DOFFSET={float(offset)}f",
        f"-I{header}",
        str(source),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    return library


def expected(x: np.ndarray) -> np.ndarray:
    """What the library computes, by numpy."""
    return x * WEIGHT + np.float32(1)


def affine_plan() -> Plan:
    """`main(x)` returns a record with the part `y` and the absent part `z`."""
    function = function_plan(
        record("AffineOutput", {"y": tensor(), "z": Tree("constant")}),
        outputs=(TensorSpec.of("f32", ["B", 4]),),
        steps=(native_step(ValueId("output", 0)),),
        calls=(
            CallSpec("load_0", "copy", "identity", "encoder.layer.0.load", 0),
            CallSpec("scale_1", "affine", "add", "encoder.layer.0.scale", 0),
        ),
    )
    return Plan("kernels/model.so", {"main": function}, {})


def topk_plan() -> Plan:
    """`main(x)` returns the two largest of each row of the affine result, found by torch."""
    top = TorchStep(
        "aten.topk.default",
        ({"value": ["value", 0]}, 2),
        (ValueId("output", 0), ValueId("output", 1)),
        {"largest": True},
        "head.topk",
    )
    function = function_plan(
        Tree("tuple", (tensor(), tensor())),
        outputs=(TensorSpec.of("f32", ["B", 2]), TensorSpec.of("i64", ["B", 2])),
        steps=(native_step(ValueId("value", 0)), top),
        values=(TensorSpec.of("f32", ["B", 4]),),
    )
    return Plan("kernels/model.so", {"main": function}, {})


def torch_plan(step: TorchStep, output: TensorSpec, weights: dict[str, TensorSpec] | None = None) -> Plan:
    """`main(x)` is one torch step."""
    return Plan(None, {"main": function_plan(tensor(), outputs=(output,), steps=(step,))}, weights or {})


def native_step(output: ValueId) -> NativeStep:
    return NativeStep("planish_main_0", (ValueId("input", 0),), (output,))


def function_plan(
    result: Tree,
    *,
    outputs: tuple[TensorSpec, ...],
    steps: tuple[Step, ...],
    values: tuple[TensorSpec, ...] = (),
    calls: tuple[CallSpec, ...] = (),
) -> FunctionPlan:
    """A function of one input x: f32[B, 4] with B in 1..1000."""
    signature = Signature.of_example({"x": np.zeros((2, 4))}, lambda value: isinstance(value, np.ndarray))
    inputs = (InputSpec("x", TensorSpec.of("f32", ["B", 4])),)
    return FunctionPlan((SizeRange("B", 1, 1000, 2),), inputs, outputs, signature, result, values, steps, calls)


def affine_contents(library: Path | None, **changes: object) -> Contents:
    """The contents of an artifact of `affine_plan` with a recorded result."""
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    parts: dict[str, object] = {
        "plan": affine_plan(),
        "target": Target("host", TRIPLE, (), "f" * 64),
        "weights": {"w": WEIGHT, "bias": np.ones(4, np.float32)},
        "library": library,
        "planish": "0.1.0",
        "program": "main(x: f32[B, 4])\n",
        "sources": {"model.c": SOURCE},
        "declarations": "int32_t planish_main_0();",
        "recipe": ("fuse",),
        "created_with": {"cc": "system"},
        "golden": {"main": Golden((x,), (expected(x),), Tolerance(1e-6, 1e-6))},
        "report": {"passes": []},
        "report_text": "nothing was changed\n",
    }
    return Contents(**{**parts, **changes})  # type: ignore[arg-type]
