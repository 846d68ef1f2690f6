"""Codes and numbers as expressions: what fragments compute of quantized values."""

from typing import TYPE_CHECKING

from planish.codegen.attributes import integer_of
from planish.codegen.triton.places import Place
from planish.compiler.ir import Node, Value
from planish.compiler.ops.cache import groups_of_half
from planish.compiler.ops.quantize import largest_code, middle
from planish.compiler.types import DType, same_dim

if TYPE_CHECKING:
    from planish.codegen.triton.fragment import _Writer


def dequantize(w: "_Writer", node: Node, places: tuple[Place, ...]) -> str:
    """(code - zero) * scale; a codebook is a chain of choices, which 16 levels allow."""
    codes, scale, *zero = node.operands
    group = integer_of(node, "group")
    part = w.axis(places[-1]) if group == 1 else f"({w.axis(places[-1])} // {group})"
    grouped = (*places[:-1], "0" if same_dim(scale.shape[-1], 1) else part)
    code, book, bits = w.at(codes, places), node.attrs["codebook"], integer_of(node, "bits")
    if book:
        assert isinstance(book, tuple)
        level = w.keep(f"tl.full((), {book[0]!r}, tl.float32)")
        for i, known in enumerate(book[1:], start=1):
            level = w.keep(f"tl.where({code} == {i}, {known!r}, {level})")
    elif codes.dtype is DType.f8:
        level = w.keep(f"tm.from_f8({code})")
    else:
        centre = w.at(zero[0], grouped) + ".to(tl.float32)" if zero else str(float(middle(codes.dtype, bits)))
        level = w.keep(f"{code}.to(tl.float32) - {centre}")
    return w.keep(f"{level} * {w.at(scale, grouped)}")


def unpack_groups(w: "_Writer", node: Node, places: tuple[Place, ...]) -> str:
    """code * scale + smallest, of the nibble of this half; the two numbers of a group lie in bytes behind the codes."""
    packed, width, group = node.operands[0], integer_of(node, "width"), integer_of(node, "group")
    half, groups, own = width // 2, groups_of_half(width, group), w.axis(places[-1])
    upper = w.keep(f"{own} >= {half}")
    inside = w.keep(f"tl.minimum(tl.where({upper}, {own} - {half}, {own}), {half - 1})")
    byte = w.at(packed, (*places[:-1], inside))
    code = w.keep(f"tl.where({upper}, {byte} >> 4, {byte} & 15).to(tl.float32)")
    first = w.keep(f"{half} + ({inside} // {group} + tl.where({upper}, {groups}, 0)) * 4")
    scale, smallest = (_half_at(w, packed, places[:-1], f"({first} + {at})") for at in (0, 2))
    return w.keep(f"{code} * {scale} + {smallest}")


def _half_at(w: "_Writer", packed: Value, lead: tuple[Place, ...], first: str) -> str:
    """The f16 number whose bytes lie at the place `first` and after it, as f32."""
    low, high = (f"{w.at(packed, (*lead, place))}.to(tl.uint16)" for place in (first, f"({first} + 1)"))
    return w.keep(f"({low} | ({high} << 8)).to(tl.float16, bitcast=True).to(tl.float32)")


def quantize(w: "_Writer", node: Node, places: tuple[Place, ...]) -> str:
    """x / scale rounded to the codes, within their range; 0 where the scale is 0."""
    x, scale = node.operands
    dtype, group = node.types[0].dtype, integer_of(node, "group")
    limit = float(largest_code(dtype, integer_of(node, "bits")))
    part = w.axis(places[-1]) if group == 1 else f"({w.axis(places[-1])} // {group})"
    grouped = (*places[:-1], "0" if same_dim(scale.shape[-1], 1) else part)
    size = w.known[scale] if scale in w.known else w.at(scale, grouped)  # a kernel gives it for each element
    inverse = w.keep(f"tl.where({size} == 0, 0.0, 1.0 / {size})")
    level = f"{w.at(x, places)} * {inverse}"
    if dtype is DType.f8:
        return w.keep(f"tm.to_f8(tm.minimum(tm.maximum({level}, -{limit}), {limit}))")
    return w.keep(f"tl.minimum(tl.maximum(tm.round_even({level}), -{limit}), {limit}).to(tl.int8)")
