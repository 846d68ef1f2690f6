"""What lies in the memory of a launch that is tried: plausible numbers, and weights in the order of the kernel."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Final, cast

import numpy
import torch
from numpy.typing import NDArray

from planish.autotune.trial import Block, Drawn, Seen
from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.function_plan import as_array
from planish.codegen.triton.kernel import Kernel, Packing
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType, evaluate_dim, evaluate_shape

_PATTERN: Final = 65521  # elements that are drawn: a prime, so that no two rows of a matrix are alike
_PACKED_ROWS: Final = 256  # of a weight, that are packed and repeated
_WHOLE: Final = 8 << 20  # elements that are packed at most where rows cannot be repeated
_SPREAD: Final = 0.25  # of random numbers: sums over long rows stay within f16
_CACHED_ROWS: Final = 251
_LARGEST_INDEX: Final = 1 << 15
_SAMPLING: Final = (0.37, 0.8, 40.0, 0.95, 0.05, 1.1)  # as `planish.runtime.generation.sampling.CONTROLS`


def content(call: Call, index: int, kernel: Kernel, sizes: Mapping[str, int]) -> tuple[Block, Seen | Drawn | None]:
    """The memory of an input of the call, by its place, and what it holds.

    Of a weight some rows of one matrix are packed, as often as there are such rows. Nothing is known of one that is
    large and whose layout mixes the rows.
    """
    value, view = list(call.inputs.items())[index]
    if (packing := kernel.packings.get(value)) is not None:
        return _packed(view, packing, *_limits(call, value))
    count = evaluate_dim(view.extent, sizes)
    size, held = count * view.dtype.itemsize, seen(index, view, sizes)
    if view.dtype in (DType.i64, DType.i32):
        return Block(size, _integers(view.dtype, _position(call, value, sizes), _most(call, sizes))), held
    if (reader := _reader(call, value, ops.unpack_groups)) is not None:
        return Block(size, _packed_rows(integer_of(reader, "width"), integer_of(reader, "group"))), held
    if call.anchor.op is ops.sampled_tokens and value == call.anchor.operands[2]:
        return Block(size, numpy.array(_SAMPLING).tobytes()), held
    return Block(size, _random(view.dtype, *_limits(call, value), min(count, _PATTERN))), held


def seen(block: int, view: View, sizes: Mapping[str, int]) -> Seen:
    """The elements of a view in a block."""
    shape, strides = evaluate_shape(view.shape, sizes), evaluate_shape(view.strides, sizes)
    return Seen(block, view.dtype.value, shape, strides, evaluate_dim(view.offset, sizes))


@cache
def _packed(view: View, packing: Packing, bits: int, spread: float) -> tuple[Block, Drawn | None]:
    shape = evaluate_shape(view.shape, {})
    if packing.order is None and math.prod(shape) <= _WHOLE:
        array = as_array(_tensor(view.dtype, bits, spread, shape))
        stored = packing.pack(array).tobytes()
        return Block(len(stored), stored), Drawn(view.dtype.value, shape, array.tobytes())
    sample = (*(1 for _ in shape[:-2]), *(min(rows, _PACKED_ROWS) for rows in shape[-2:-1]), *shape[-1:])
    array = as_array(_tensor(view.dtype, bits, spread, sample))
    stored = packing.pack(array).tobytes()
    block = Block(len(stored) * math.prod(-(-a // b) for a, b in zip(shape, sample, strict=True)), stored)
    if packing.order is None:
        return block, None
    return block, Drawn(view.dtype.value, shape, array.tobytes(), _rows(packing, shape, sample).tobytes())


def _rows(packing: Packing, shape: tuple[int, ...], sample: tuple[int, ...]) -> NDArray[numpy.int32]:
    """For each row of an array whose packed form repeats that of a sample, the row of the sample that it is."""
    assert packing.order is not None
    numbers = (numpy.arange(math.prod(s[:-1]), dtype=numpy.int32).reshape(*s[:-1], 1) + 1 for s in (shape, sample))
    whole, part = (cast("NDArray[numpy.int32]", packing.order(each)).reshape(-1) for each in numbers)
    part = numpy.resize(part, whole.shape)
    used = (whole > 0) & (part > 0)
    found = numpy.zeros(math.prod(shape[:-1]), numpy.int32)
    found[whole[used][::-1] - 1] = part[used][::-1] - 1  # rows that are there twice: the first counts
    return found


def _position(call: Call, value: Value, sizes: Mapping[str, int]) -> int | None:
    """For what says how full a cache is, almost all of it; None for other integers."""
    operands, anchor = call.anchor.operands, call.anchor.op
    if anchor not in (ops.attention, ops.cache_update) or len(value.shape) > 1:
        return None
    queries, cache = (operands[0], operands[1]) if anchor is ops.attention else (operands[1], operands[0])
    tokens, slots = (evaluate_dim(each.shape[2], sizes) for each in (queries, cache))
    return max(0, slots - tokens)


def _most(call: Call, sizes: Mapping[str, int]) -> int:
    """How many different indices there are: of experts their number, of blocks of keys those that there are."""
    anchor = call.anchor
    if anchor.op is ops.grouped_linear:
        return evaluate_dim(anchor.operands[1].shape[0], sizes)
    if anchor.op is ops.block_attention:
        return -(-evaluate_dim(anchor.operands[1].shape[2], sizes) // integer_of(anchor, "key_block"))
    return _LARGEST_INDEX


def _integers(dtype: DType, position: int | None, most: int) -> bytes:
    drawn = torch.randint(most, (_PATTERN,), generator=_generator()) if position is None else torch.tensor([position])
    return drawn.to(TORCH_DTYPE[dtype]).numpy().tobytes()


def _limits(call: Call, value: Value) -> tuple[int, float]:
    """The bits of integers, and the spread of floats; of scales so that what is dequantized is spread like other
    floats."""
    reader = _reader(call, value, ops.dequantize)
    if reader is None:
        return 8 * value.dtype.itemsize, _SPREAD
    bits = integer_of(reader, "bits")
    integers = reader.operands[0].dtype is not DType.f8 and not reader.attrs["codebook"]
    scaled = integers and value is not reader.operands[0] and value == reader.operands[1]
    return bits, _SPREAD / (1 << (bits - 1)) if scaled else _SPREAD


def _reader(call: Call, value: Value, op: Op) -> Node | None:
    nodes = (node for part in call.parts for node in part.nodes)
    return next((node for node in nodes if node.op is op and value in node.operands), None)


@cache
def _packed_rows(width: int, group: int) -> bytes:
    rows = _SPREAD * torch.randn((_CACHED_ROWS, width), generator=_generator())
    return as_array(ops.pack_groups.reference(rows, group=group)).tobytes()  # type: ignore[arg-type]


@cache
def _random(dtype: DType, bits: int, spread: float, count: int) -> bytes:
    return as_array(_tensor(dtype, bits, spread, (count,))).tobytes()


def _tensor(dtype: DType, bits: int, spread: float, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype is DType.bool:
        return torch.ones(shape, dtype=torch.bool)
    if dtype.is_float:
        return (spread * torch.randn(shape, generator=_generator())).to(TORCH_DTYPE[dtype])
    low, high = (0, 1 << bits) if dtype is DType.u8 else (-(1 << (bits - 1)), 1 << (bits - 1))
    return torch.randint(low, high, shape, generator=_generator()).to(TORCH_DTYPE[dtype])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
