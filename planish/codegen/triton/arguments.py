"""What the launches of a call pass, as the plan writes it."""

from collections.abc import Callable, Mapping

from planish.codegen.schedule import Storage
from planish.codegen.select import Choice
from planish.codegen.triton import kernel
from planish.codegen.triton.kernel import Input, Number, Output, Real, Scratch
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, dim_text
from planish.runtime.dims import Dimension
from planish.runtime.launches import Address, Argument, Float, Integer
from planish.runtime.values import ValueId


def dimension(dim: Dim) -> Dimension:
    """A dimension as the plan holds it."""
    return Dimension.parse(dim if isinstance(dim, int) else dim_text(dim))


def addresses(
    choice: Choice, storage: Mapping[Value, Storage], weights: Mapping[Value, int]
) -> Callable[[kernel.Argument], Argument]:
    """What an argument of the call's kernel is in the plan; `weights` gives the byte offset of each weight."""
    call = choice.call
    inputs, results = list(call.inputs.items()), list(call.results.items())

    def given(argument: kernel.Argument) -> Argument:
        match argument:
            case Input(index):
                value, view = inputs[index]
                if value in weights:
                    return Address("weight", None, dimension(weights[value]), view.dtype.value)
                return _address(storage[choice.roots[value]], view.dtype)
            case Output(index):
                value, view = results[index]
                return _address(storage[value], view.dtype)
            case Scratch(offset, dtype):
                return Address("scratch", None, dimension(offset), dtype.value)
            case Number(value, wide):
                return Integer(dimension(value), 8 if wide else 4)
            case Real(value):
                return Float(value)

    return given


def _address(place: Storage, dtype: DType) -> Address:
    if place.kind == "slot":
        return Address("slot", int(place.key), dimension(0), dtype.value)
    return Address("value", ValueId(place.kind, place.key), dimension(0), dtype.value)  # type: ignore[arg-type]
