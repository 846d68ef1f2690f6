"""Runs the few PTX instructions of our inline assembly on arrays of 32-bit registers, by the words of the PTX ISA."""

import re
from collections.abc import Callable, Sequence

import numpy
import torch
from numpy.typing import NDArray

Register = NDArray[numpy.uint32]


def run_ptx(text: str, results: int, given: Sequence[Register], halves: torch.dtype) -> list[torch.Tensor]:
    """The registers $0 up to $(results - 1) as pairs of `halves`, the lower first; `given` are the registers after."""
    registers = {f"${results + i}": array.astype(numpy.uint32) for i, array in enumerate(given)}
    count = len(given[0])

    def value(name: str) -> Register:
        if name in registers:
            return registers[name]
        number = int(name.replace("0f", "0x"), 16) if name[:2] in ("0x", "0f") else int(name)
        return numpy.full(count, number, numpy.uint32)

    for line in re.findall(r"[^{};\n]+", re.sub(r"\.reg[^;]*;", "", text)):
        operation, operands = line.strip().split(" ", 1)
        target, *sources = (operand.strip() for operand in operands.split(","))
        registers[target] = _RUN[operation](halves, *map(value, sources))
    return [_pairs(registers[f"${i}"], halves) for i in range(results)]


def _pairs(register: Register, halves: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(numpy.ascontiguousarray(register).view(numpy.int32)).view(halves).reshape(-1, 2)


def _register(pairs: torch.Tensor) -> Register:
    return pairs.contiguous().view(torch.int32).numpy().view(numpy.uint32).reshape(-1)


def _permute(_: torch.dtype, a: Register, b: Register, selector: Register) -> Register:
    """Each result byte is one of the eight of b and a; the sign mode (bit 3) must not be asked for."""
    assert not (selector & 0x8888).any()
    both = a.astype(numpy.uint64) | b.astype(numpy.uint64) << numpy.uint64(32)
    found = numpy.zeros(len(a), numpy.uint64)
    for i in range(4):
        place = (selector.astype(numpy.uint64) >> numpy.uint64(4 * i)) & numpy.uint64(7)
        found |= (both >> (numpy.uint64(8) * place) & numpy.uint64(255)) << numpy.uint64(8 * i)
    return found.astype(numpy.uint32)


def _logic(_: torch.dtype, a: Register, b: Register, c: Register, table: Register) -> Register:
    """Bit i of the table is the result where the bits of a, b and c make i."""
    found = numpy.zeros_like(a)
    for i in range(8):
        if int(table[0]) >> i & 1:
            found |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return found


def _of_pairs(formula: Callable[..., torch.Tensor]) -> Callable[..., Register]:
    def run(halves: torch.dtype, *sources: Register) -> Register:
        return _register(formula(*(_pairs(s, halves).double() for s in sources)).to(halves))

    return run


def _to_bf16(_: torch.dtype, upper: Register, lower: Register) -> Register:
    both = torch.from_numpy(numpy.stack([lower, upper], 1).view(numpy.float32))
    return _register(both.bfloat16())


def _of_f8(pair: Register) -> Register:
    codes = torch.from_numpy(pair.astype(numpy.uint16).view(numpy.uint8)).view(torch.float8_e4m3fn)
    return _register(codes.to(torch.float16))


_RUN: dict[str, Callable[..., Register]] = {
    "mov.b32": lambda _, a: a,
    "and.b32": lambda _, a, b: a & b,
    "shr.u32": lambda _, a, b: a >> b,
    "shl.b32": lambda _, a, b: a << b,
    "cvt.u16.u32": lambda _, a: a & 0xFFFF,
    "cvt.rn.f16x2.e4m3x2": lambda _, a: _of_f8(a),
    "prmt.b32": _permute,
    "lop3.b32": _logic,
    "sub.f32": lambda _, a, b: (a.view(numpy.float32) - b.view(numpy.float32)).view(numpy.uint32),
    "cvt.rn.bf16x2.f32": _to_bf16,
    "sub.f16x2": _of_pairs(lambda a, b: a - b),
    "mul.f16x2": _of_pairs(lambda a, b: a * b),
    "fma.rn.bf16x2": _of_pairs(lambda a, b, c: a * b + c),
}
