"""planish.h and the C example, built by the system's C compiler."""

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from planish.runtime.artifact import write
from planish.runtime.dims import SizeRange
from planish.runtime.loading import load
from planish.runtime.plan import FunctionPlan, InputSpec, NativeStep, Plan, TensorSpec
from planish.runtime.signature import Signature
from planish.runtime.tensors import write_weights
from planish.runtime.tree import tensor
from planish.runtime.values import ValueId
from tests.runtime.small import affine_contents

REPOSITORY = Path(__file__).parents[2]
FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
# Stands in for a sentence encoder: row t is ids[t] * mask[t] * w.
ENCODER = """
#define _POSIX_C_SOURCE 200809L
#include "planish.h"
int32_t planish_threads(void) { return 2; }
int64_t planish_main_0_arena_bytes(const int64_t *sizes, int32_t threads) { return 8 * sizes[1] * threads; }
int32_t planish_main_0(const void *const *inputs, void *const *outputs, const int64_t *sizes, const void *weights,
                       void *arena, int32_t threads, double *times) {
    const int64_t *ids = inputs[0], *mask = inputs[1];
    const float *w = weights;
    int64_t *product = arena;
    if ((uintptr_t)arena % 64 || (uintptr_t)weights % 64 || threads != 2 || times) return 1;
    for (int64_t t = 0; t < sizes[1]; t++) product[t] = ids[t] * mask[t];
    for (int64_t i = 0; i < sizes[1] * 4; i++) ((float *)outputs[0])[i] = product[i / 4] * w[i % 4];
    return 0;
}
"""
MAPPER = """
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include "planish.h"
int main(int count, char **words) {
    planish_weights weights;
    int code = planish_map_weights(words[count - 1], &weights);
    void *arena = planish_arena(0);
    if (!arena || (uintptr_t)arena % PLANISH_ALIGNMENT) return 1;
    free(arena);
    printf("%d %s\\n", code, weights.data ? (const char *)weights.data : "none");
    planish_unmap_weights(&weights);
    return weights.map != NULL;
}
"""


def build(source: Path, output: Path, *more: str) -> Path:
    header = REPOSITORY / "planish" / "runtime" / "native"
    subprocess.run(["cc", *FLAGS, f"-I{header}", str(source), "-o", str(output), *more], check=True)
    return output


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    (tmp_path / "encoder.c").write_text(ENCODER)
    library = build(tmp_path / "encoder.c", tmp_path / "encoder.so", "-shared", "-fPIC")
    example = {"input_ids": np.zeros((1, 2)), "attention_mask": np.zeros((1, 2))}
    function = FunctionPlan(
        sizes=(SizeRange("B", 1, 1, 1), SizeRange("S", 1, 512, 8)),
        inputs=tuple(InputSpec(name, TensorSpec.of("i64", ["B", "S"])) for name in example),
        outputs=(TensorSpec.of("f32", ["B", "S", 4]),),
        signature=Signature.of_example(example, lambda value: isinstance(value, np.ndarray)),
        result=tensor(),
        values=(),
        steps=(NativeStep("planish_main_0", (ValueId("input", 0), ValueId("input", 1)), (ValueId("output", 0),)),),
    )
    weights = {"w": np.array([1, 0.5, -2, 3], np.float32)}
    plan = Plan("kernels/model.so", {"main": function}, {})
    write(tmp_path / "encoder.planish", affine_contents(library, plan=plan, weights=weights, golden={}))
    return tmp_path / "encoder.planish"


def test_the_c_example_prints_what_the_python_runtime_computes(encoder: Path, tmp_path: Path) -> None:
    build(REPOSITORY / "examples" / "c" / "main.c", tmp_path / "main", "-ldl")
    ids = [101, 2023, 2003, 102]
    command = [tmp_path / "main", encoder, "planish_main_0", "4", *map(str, ids)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    tokens = np.array([ids])
    rows = load(encoder, threads=2)(tokens, attention_mask=np.ones_like(tokens))
    np.testing.assert_allclose([float(word) for word in lines[0].split()], rows[0].mean(0), rtol=1e-6)
    assert re.fullmatch(r"\d+\.\d{3} ms a call, 2 threads", lines[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: "),
        (["nowhere", "planish_main_0", "4", "1"], "nowhere/kernels/model.so"),
        (["ARTIFACT", "planish_other_0", "4", "1"], "the library has no function planish_other_0"),
    ],
)
def test_the_c_example_says_what_is_wrong(encoder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    build(REPOSITORY / "examples" / "c" / "main.c", tmp_path / "main", "-ldl")
    command = [str(tmp_path / "main"), *(str(encoder) if word == "ARTIFACT" else word for word in arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode != 0
    assert words in child.stderr


def test_the_header_maps_weights_and_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "mapper.c").write_text(MAPPER)
    mapper = build(tmp_path / "mapper.c", tmp_path / "mapper")
    write_weights(tmp_path / "good", {"w": np.frombuffer(b"planish!", np.uint8)})
    (tmp_path / "short").write_bytes(b"1234")
    (tmp_path / "long").write_bytes(struct.pack("<Q", 1 << 63) + bytes(64))
    (tmp_path / "shifted").write_bytes(struct.pack("<Q", 2) + b"{}" + bytes(64))
    found = {
        name: subprocess.run([mapper, tmp_path / name], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("good", "missing", "short", "long", "shifted")
    }
    none = {"missing": "-1 none", "short": "-2 none", "long": "-2 none", "shifted": "-2 none"}
    assert found == {"good": "0 planish!", **none}
