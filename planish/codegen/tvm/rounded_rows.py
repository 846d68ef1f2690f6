"""Rows as codes on CPUs: a norm or elementwise nodes, the scales of groups and their codes in one kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.tvm import around
from planish.codegen.tvm.computed_row import NORMS, ComputedRow, norm_before, refuse_norms
from planish.codegen.tvm.expression import Expression, Known
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Index, integer, product, units, unravel, vectors
from planish.codegen.tvm.quantization import code_of, group_scale, inverse_of
from planish.codegen.tvm.vector_math import cast, keep, splat
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, same_dim, same_shape

_SOON = (T.int32(0), T.int32(3), T.int32(1))  # of llvm.prefetch: for reading, into L1, data
_LINE_BYTES = 64
_PART = 2048  # elements of a part at most, where a group has fewer
_MOST = 128  # groups of a part: TVM calls an allocator for buffers on the stack from 1024 bytes on


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """quantize(x, quantization_scale(x)) with its scales; x may be a norm of f32, or computed element by element.

    x is written, too, where something else reads it. Tasks share parts of rows, or rows where there is a norm. The
    last axis has a constant size.
    """

    name: ClassVar[str] = "rounded-rows"
    ops: ClassVar[tuple[Op, ...]] = (ops.quantize,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        if call.beside is None:
            return "its scales are computed elsewhere"
        if not isinstance(call.anchor.operands[0].shape[-1], int):
            return "groups lie along an axis of dynamic size"
        return _refuse_before(call) or refuse_norms(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        x = call.anchor.operands[0]
        line_bytes = -(-(int(x.shape[-1]) + isa.lanes) * 4 // _LINE_BYTES) * _LINE_BYTES
        scratch = 0 if x in call.inputs else line_bytes if norm_before(call) is None else 2 * line_bytes
        with kernel(call, isa, scratch) as (k, done):
            _Rows.of(k, line_bytes).emit()
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return around.fuses_before(node)

    def fuses_beside(self, anchor: Node, other: Node) -> bool:
        return other.op is ops.quantization_scale and other.attrs == anchor.attrs


def _refuse_before(call: Call) -> str | None:
    """Why what stands before the codes is not computed with them, or None."""
    x, scale = call.anchor.operands
    for node in call.prologue:
        if node is scale.node or node.op in (ops.full, ops.dim_value):
            continue
        computed = node.op in NORMS or ("elementwise" in node.op.traits and around.fuses_before(node))
        if not computed:
            return f"{node.op.name} is not computed element by element"
        if node.types[0].dtype is not DType.f32:
            return f"{node.op.name} gives {node.types[0].dtype}, which memory rounds"
        if node.op in NORMS and not same_shape(node.types[0].shape, x.shape):
            return f"{node.op.name} is over other rows"
    return None


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a call in an open kernel, in parts of whole groups of `size` elements.

    What is computed lies in `line`, what is normed in `source`, f32 both.
    """

    k: KernelBuilder
    source: "tirx.Buffer"
    line: "tirx.Buffer"

    @classmethod
    def of(cls, k: KernelBuilder, line_bytes: int) -> "_Rows":
        source, line = (k.scratch_buffer(line_bytes // 4, DType.f32, at) for at in (line_bytes, 0))
        return cls(k, source, line)

    @property
    def x(self) -> Value:
        return self.k.call.anchor.operands[0]

    @property
    def width(self) -> int:
        return int(self.x.shape[-1])

    @property
    def size(self) -> int:
        return min(integer_of(self.k.call.anchor, "group"), self.width)

    @property
    def together(self) -> int:
        """Groups of a part: their scales are computed one after another before the first is waited for."""
        whole = self.width // self.size
        return max(n for n in range(1, whole + 1) if whole % n == 0 and n <= max(1, min(_PART // self.size, _MOST)))

    @property
    def parts(self) -> int:
        return self.width // self.size // self.together

    def emit(self) -> None:
        """This task's share of the rows where they are normed, else of their parts."""
        k, lead, norm = self.k, self.x.shape[:-1], norm_before(self.k.call)
        if norm is None:
            units(k, (*lead, self.parts), lambda at: self._part({}, at[:-1], at[-1]))
            return
        first, last = k.share(bind(product(k, lead)))
        with T.serial(last - first) as i:
            row = bind(first + i)
            self._fetch(unravel(k, bind(tirx.min(row + 1, last - 1)), lead))
            at = unravel(k, row, lead)
            known = {Value(norm): ComputedRow(k, self.x).normed(norm, at, self.source, integer(0))}
            with T.serial(integer(self.parts)) as part:
                self._part(known, at, bind(part + 0))

    def _fetch(self, lead: Index) -> None:
        """Fetch a row that is read soon: its lines may have to come from another core."""
        k = self.k
        for value, view in k.call.inputs.items():
            if same_shape(value.shape, self.x.shape) and same_dim(view.strides[-1], 1):
                step = _LINE_BYTES // view.dtype.itemsize
                with T.serial(integer(-(-self.width // step))) as i:
                    place = bind(k.address(view, (*lead, bind(i * step))))
                    T.evaluate(
                        T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(k.buffers[value][place]), *_SOON)
                    )

    def _part(self, known: Mapping[Value, Known], lead: Index, part: "tirx.PrimExpr") -> None:
        """The scales of all groups of a part, then their codes; the last part has the shorter group at the end."""
        inverses = T.alloc_buffer((self.together + 1,), "float32")
        begin, rest = bind(part * self.together), self.width % self.size

        def each(body: "Callable[[tirx.PrimExpr, tirx.PrimExpr, int], None]") -> None:
            with T.serial(integer(self.together)) as i:
                body(bind(begin + i), bind(i + 0), self.size)
            if rest:
                with T.If(part == self.parts - 1), T.Then():
                    body(integer(self.width // self.size), integer(self.together), rest)

        each(lambda group, slot, count: self._scale(known, (*lead, group), count, (inverses, slot)))
        each(lambda group, slot, count: self._codes((*lead, group), count, bind(inverses[slot])))

    def _scale(
        self,
        known: Mapping[Value, Known],
        index: Index,
        count: int,
        inverse: "tuple[tirx.Buffer, tirx.PrimExpr]",
    ) -> None:
        """Compute the `count` elements of a group, and store its scale and what they are multiplied by."""
        start = bind(index[-1] * self.size)

        def read(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            return self._first(known, (*index[:-1], bind(start + at)), lanes)

        scale = keep(group_scale(self.k, count, integer_of(self.k.call.anchor, "bits"), read))
        self._store(self.k.call.anchor.operands[1], index, scale, 1)
        buffer, slot = inverse
        T.buffer_store(buffer, inverse_of(scale), [slot])

    def _codes(self, index: Index, count: int, inverse: "tirx.PrimExpr") -> None:
        call = self.k.call

        def write(at: "tirx.PrimExpr", lanes: int) -> None:
            place = (*index[:-1], at)
            codes = code_of(self._again(place, lanes), splat(inverse, lanes), integer_of(call.anchor, "bits"))
            self._store(call.output, place, codes, lanes)

        vectors(self.k, bind(index[-1] * self.size), count, write, self.k.isa.lanes)

    def _first(self, known: Mapping[Value, Known], place: Index, lanes: int) -> "tirx.PrimExpr":
        """Elements of x, which are kept where they are computed and written where they are a result."""
        value = keep(cast(Expression(self.k, known).at(self.x, place, lanes), "float32"))
        if self.x not in self.k.call.inputs:
            T.buffer_store(self.line, value, [ramp(place[-1], lanes)])
        if self.x in self.k.outputs:
            self._store(self.x, place, value, lanes)
        return value

    def _again(self, place: Index, lanes: int) -> "tirx.PrimExpr":
        if self.x not in self.k.call.inputs:
            return keep(self.line[ramp(place[-1], lanes)])
        return keep(cast(Expression(self.k).at(self.x, place, lanes), "float32"))

    def _store(self, result: Value, place: Index, value: "tirx.PrimExpr", lanes: int) -> None:
        at = self.k.address(self.k.call.results[result], place)
        T.buffer_store(self.k.outputs[result], value, [ramp(bind(at), lanes)])
