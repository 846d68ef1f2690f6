"""The largest logit of every row and its token: each task looks through a part of the vocabulary."""

from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.folds import Registers, State, first_largest, first_place, line_lanes
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.tiles import index
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, simplify

_WAYS = 4  # vectors in flight
_PART = 16  # 32-bit words that a task leaves of each row: a cache line


@dataclass(frozen=True, slots=True)
class GreedyTokens:
    """Columns are dealt evenly, whatever the number of rows; after a barrier the parts of each row are joined."""

    name: ClassVar[str] = "greedy-tokens"
    ops: ClassVar[tuple[Op, ...]] = (ops.greedy_tokens,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        (logits,) = call.inputs.values()
        if logits.dtype is not DType.f32 or not logits.is_contiguous or not isinstance(logits.shape[1], int):
            return f"it takes rows of f32 in one piece and of a known width, not {call.anchor.operands[0].type}"
        return None

    def build(self, call: Call, isa: Isa) -> Kernel:
        memory = _part_bytes(call)
        with kernel(call, isa, memory) as (k, done):
            _Parts(k).emit()
        with kernel(call, isa, memory) as (k, joined):
            _Joined(k).emit()
        return Kernel(done[0], memory, merge=joined[0])

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


def _part_bytes(call: Call) -> Dim:
    return simplify(call.anchor.operands[0].shape[0] * (4 * _PART))


@dataclass(frozen=True, slots=True)
class _Kernel:
    k: KernelBuilder

    @property
    def rows(self) -> "tirx.PrimExpr":
        return self.k.dim(self.k.call.anchor.operands[0].shape[0])

    @property
    def width(self) -> int:
        return cast(int, self.k.call.anchor.operands[0].shape[1])

    def parts(self) -> "tuple[tirx.Buffer, tirx.Buffer]":
        """The values f32 and the columns i32 of all parts [task][row][_PART], of which the first of each count."""
        count = self.k.tasks.astype("int64") * self.rows * _PART
        return self.k.scratch_buffer(count, DType.f32), self.k.scratch_buffer(count, DType.i32)

    def place(self, task: "tirx.PrimExpr", row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where a part lies: its value, then its column."""
        return bind((task * self.rows + row) * _PART)


@dataclass(frozen=True, slots=True)
class _Parts(_Kernel):
    """The largest of this task's columns, row by row."""

    def emit(self) -> None:
        values, columns = self.parts()
        task = bind(self.k.task.astype("int64"))
        with T.serial(self.rows) as row:
            value, column = self._largest(bind(row * self.width))
            place = self.place(task, row)
            T.buffer_store(values, value, [place])
            T.buffer_store(columns, column, [place + 1])

    def _largest(self, start: "tirx.PrimExpr") -> State:
        (logits,) = self.k.buffers.values()
        lanes = line_lanes(self.width, self.k.isa.lanes)
        block = lanes * _WAYS
        registers = Registers(first_largest("float32"), lanes, _WAYS)
        first, stop = self.k.share(index(self.width // block))
        with T.serial(stop - first) as i:
            for way in range(_WAYS):
                at = bind((first + i) * block + way * lanes)
                registers.take(vm.keep(logits[ramp(start + at, lanes)]), at, way=way)
        with T.If(tirx.EQ(self.k.task, self.k.tasks - 1)), T.Then(), T.serial(index(self.width % block)) as i:
            at = bind(self.width // block * block + i)
            registers.take(vm.keep(logits[start + at]), at)
        return registers.result()


@dataclass(frozen=True, slots=True)
class _Joined(_Kernel):
    """The largest of all parts of this task's rows."""

    def emit(self) -> None:
        values, columns = self.parts()
        fold = first_largest("float32")
        best = [T.alloc_buffer((1,), dtype) for dtype in fold.dtypes]
        first, stop = self.k.share(self.rows)
        with T.serial(stop - first) as i:
            row = bind(first + i)
            for buffer, start in zip(best, fold.start, strict=True):
                T.buffer_store(buffer, tirx.const(start, buffer.dtype), [0])
            with T.serial(self.k.tasks.astype("int64")) as task:
                place = self.place(task, row)
                found = fold.join((best[0][0], best[1][0]), (values[place], columns[place + 1]))
                for buffer, part in zip(best, found, strict=True):
                    T.buffer_store(buffer, part, [0])
            token = first_place((best[0][0], best[1][0]))
            T.buffer_store(self.k.output, token.astype("float64"), [row * 2])
            T.buffer_store(self.k.output, best[0][0].astype("float64"), [row * 2 + 1])
