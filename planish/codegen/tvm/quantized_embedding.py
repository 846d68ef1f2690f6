"""Look-ups in tables stored as codes: embedding(dequantize(@codes, @scale, @zero), ids)."""

from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm.around import fuses_before
from planish.codegen.tvm.expression import Expression
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, bind, kernel
from planish.codegen.tvm.loops import Index
from planish.codegen.tvm.quantization import Numbers, groups, numbers, plain_numbers, refuse_codebook
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.codegen.tvm.vector_math import cast
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, same_shape


@dataclass(frozen=True, slots=True)
class QuantizedEmbedding:
    """Only the rows that are asked for become numbers; an index outside of the table is clamped to it.

    Stored codes are read as linear maps have them packed.
    """

    name: ClassVar[str] = "quantized-embedding"
    ops: ClassVar[tuple[Op, ...]] = (ops.embedding,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        table = call.anchor.operands[0].node
        if table.op is not ops.dequantize or table not in call.nodes:
            return "the table is not dequantized in the kernel"
        if not isinstance(table.types[0].shape[-1], int):
            return "rows of the table have a dynamic size"
        return refuse_codebook(table) or _refuse_around(call, table)

    def build(self, call: Call, isa: Isa) -> Kernel:
        table, ids = call.anchor.operands
        weight = _packed(call, table.node, isa)
        with kernel(call, isa) as (k, done):
            rows = bind(k.dim(table.shape[0]))
            read = plain_numbers(k, table.node) if weight is None else Levels(k, weight).elements

            def looked_up(index: Index) -> Numbers:
                row = bind(cast(Expression(k).at(ids, index[:-1], 1), "int64"))
                zero = tirx.const(0, "int64")
                return read((bind(tirx.min(tirx.max(row, zero), rows - 1)), index[-1]))

            groups(k, ids.shape, table.node, numbers(k, table.node, looked_up))
        return Kernel(done[0], 0, {} if weight is None else weight.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node) or (node.op is ops.dequantize and Value(node) == anchor.operands[0])


def _packed(call: Call, table: Node, isa: Isa) -> CodedWeight | None:
    """The table packed as linear maps read it, so that an artifact holds a tied one once; None where it cannot be."""
    stored = all(v.node.op is ops.weight and v in call.inputs and call.inputs[v].is_contiguous for v in table.operands)
    plain = stored and len(table.operands[0].shape) == 2 and table.operands[1].dtype is not DType.f64
    return CodedWeight.of(table, isa) if plain else None


def _refuse_around(call: Call, table: Node) -> str | None:
    """Why the other nodes of the call are not computed with the look-up, or None."""
    reached: set[Value] = set(call.anchor.values)
    for node in call.nodes:
        if node in (call.anchor, table):
            continue
        after = not reached.isdisjoint(node.operands)
        if not fuses_before(node) or (after and not _straight(call.anchor, node)):
            return f"{node.op.name} is not computed element by element with embedding"
        reached.update(node.values if after else ())
    return None if call.output in reached else "the output does not depend on embedding"


def _straight(anchor: Node, node: Node) -> bool:
    return "elementwise" in node.op.traits and same_shape(node.types[0].shape, anchor.types[0].shape)
