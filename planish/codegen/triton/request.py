"""From a launch of a call to what the compiler is asked for, and to the arguments that a launch passes."""

from collections.abc import Iterator, Mapping

import sympy

from planish.codegen.call import Call
from planish.codegen.triton.compile import Request, Type
from planish.codegen.triton.kernel import Argument, Input, Launch, Number, Output, Real, Scratch, Variant
from planish.compiler.types import Dim, DType

_POINTEE = {
    DType.f64: "fp64",
    DType.f32: "fp32",
    DType.f16: "fp16",
    DType.bf16: "bf16",
    DType.f8: "u8",
    DType.i64: "i64",
    DType.i32: "i32",
    DType.i16: "i16",
    DType.i8: "i8",
    DType.u8: "u8",
    DType.bool: "u8",
}
_ALIGNED = 16


def request_of(call: Call, launch: Launch, variant: Variant) -> Request:
    """What is compiled for one variant. Integers that are known are constants of the kernel."""
    known = {name: value for name, a in launch.arguments.items() if (value := _known(a)) is not None}
    passed = {name: a for name, a in launch.arguments.items() if name not in known}
    names = list(launch.function.arg_names)
    assert sorted(passed, key=names.index) == list(passed), (
        "the arguments of a launch are in the order of its parameters"
    )
    return Request(
        module=launch.function.fn.__module__,
        name=launch.function.fn.__name__,
        types={name: _type(call, a) for name, a in passed.items()},
        constants={**known, **launch.constants, **variant.constants},
        aligned=tuple(path for name, a in passed.items() for path in _aligned((names.index(name),), a)),
        num_warps=variant.num_warps,
        num_stages=variant.num_stages,
    )


def passed(launch: Launch) -> tuple[Argument, ...]:
    """The arguments of a launch, flat and in the order in which the compiled kernel takes them."""
    found: list[Argument] = []
    for argument in launch.arguments.values():
        if isinstance(argument, tuple):
            found += argument
        elif _known(argument) is None:
            found.append(argument)
    return tuple(found)


def _known(argument: Argument | tuple[Argument, ...]) -> int | None:
    value = argument.value if isinstance(argument, Number) else None
    return value if isinstance(value, int) else None


def _type(call: Call, argument: Argument | tuple[Argument, ...]) -> Type:
    if isinstance(argument, tuple):
        return tuple(_plain_type(call, a) for a in argument)
    return _plain_type(call, argument)


def _plain_type(call: Call, argument: Argument) -> str:
    match argument:
        case Input(index):
            return f"*{_POINTEE[list(call.inputs.values())[index].dtype]}"
        case Output(index):
            return f"*{_POINTEE[list(call.results.values())[index].dtype]}"
        case Scratch(_, dtype):
            return f"*{_POINTEE[dtype]}"
        case Number(_, wide):
            return "i64" if wide else "i32"
        case Real():
            return "fp32"


def _aligned(path: tuple[int, ...], argument: Argument | tuple[Argument, ...]) -> Iterator[tuple[int, ...]]:
    if isinstance(argument, tuple):
        for i, member in enumerate(argument):
            yield from _aligned((*path, i), member)
    elif _is_aligned(argument):
        yield path


def _is_aligned(argument: Argument) -> bool:
    match argument:
        case Number(value):
            return _is_multiple(value)
        case Scratch(byte_offset):
            return _is_multiple(byte_offset)
        case Real():
            return False
    return True


def _is_multiple(dim: Dim) -> bool:
    """Whether the dimension is a multiple of 16 for all sizes."""
    if isinstance(dim, int):
        return dim % _ALIGNED == 0
    terms: Mapping[sympy.Expr, sympy.Expr] = sympy.expand(dim).as_coefficients_dict()
    return all(c.is_Integer and int(c) % _ALIGNED == 0 for c in terms.values())
