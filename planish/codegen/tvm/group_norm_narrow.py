"""Group normalization with groups narrower than a vector: several groups side by side in the lanes of one."""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Index, integer, nest, product, units
from planish.compiler.ir import Value

_WAYS = 4  # positions at a time, so that additions need not wait for each other


def narrow_lanes(call: Call, isa: Isa) -> int | None:
    """Lanes of vectors that hold whole groups and divide the channels; None where groups do not fit so."""
    shape, groups = call.anchor.types[0].shape, call.anchor.attrs["groups"]
    assert isinstance(groups, int)
    assert isinstance(shape[-1], int)
    width, lanes = shape[-1] // groups, isa.lanes
    if width & (width - 1) or width >= lanes or len(shape) < 3:
        return None
    while shape[-1] % lanes:
        lanes //= 2
    return lanes if lanes >= max(width, isa.lanes // 4) else None


def build_narrow(call: Call, isa: Isa, lanes: int) -> Kernel:
    """The kernel of a call that `narrow_lanes` has found lanes for."""
    shape, eps = call.anchor.types[0].shape, call.anchor.attrs["eps"]
    assert isinstance(shape[-1], int)
    assert isinstance(eps, float)
    with kernel(call, isa) as (k, done):
        units(k, (shape[0], shape[-1] // lanes), lambda u: _Channels(k, u[0], bind(u[1] * lanes), lanes).normalize(eps))
    return Kernel(done[0], 0)


class _Channels:
    """The channels of one vector, from `first`, of one sample."""

    def __init__(self, k: KernelBuilder, sample: "tirx.PrimExpr", first: "tirx.PrimExpr", lanes: int) -> None:
        self.k, self.sample, self.first, self.lanes = k, sample, first, lanes
        shape, groups = k.call.anchor.types[0].shape, k.call.anchor.attrs["groups"]
        assert isinstance(groups, int)
        assert isinstance(shape[-1], int)
        self.spatial, self.width = shape[1:-1], shape[-1] // groups
        self.count = product(k, self.spatial) * integer(self.width)

    def normalize(self, eps: float) -> None:
        """Write the elements."""
        mean = self._mean(self._read)
        variance = self._mean(lambda index: _square(self._read(index) - mean))
        scale = vm.keep(vm.like(variance, 1.0) / vm.square_root(variance + vm.like(variance, eps)))
        inputs: tuple[Value | None, ...] = (*self.k.call.anchor.inputs, None, None)
        scale = scale if inputs[1] is None else vm.keep(scale * self._parameter(inputs[1]))
        shift = None if inputs[2] is None else vm.keep(self._parameter(inputs[2]))

        def write(index: Index) -> None:
            value = (self._read(index) - mean) * scale
            self._write(index, vm.keep(value if shift is None else value + shift))

        nest(self.spatial, self.k, write)

    def _mean(self, of: "Callable[[Index], tirx.PrimExpr]") -> "tirx.PrimExpr":
        """The mean over positions and the channels of each group, in every lane of the group."""
        lanes = ramp(tirx.const(0, "int32"), self.lanes)
        totals = [T.alloc_buffer((self.lanes,), "float32") for _ in range(_WAYS)]
        for total in totals:
            T.buffer_store(total, vm.constant(0.0, "float32", self.lanes), [lanes])

        def add(way: int, index: Index) -> None:
            T.buffer_store(totals[way], totals[way][lanes] + of(index), [lanes])

        nest(self.spatial[:-1], self.k, lambda lead: self._row(lead, add))
        total = vm.keep((totals[0][lanes] + totals[1][lanes]) + (totals[2][lanes] + totals[3][lanes]))
        step = 1
        while step < self.width:
            total = vm.keep(total + tirx.Shuffle([total, total], [i ^ step for i in range(self.lanes)]))
            step *= 2
        return vm.keep(total / vm.splat(vm.cast(self.count, "float32"), self.lanes))

    def _row(self, lead: Index, add: Callable[[int, Index], None]) -> None:
        size = bind(self.k.dim(self.spatial[-1]))
        whole = bind(T.truncdiv(size, integer(_WAYS)))
        with T.serial(whole) as i:
            for way in range(_WAYS):
                add(way, (*lead, bind(i * _WAYS + way)))
        with T.serial(bind(size - whole * _WAYS)) as rest:
            add(0, (*lead, bind(whole * _WAYS + rest)))

    def _read(self, index: Index) -> "tirx.PrimExpr":
        place = (self.sample, *index, self.first)
        return vm.keep(Expression(self.k).at(self.k.call.anchor.operands[0], place, self.lanes))

    def _parameter(self, value: Value) -> "tirx.PrimExpr":
        return Expression(self.k).at(value, (self.first,), self.lanes)

    def _write(self, index: Index, value: "tirx.PrimExpr") -> None:
        k, place = self.k, (self.sample, *index, self.first)
        out = Expression(k, {k.call.anchor.values[0]: lambda *_: value}).at(k.call.output, place, self.lanes)
        store(k, k.call.view, place, out, self.lanes)


def _square(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    x = vm.keep(x)
    return x * x
