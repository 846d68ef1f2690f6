"""What a compiled kernel takes at a launch, read from its assembly, against what a launch passes."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from planish.codegen.triton.compile import Type

_BYTES: Final = {"i32": 4, "fp32": 4, "i64": 8}
_POINTER: Final = 8
_TRITONS: Final = 2  # pointers to memory that Triton allocates at a launch, global and for profiles, behind all others


def refuse_parameters(types: Sequence["Type"], assembly: str, backend: str) -> str | None:
    """Why a launch with arguments of these types of Triton cannot start the kernel, or None.

    A driver reads as many arguments as the kernel has parameters, whatever was passed: a version of Triton that appends
    others than those of `packed` (planish/runtime/device/launcher.py) would make it read what is not there.
    """
    passed = [_bytes(part) for each in types for part in ((each,) if isinstance(each, str) else each)]
    wanted = [*passed, *[_POINTER] * _TRITONS]
    found = _of_ptx(assembly) if backend == "cuda" else _of_amdgcn(assembly)
    if found == wanted:
        return None
    return f"the compiled kernel takes parameters of {found} bytes, a launch passes {wanted}"


def _bytes(name: str) -> int:
    return _POINTER if name.startswith("*") else _BYTES[name]


def _of_ptx(assembly: str) -> list[int]:
    head = assembly.partition(".entry")[2].partition(")")[0]
    return [int(bits) // 8 for bits in re.findall(r"\.param\s+\.[a-z](\d+)", head)]


def _of_amdgcn(assembly: str) -> list[int]:
    """Those that the code object's metadata lists; what is hidden there the runtime passes by itself."""
    listed = assembly.partition("amdhsa.kernels:")[2].partition(".args:")[2].partition(".group_segment_fixed_size:")[0]
    found = re.findall(r"\.size:\s+(\d+)\s+\.value_kind:\s+(\w+)", listed)
    return [int(size) for size, kind in found if not kind.startswith("hidden_")]
