"""Every op that is not a contraction has a memory-bound template, whose objects call no library on any processor."""

import subprocess
from pathlib import Path

import pytest
import torch

from planish.codegen.template import Template
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.columns import Columns
from planish.codegen.tvm.group_norm import GroupNorm
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.map import Map
from planish.codegen.tvm.pool import Pool
from planish.codegen.tvm.reduce import Reduce
from planish.codegen.tvm.rope import Rope
from planish.codegen.tvm.rows import Rows
from planish.codegen.tvm.scan import Scan
from planish.codegen.tvm.templates import TEMPLATES
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of, host_isa

MEMORY_BOUND = (Rows, Columns, Reduce, GroupNorm, Rope, Pool, Scan, Map)
_ELSEWHERE = {"leaf", "opaque"}
_ON_GPUS = {ops.block_attention, ops.pack_groups, ops.unpack_groups, ops.sampled_tokens}


def test_every_op_is_taken_by_a_template() -> None:
    taken = {op for template in TEMPLATES for op in template.ops}
    wanted = {op for op in ops.OPS if not op.traits & _ELSEWHERE}
    assert wanted - taken == _ON_GPUS


def test_the_table_of_templates_lists_them() -> None:
    assert {type(t) for t in TEMPLATES} >= set(MEMORY_BOUND)


X = leaf("x", normal(1, 6, 20, 40))
C = leaf("c", normal(40))
WINDOW = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
RESULTS: list[tuple[Template, Value]] = [
    (Rows(), ops.softmax(X, axis=3)),
    (Rows(), ops.log_softmax(X, axis=3)),
    (Rows(), ops.layer_norm(X, C, C)),
    (Columns(), ops.softmax(X, axis=1)),
    (Reduce(), ops.amax(X, axes=(1, 2))),
    (Reduce(), ops.argmax(X, axis=3)),
    (GroupNorm(), ops.group_norm(X, C, C, groups=4)),
    (Rope(), ops.rope(X, leaf("c", normal(20, 40)), leaf("s", normal(20, 40)))),
    (Pool(), ops.max_pool(X, **WINDOW)),
    (Scan(), ops.cumsum(X, axis=2)),
    (Map(), ops.gelu(ops.cast(leaf("h", normal(40, 40).half()), dtype=DType.f32))),
    (Map(), ops.pow_(ops.tanh(X), ops.sin(X))),
    (Map(), ops.erf(leaf("t", normal(64, 64)))),
    (Map(), ops.embedding(leaf("w", normal(9, 40)), leaf("i", torch.zeros(5, dtype=torch.int64)))),
]


@pytest.mark.parametrize("isa", [host_isa(), AVX2, NEON], ids=["host", "avx2", "neon"])
@pytest.mark.parametrize("case", range(len(RESULTS)))
def test_objects_call_no_library(case: int, isa: Isa, tmp_path: Path) -> None:
    template, output = RESULTS[case]
    views = {"t": View((64, 64), (1, 64), 0, DType.f32)}
    leaves = tuple(n.values[0] for n in Graph("main", (), (output,)).nodes() if "leaf" in n.op.traits)
    call = call_of(Graph("main", leaves, (output,)), output.node.op, views)
    build_object({"k": template.build(call, isa).function}, isa, tmp_path / "k.o")
    listed = subprocess.run(["nm", str(tmp_path / "k.o")], capture_output=True, text=True, check=True).stdout
    undefined = [line for line in listed.splitlines() if " U " in line]
    assert undefined == []
    assert "Workspace" not in listed
