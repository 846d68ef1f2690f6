"""Triton functions that turn words of packed codes into numbers: plain ones, and PTX for halves of registers.

In PTX a register holds two neighbouring words, and each result two numbers: one instruction computes both. Small codes
become numbers as the low bits of a mantissa: 1024 + code in f16, 128 + code in bf16. Codes of f8 have the fields of f16
and bf16, whose exponents only count from elsewhere.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from planish.codegen.triton.elementwise import TRITON_DTYPE
from planish.codegen.triton.sources import Generated
from planish.compiler.types import DType

_AND_OR = "0xEA"  # lop3: (a & b) | c
_MAGIC = {DType.f16: 1024, DType.bf16: 128}
_MAGIC_BITS = {DType.f16: 0x64006400, DType.bf16: 0x43004300}
# how far the seven bits beside the sign move down from the upper byte, where they end, and what that divides by
_F8_FIELDS = {DType.f16: (1, 0x3F803F80, "0x5C005C00"), DType.bf16: (4, 0x07F007F0, "0x7B807B80")}  # 2**8, 2**120
_OF_BF16 = (".reg .b32 minus, nothing;", "mov.b32 minus, 0xBF80BF80;", "mov.b32 nothing, 0x80008000;")  # -1 and -0


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How words of `codes` codes each, 4 or 2, become numbers of `dtype`: (code - offset) * scale, or level * scale.

    `codebook` has up to 16 levels or none; `assembly` asks for PTX, which knows f16 and bf16. Without `scaled` the
    scale is left out. Codes of `f8` are levels themselves, which `converts` leaves to an instruction of the device.
    """

    codes: int
    dtype: DType
    codebook: tuple[float, ...]
    scaled: bool
    assembly: bool
    f8: bool = False
    converts: bool = False

    @property
    def levels(self) -> bool:
        """Whether codes stand for levels, not for integers that have an offset."""
        return self.f8 or bool(self.codebook)

    @property
    def magic(self) -> int:
        """What unpacked codes are too large by."""
        small = self.codes == 4 or self.dtype is DType.f16
        return _MAGIC[self.dtype] if self.assembly and small and not self.levels else 0

    @property
    def instructions(self) -> float:
        """Of one code; conversions of plain unpacking count as four, since they run at a quarter of the rate."""
        lines = self.text().count(";") if self.assembly else 2 * 7 * self.codes
        return lines / (2 * self.codes)

    def function(self) -> Generated:
        """`unpack(words, offset, scale)`: words [B, 256] as numbers [B, 256, 2] or, four a word, [B, 256, 2, 2]."""
        parts = tuple(f"part{i}" for i in range(self.codes))
        body = self._of_assembly(parts) if self.assembly else self._plain(parts)
        pairs = [f"tl.join({a}, {b})" for a, b in zip(parts[::2], parts[1::2], strict=True)]
        joined = pairs[0] if len(pairs) == 1 else f"tl.join({', '.join(pairs)})"
        lines = ["def unpack(words, offset, scale):", *(f"    {line}" for line in body), f"    return {joined}"]
        return Generated("unpack", "\n".join(lines) + "\n")

    def _plain(self, parts: Sequence[str]) -> list[str]:
        bits = 16 // self.codes
        lines = []
        for i, part in enumerate(parts):
            lines.append(f"code{i} = (words >> {bits * i}) & {(1 << bits) - 1}")
            level = f"code{i}.to(tl.float32) - offset.to(tl.float32)"
            if self.f8:
                level = f"tm.from_f8(code{i})"
            elif self.codebook:
                level = "tl.zeros((), tl.float32)"
                for code, known in enumerate(self.codebook):
                    level = f"tl.where(code{i} == {code}, {known!r}, {level})"
            scaled = f"({level}) * scale.to(tl.float32)" if self.scaled else f"({level})"
            lines.append(f"{part} = ({scaled}).to(tl.{TRITON_DTYPE[self.dtype]})")
        return lines

    def _of_assembly(self, parts: Sequence[str]) -> list[str]:
        outputs = ",".join("=&r" for _ in parts)
        dtypes = ", ".join(f"tl.{TRITON_DTYPE[self.dtype]}" for _ in parts)
        return [
            f"{', '.join(parts)} = tl.inline_asm_elementwise(",
            f"    {self.text()!r},",
            f'    "{outputs},r,r,r", [words, offset, scale], dtype=({dtypes}), is_pure=True, pack=2,',
            ")",
        ]

    def text(self) -> str:
        """The PTX: results in $0 up to $(codes - 1), then two words, their offsets and scales."""
        word = f"${self.codes}"
        if self.codebook:
            lines = _looked_up(word, self.codebook, self.dtype)
        elif self.f8:
            lines = _converted(word) if self.converts and self.dtype is DType.f16 else _refielded(word, self.dtype)
        elif self.codes == 4:
            lines = _nibbles(word, self.dtype)
        else:
            lines = _bytes_of_f16(word) if self.dtype is DType.f16 else _bytes_of_bf16(word)
        offset, scale = f"${self.codes + 1}", f"${self.codes + 2}"
        for i in range(self.codes):
            if not self.levels:
                lines.append(_less(f"${i}", offset, self.dtype))
            if self.scaled:
                lines.append(_times(f"${i}", scale, self.dtype))
        constants = _OF_BF16 if self.dtype is DType.bf16 else ()
        return "\n".join(["{", *constants, *lines, "}"])


def _nibbles(word: str, dtype: DType) -> list[str]:
    magic = f"0x{_MAGIC_BITS[dtype]:08X}"
    lines = [".reg .b32 t;", f"lop3.b32 $0, {word}, 0x000F000F, {magic}, {_AND_OR};"]
    for i in range(1, 4):
        lines += [f"shr.u32 t, {word}, {4 * i};", f"lop3.b32 ${i}, t, 0x000F000F, {magic}, {_AND_OR};"]
    return lines


def _bytes_of_f16(word: str) -> list[str]:
    """Bytes of both words beside the upper byte of 1024."""
    return [f"prmt.b32 $0, {word}, 0x64646464, 0x4240;", f"prmt.b32 $1, {word}, 0x64646464, 0x4341;"]


def _bytes_of_bf16(word: str) -> list[str]:
    """Bytes in the mantissa of 2**23 in f32, which bf16 is too narrow for."""
    lines = [".reg .b32 t, magic;", ".reg .f32 low, high;", "mov.b32 magic, 0x4B000000;"]
    for i in range(2):
        for half, byte in (("low", i), ("high", 2 + i)):
            lines.append(f"prmt.b32 t, {word}, magic, 0x744{byte};")
            lines += [f"mov.b32 {half}, t;", f"sub.f32 {half}, {half}, 0f4B000000;"]
        lines.append(f"cvt.rn.bf16x2.f32 ${i}, high, low;")
    return lines


def _converted(word: str) -> list[str]:
    """Pairs of f8 by the instruction of compute capability 8.9 and above."""
    lines = [".reg .b32 t;", ".reg .b16 pair;", f"prmt.b32 t, {word}, 0, 0x3120;", "cvt.u16.u32 pair, t;"]
    lines += ["cvt.rn.f16x2.e4m3x2 $0, pair;", "shr.u32 t, t, 16;", "cvt.u16.u32 pair, t;"]
    return [*lines, "cvt.rn.f16x2.e4m3x2 $1, pair;"]


def _refielded(word: str, dtype: DType) -> list[str]:
    """The bits of f8 where those of a half lie, times the power of two by which their exponents differ."""
    down, mask, factor = _F8_FIELDS[dtype]
    lines = [".reg .b32 t, u, factor;", f"mov.b32 factor, {factor};"]
    for i in range(2):
        upper = word if i else "u"
        lines += [] if i else [f"shl.b32 u, {word}, 8;"]
        lines += [f"shr.u32 t, {upper}, {down};", f"and.b32 t, t, 0x{mask:08X};"]
        lines += [f"lop3.b32 ${i}, {upper}, 0x80008000, t, {_AND_OR};", _times(f"${i}", "factor", dtype)]
    return lines


def _looked_up(word: str, codebook: Sequence[float], dtype: DType) -> list[str]:
    """Levels by permutations of the bytes of a table: four codes at a time, lower and upper bytes by themselves."""
    lines = [".reg .b32 s, m, p, q, low, high, first<2>, last<2>;"]
    lines += [f"and.b32 s, {word}, 0x77777777;", f"shr.u32 m, {word}, 1;"]
    lines.append(f"lop3.b32 m, m, 0x44444444, 0x32103210, {_AND_OR};")
    for word_index in range(2):
        for plane, name in enumerate(("low", "high")):
            table = _table(codebook, dtype, plane)
            lines += [f"mov.b32 p, {table[0]};", f"prmt.b32 p, p, {table[1]}, s;"]
            lines += [f"mov.b32 q, {table[2]};", f"prmt.b32 q, q, {table[3]}, s;", f"prmt.b32 {name}, p, q, m;"]
        lines.append(f"prmt.b32 first{word_index}, low, high, 0x5140;")
        lines.append(f"prmt.b32 last{word_index}, low, high, 0x7362;")
        if word_index == 0:
            lines += ["shr.u32 s, s, 16;", "shr.u32 m, m, 16;"]
    for i, pair in enumerate(("first", "first", "last", "last")):
        lines.append(f"prmt.b32 ${i}, {pair}0, {pair}1, {'0x7632' if i % 2 else '0x5410'};")
    return lines


def _table(codebook: Sequence[float], dtype: DType, plane: int) -> list[str]:
    """The bytes of one plane of 16 levels, four in each number."""
    levels = [*codebook, *[0.0] * (16 - len(codebook))]
    found = bytes(_half(level, dtype)[plane] for level in levels)
    return [f"0x{struct.unpack('<I', found[i : i + 4])[0]:08X}" for i in range(0, 16, 4)]


def _half(level: float, dtype: DType) -> bytes:
    """The two bytes of a level, rounded to nearest, the lower first."""
    if dtype is DType.f16:
        return struct.pack("<e", level)
    bits = struct.unpack("<I", struct.pack("<f", level))[0]
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def _less(name: str, offset: str, dtype: DType) -> str:
    """Bf16 is subtracted from by a multiplication with -1 and an addition: compute capability 8.0 has no other."""
    if dtype is DType.f16:
        return f"sub.f16x2 {name}, {name}, {offset};"
    return f"fma.rn.bf16x2 {name}, {offset}, minus, {name};"


def _times(name: str, scale: str, dtype: DType) -> str:
    if dtype is DType.f16:
        return f"mul.f16x2 {name}, {name}, {scale};"
    return f"fma.rn.bf16x2 {name}, {name}, {scale}, nothing;"
