"""Every op that is not a contraction has a template among the memory-bound ones."""

from planish.codegen.tvm.columns import Columns
from planish.codegen.tvm.group_norm import GroupNorm
from planish.codegen.tvm.map import Map
from planish.codegen.tvm.pool import Pool
from planish.codegen.tvm.reduce import Reduce
from planish.codegen.tvm.rope import Rope
from planish.codegen.tvm.rows import Rows
from planish.codegen.tvm.scan import Scan
from planish.codegen.tvm.templates import TEMPLATES
from planish.compiler import ops

MEMORY_BOUND = (Rows, Columns, Reduce, GroupNorm, Rope, Pool, Scan, Map)
_ELSEWHERE = {"leaf", "opaque", "contraction"}


def test_every_op_is_taken_by_a_template() -> None:
    taken = {op for template in MEMORY_BOUND for op in template.ops}
    wanted = {op for op in ops.OPS if not op.traits & _ELSEWHERE}
    assert wanted - taken == set()


def test_the_table_of_templates_lists_them() -> None:
    assert {type(t) for t in TEMPLATES} >= set(MEMORY_BOUND)
