"""Kernels of a call: the launches that compute it, each with the variants among which the cost model chooses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy

from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType

if TYPE_CHECKING:
    from triton import JITFunction

    from planish.codegen.triton.sources import Existing, Generated


@dataclass(frozen=True, slots=True)
class Input:
    """The address of the memory of the call's input `index`, in the order of `Call.inputs`."""

    index: int


@dataclass(frozen=True, slots=True)
class Output:
    """The address of the memory of the call's result `index`, in the order of `Call.results`."""

    index: int = 0


@dataclass(frozen=True, slots=True)
class Scratch:
    """The address `byte_offset` into the scratch memory of the call, seen as elements of `dtype`."""

    byte_offset: Dim
    dtype: DType


@dataclass(frozen=True, slots=True)
class Number:
    """An integer that follows from the sizes: 32 bits wide, or 64 with `wide`."""

    value: Dim
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Real:
    """A 32-bit floating-point number."""

    value: float


Argument: TypeAlias = Input | Output | Scratch | Number | Real
Constant: TypeAlias = "int | float | bool | str | Generated | Existing | None"


@dataclass(frozen=True, slots=True)
class Work:
    """What one block of a variant does: `flops` on operands of `dtype`, and bytes moved from and to main memory.

    `read_bytes` counts what the block loads; `unique_read_bytes` is its share of what must come from main memory when
    every cache hits. `instructions` counts what lies beside the arithmetic, one for each value: unpacking, say.
    `operand_bytes` counts what matrix units draw from shared memory.
    """

    flops: float
    dtype: DType
    read_bytes: float
    unique_read_bytes: float
    write_bytes: float
    instructions: float = 0.0
    operand_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile a launch: its constants, its grid over the named sizes, and how a block runs.

    `work` gives the work of one block from the values of the named sizes.
    """

    constants: Mapping[str, Constant]
    grid: tuple[Dim, Dim, Dim]
    work: Callable[[Mapping[str, int]], Work] = field(compare=False)
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True, slots=True)
class Regime:
    """The variants for sizes up to `most` of the launch's `size`; None is without limit. One of them is chosen."""

    most: int | None
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel launch. `arguments` are by parameter name, in the order of the kernel's signature; a tuple is one
    parameter that holds several. `constants` hold for all variants. The regime is chosen by the value of `size`."""

    function: "JITFunction"
    arguments: Mapping[str, Argument | tuple[Argument, ...]]
    constants: Mapping[str, Constant]
    regimes: tuple[Regime, ...]
    size: Dim = 1


@dataclass(frozen=True, slots=True)
class Packing:
    """How a weight is laid out for a kernel; equal `layout` texts share it.

    `pack` turns the array into the one that is stored. bf16 weights reach it as uint16 bits. Where that holds the rows
    of the array one behind another, `order` puts them in this order, with zeros where rows are filled up.
    """

    layout: str
    pack: Callable[[numpy.ndarray], numpy.ndarray] = field(compare=False)
    order: Callable[[numpy.ndarray], numpy.ndarray] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """What computes a call: launches one after another, with scratch memory that they share.

    `packings` maps inputs of the call, which must be weights, to the layout that the kernel reads them in.
    """

    launches: tuple[Launch, ...]
    scratch_bytes: Dim = 0
    packings: Mapping[Value, Packing] = field(default_factory=dict)
