"""Quantized rows copied for integer products: codes in whole groups, scales, and what zero points take off."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.int8_dot import dot_for, signed_byte
from planish.codegen.tvm.int8_plan import Int8Plan
from planish.codegen.tvm.int8_rounding import Rounding
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.tiles import each_chunk, index
from planish.compiler.ir import Value
from planish.compiler.types import DType

_LANES = 16


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """A block of rows of x in scratch memory.

    `units` holds codes, four in 32 bits, rows `plan.stride` apart; `scales` [row][x group] f32; `offsets` [row][group]
    i32 is minus the sum of a group's codes, times the weight's zero where that is a constant.
    """

    k: KernelBuilder
    plan: Int8Plan
    units: "tirx.Buffer"
    scales: "tirx.Buffer"
    offsets: "tirx.Buffer"
    line: "tirx.Buffer | None"

    def prepare(self, block: "tirx.PrimExpr", last: "tirx.PrimExpr") -> None:
        """Copy or round rows `block` to `last - 1`."""
        with T.serial(last - block) as i:
            row, place = bind(block + i), bind(i * self.plan.stride)
            if self.plan.rounds:
                Rounding(self.k, self.plan, self.units, self.scales, self.line).write(row, i)
                self._clear(place, self.plan.depth // 4)
            else:
                codes, scales = self.plan.x.operands[:2]
                self._codes(self._start(codes, row), place)
                self._scales(self._start(scales, row), i)
            if self.plan.offset or self.plan.zero:
                self._offsets(i)

    def _start(self, value: Value, row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        view = self.k.call.inputs[value]
        return bind(self.k.address(view, (*unravel(self.k, row, view.shape[:-1]), index(0))))

    def _codes(self, start: "tirx.PrimExpr", place: "tirx.PrimExpr") -> None:
        plan, source = self.plan, self.k.buffers[self.plan.x.operands[0]]

        def copy(at: "tirx.PrimExpr", lanes: int) -> None:
            units = T.reinterpret(_wide("int32", lanes), source[ramp(start + at * 4, 4 * lanes)])
            T.buffer_store(self.units, units, [ramp(place + at, lanes)])

        whole, rest = divmod(plan.depth, 4)
        each_chunk(whole, _LANES, copy)
        if rest:
            bytes_ = [source[start + (4 * whole + i)].astype("int32") & T.int32(255) for i in range(rest)]
            unit = bytes_[0]
            for i, byte in enumerate(bytes_[1:], 1):
                unit = unit | (byte << T.int32(8 * i))
            T.buffer_store(self.units, unit, [place + whole])
        self._clear(place, whole + (rest > 0))

    def _clear(self, place: "tirx.PrimExpr", used: int) -> None:
        """Zeros from unit `used` of a row on."""

        def clear(at: "tirx.PrimExpr", lanes: int) -> None:
            zero = T.int32(0) if lanes == 1 else T.broadcast(T.int32(0), lanes)
            T.buffer_store(self.units, zero, [ramp(place + used + at, lanes)])

        each_chunk(self.plan.padded // 4 - used, _LANES, clear)

    def _scales(self, start: "tirx.PrimExpr", i: "tirx.PrimExpr") -> None:
        scales = self.plan.x.operands[1]
        stride = self.k.dim(self.k.call.inputs[scales].strides[-1])
        with T.serial(index(self.plan.x_groups)) as group:
            value = self.k.buffers[scales][start + group * stride]
            T.buffer_store(self.scales, value, [i * self.plan.x_groups + group])

    def _offsets(self, i: "tirx.PrimExpr") -> None:
        plan, lanes = self.plan, self.plan.isa.lanes
        ones = T.broadcast(T.int32(0x01010101), lanes)
        with T.serial(index(plan.count)) as group:
            base = bind(i * plan.stride + group * (plan.group // 4))
            wide, total = T.alloc_buffer((lanes,), "int32"), T.alloc_buffer((1,), "int32")
            T.buffer_store(wide, T.broadcast(T.int32(0), lanes), [ramp(0, lanes)])
            T.buffer_store(total, T.int32(0), [0])

            def add(at: "tirx.PrimExpr", count: int) -> None:
                units = bind(self.units[ramp(base + at, count)])
                if count == lanes:
                    T.buffer_store(wide, dot_for(plan.isa)(wide[ramp(0, lanes)], ones, units), [ramp(0, lanes)])
                    return
                four = [signed_byte(units, byte) for byte in range(4)]
                T.buffer_store(total, total[0] + _sum((four[0] + four[1]) + (four[2] + four[3])), [0])

            each_chunk(plan.group // 4, lanes, add)
            factor = -1 if plan.zero else -plan.offset
            value = (total[0] + _sum(wide[ramp(0, lanes)])) * T.int32(factor)
            T.buffer_store(self.offsets, value, [i * plan.count + group])


def _sum(value: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The sum of all lanes."""
    value = bind(value)
    single = int(value.ty.dtype.lanes) == 1
    return value if single else T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", value)


def rows_bytes(plan: Int8Plan) -> int:
    """Scratch memory of a block of rows."""
    line = (plan.depth + plan.isa.lanes) * 4 if plan.computes else 0
    return _codes_bytes(plan) + _scales_bytes(plan) + _offsets_bytes(plan) + line


def quantized_rows(k: KernelBuilder, plan: Int8Plan, place: int) -> QuantizedRows:
    """The rows of the open kernel, from byte `place` of its scratch memory."""
    scales = place + _codes_bytes(plan)
    offsets = scales + _scales_bytes(plan)
    line = None
    if plan.computes:
        line = k.scratch_buffer(plan.depth + plan.isa.lanes, DType.f32, offsets + _offsets_bytes(plan))
    return QuantizedRows(
        k,
        plan,
        k.scratch_buffer(plan.block * plan.stride, DType.i32, place),
        k.scratch_buffer(plan.block * plan.x_groups, DType.f32, scales),
        k.scratch_buffer(plan.block * plan.count, DType.i32, offsets),
        line,
    )


def _codes_bytes(plan: Int8Plan) -> int:
    return plan.block * plan.stride * 4


def _scales_bytes(plan: Int8Plan) -> int:
    return -(-plan.block * plan.x_groups * 4 // 64) * 64


def _offsets_bytes(plan: Int8Plan) -> int:
    return -(-plan.block * plan.count * 4 // 64) * 64


def _wide(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
