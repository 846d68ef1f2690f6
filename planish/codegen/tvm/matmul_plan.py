"""What a product of two activations knows before it is built: its operands as matrices and its block sizes."""

from dataclasses import dataclass, replace

from planish.codegen.call import Call
from planish.codegen.tvm.gemm_tile import lanes_for
from planish.codegen.tvm.isa import Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, Shape, elements

_WANTED_UNITS = 8  # so that a few cores have something to do
_NARROW = 4  # columns up to which the product is computed transposed


@dataclass(frozen=True, slots=True, eq=False)
class ProductPlan:
    """left [batch, m, k] times right [batch, k, n]; `swapped` where that is the transposed product of the call.

    Scratch holds `m` rows of `k` of left (at element 0), panels [n / 2L][k][2L] of right and sums [m][n], all f32, or
    f64 where the operands are.
    """

    call: Call
    isa: Isa
    left: View
    right: View
    swapped: bool
    m: int
    n: int
    k: int

    @classmethod
    def of(cls, call: Call, isa: Isa, rows: int, columns: int, depth: int) -> "ProductPlan":
        """Fit the wanted block sizes to constant ones, smaller where there would be too few units for the cores."""
        left, right = _matrices(call)
        swapped = isinstance(right.shape[-1], int) and right.shape[-1] <= _NARROW and left.shape[-2] != 1
        if swapped:
            left, right = _turned(right), _turned(left)
        (m, k), n = left.shape[-2:], right.shape[-1]
        panel = 2 * lanes_for(isa, left.dtype)
        rows, columns, depth = _fit(rows, m, 1), _fit(columns, n, panel), _fit(depth, k, 1)
        plan = cls(call, isa, left, right, swapped, rows, columns, depth)
        while (units := plan.constant_units) is not None and units < _WANTED_UNITS and max(plan.m, plan.n) > 32:
            wide = plan.n > plan.m and plan.n > panel
            half = _fit(plan.n // 2, plan.n, panel) if wide else plan.m // 2
            if not wide and plan.m <= 32:
                break
            plan = replace(plan, n=half) if wide else replace(plan, m=half)
        return plan

    @property
    def dtype(self) -> DType:
        """What products are summed in."""
        return DType.f64 if self.left.dtype is DType.f64 else DType.f32

    @property
    def lanes(self) -> int:
        """Sums in a register."""
        return lanes_for(self.isa, self.dtype)

    @property
    def batch(self) -> Shape:
        return self.left.shape[:-2]

    @property
    def constant_units(self) -> int | None:
        """Blocks of the result, where that is known."""
        units = elements((*self.batch, self.left.shape[-2], self.right.shape[-1]))
        if not isinstance(units, int):
            return None
        batch, m, n = elements(self.batch), self.left.shape[-2], self.right.shape[-1]
        assert isinstance(batch, int)
        assert isinstance(m, int)
        assert isinstance(n, int)
        return batch * -(-m // self.m) * -(-n // self.n)

    @property
    def pitch(self) -> int:
        """Elements from one copied row of left to the next: not a power of two, so that rows spread over a cache."""
        return -(-self.k // 16) * 16 + 16

    @property
    def right_place(self) -> int:
        return self.m * self.pitch

    @property
    def sums_place(self) -> int:
        return self.right_place + self.n * self.k

    @property
    def scratch_bytes(self) -> int:
        return self.dtype.itemsize * (self.sums_place + self.m * self.n)

    @property
    def accumulates(self) -> bool:
        """Whether K may take more than one step."""
        depth = self.left.shape[-1]
        return not isinstance(depth, int) or depth > self.k

    @property
    def operands(self) -> tuple[Value, Value]:
        """The values that left and right read."""
        first, second = self.call.anchor.operands[:2]
        return (second, first) if self.swapped else (first, second)

    @property
    def bias(self) -> Value | None:
        return self.call.anchor.operands[2] if len(self.call.anchor.operands) > 2 else None


def _matrices(call: Call) -> tuple[View, View]:
    """Both operands as views [batch, rows, columns] of one batch shape."""
    x, y = (call.inputs[value] for value in call.anchor.operands[:2])
    if call.anchor.op is ops.linear:
        y = y.transpose((1, 0))
        x = x if len(x.shape) > 1 else replace(x, shape=(1, *x.shape), strides=(0, *x.strides))
        batch = x.shape[:-2]
    else:
        batch = call.anchor.types[0].shape[:-2]
    return _batched(x, batch), _batched(y, batch)


def _batched(view: View, batch: Shape) -> View:
    """The view repeated over `batch`; its two matrix axes stay as they are."""
    outer = replace(view, shape=view.shape[:-2], strides=view.strides[:-2]).expand(batch)
    return replace(view, shape=(*batch, *view.shape[-2:]), strides=(*outer.strides, *view.strides[-2:]))


def _turned(view: View) -> View:
    axes = range(len(view.shape))
    return view.transpose((*axes[:-2], axes[-1], axes[-2]))


def _fit(wanted: int, dim: Dim, multiple: int) -> int:
    size = min(wanted, dim) if isinstance(dim, int) else wanted
    return -(-size // multiple) * multiple
