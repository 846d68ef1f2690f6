"""Places: the index along one axis of each lane of a vector, kept affine for as long as it is."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.codegen.view import shape_groups
from planish.compiler.types import Dim, Shape, same_dim


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Lane l stands at `base + l * step`, or where `irregular` (an int64 vector) says. Scalars are int64."""

    base: "tirx.PrimExpr"
    step: "tirx.PrimExpr | int" = 0
    irregular: "tirx.PrimExpr | None" = None

    @property
    def is_fixed(self) -> bool:
        """Whether every lane stands at `base`."""
        return self.irregular is None and isinstance(self.step, int) and self.step == 0

    @property
    def stride(self) -> "tirx.PrimExpr":
        """The step as int64 TIR."""
        return tirx.const(self.step, "int64") if isinstance(self.step, int) else self.step

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for places that are known to be the same."""
        number = int(self.base.value) if isinstance(self.base, tirx.IntImm) else id(self.base)
        return number, self.step if isinstance(self.step, int) else id(self.step), id(self.irregular)


def fixed(base: "tirx.PrimExpr | int") -> Place:
    """The same index in every lane."""
    return Place(tirx.const(base, "int64") if isinstance(base, int) else base)


def vector_of(place: Place, lanes: int) -> "tirx.PrimExpr":
    """The indices as an int64 vector, a scalar for one lane."""
    if place.irregular is not None:
        return place.irregular
    if lanes == 1:
        return place.base
    return vm.splat(place.base, lanes) if place.is_fixed else T.ramp(place.base, place.stride, lanes)


def shifted(place: Place, by: "tirx.PrimExpr", lanes: int) -> Place:
    """The place plus a scalar."""
    return moved(place, fixed(by), lanes)


def scaled(place: Place, by: "tirx.PrimExpr") -> Place:
    """The place times a scalar."""
    if _number(by) == 1:
        return place
    if place.irregular is not None:
        return Place(place.base, 0, place.irregular * vm.splat(by, vm.lanes_of(place.irregular)))
    return Place(place.base * by, _times(place.step, by))


def moved(place: Place, by: Place, lanes: int) -> Place:
    """The sum of two places."""
    if place.irregular is None and by.irregular is None:
        return Place(_plus(place.base, by.base), _sum(place.step, by.step))
    return Place(place.base, 0, vector_of(place, lanes) + vector_of(by, lanes))


def bounded(place: Place, size: "tirx.PrimExpr", lanes: int) -> "tuple[Place, tirx.PrimExpr]":
    """The place clamped to `0 <= place < size`, and where it was inside."""
    if place.is_fixed:
        i = bind(place.base)
        inside = vm.both(i >= tirx.const(0, "int64"), i < size)
        return fixed(bind(tirx.min(tirx.max(i, tirx.const(0, "int64")), size - 1))), inside
    i = vm.keep(vector_of(place, lanes))
    zero, size = vm.constant(0, "int64", lanes), vm.splat(size, lanes)
    inside = vm.both(i >= zero, i < size)
    low = vm.keep(vm.select(i < zero, zero, i))
    return Place(place.base, 0, vm.keep(vm.select(low >= size, size - vm.like(low, 1), low))), inside


def at_reshape(k: KernelBuilder, new: Shape, old: Shape, index: tuple[Place, ...], lanes: int) -> tuple[Place, ...]:
    """The index into shape `old` of the element at `index` of the same elements under shape `new`."""
    places: list[Place] = []
    for new_axes, old_axes in shape_groups(new, old):
        places += _regrouped(k, [(new[a], index[a]) for a in new_axes], [old[a] for a in old_axes], lanes)
    return tuple(places)


def _regrouped(k: KernelBuilder, new: list[tuple[Dim, Place]], old: list[Dim], lanes: int) -> list[Place]:
    """The places on `old` axes of the element that lies at row-major position `new`."""
    linear = fixed(0)
    for dim, place in new:
        if not same_dim(dim, 1):
            linear = moved(scaled(linear, k.dim(dim)), place, lanes)
    places: list[Place] = []
    wide = [d for d in old if not same_dim(d, 1)]
    for dim in reversed(old):
        if same_dim(dim, 1):
            places.append(fixed(0))
            continue
        wide.pop()
        places.append(linear if not wide else _rest(linear, k.dim(dim), lanes))
        if wide:
            linear = _quotient(linear, k.dim(dim), lanes)
    return places[::-1]


def _rest(place: Place, size: "tirx.PrimExpr", lanes: int) -> Place:
    if place.is_fixed:
        return fixed(bind(tirx.truncmod(place.base, size)))
    return Place(place.base, 0, vm.keep(tirx.truncmod(vector_of(place, lanes), vm.splat(size, lanes))))


def _quotient(place: Place, size: "tirx.PrimExpr", lanes: int) -> Place:
    if place.is_fixed:
        return fixed(bind(tirx.truncdiv(place.base, size)))
    return Place(place.base, 0, vm.keep(tirx.truncdiv(vector_of(place, lanes), vm.splat(size, lanes))))


def _number(x: "tirx.PrimExpr | int") -> int | None:
    if isinstance(x, int):
        return x
    return int(x.value) if isinstance(x, tirx.IntImm) else None


def _times(step: "tirx.PrimExpr | int", by: "tirx.PrimExpr") -> "tirx.PrimExpr | int":
    a, b = _number(step), _number(by)
    if a == 0 or b == 0:
        return 0
    return a * b if a is not None and b is not None else by * step


def _sum(a: "tirx.PrimExpr | int", b: "tirx.PrimExpr | int") -> "tirx.PrimExpr | int":
    left, right = _number(a), _number(b)
    if left is not None and right is not None:
        return left + right
    return b if left == 0 else a if right == 0 else a + b


def _plus(a: "tirx.PrimExpr", b: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return b if _number(a) == 0 else a if _number(b) == 0 else a + b
