"""Views: where the elements of a value lie in its buffer, so that transposes, slices and reshapes cost nothing."""

from dataclasses import dataclass, replace
from itertools import accumulate

from planish.compiler.types import Dim, DType, Shape, TensorType, dim_text, elements, same_dim, simplify


@dataclass(frozen=True, slots=True)
class View:
    """Element `[i, j, ...]` lies at `offset + i * strides[0] + j * strides[1] + ...`, all counted in elements."""

    shape: Shape
    strides: Shape
    offset: Dim
    dtype: DType

    @classmethod
    def contiguous(cls, of: TensorType) -> "View":
        return cls(of.shape, contiguous_strides(of.shape), 0, of.dtype)

    @property
    def is_contiguous(self) -> bool:
        wanted = contiguous_strides(self.shape)
        return same_dim(self.offset, 0) and all(
            d == 1 or same_dim(s, w) for d, s, w in zip(self.shape, self.strides, wanted, strict=True)
        )

    def transpose(self, order: tuple[int, ...]) -> "View":
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def slice(self, axis: int, start: Dim, step: int, count: Dim) -> "View":
        """`count` elements of `axis` from `start`, `step` apart."""
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        strides = (*self.strides[:axis], simplify(self.strides[axis] * step), *self.strides[axis + 1 :])
        return View(shape, strides, simplify(self.offset + start * self.strides[axis]), self.dtype)

    def expand(self, shape: Shape) -> "View":
        """The view broadcast to `shape`: repeated axes get stride 0."""
        new = len(shape) - len(self.shape)
        kept = zip(self.shape, shape[new:], self.strides, strict=True)
        strides = (0,) * new + tuple(0 if d == 1 and not same_dim(s, 1) else stride for d, s, stride in kept)
        return View(shape, strides, self.offset, self.dtype)

    def reshape(self, shape: Shape) -> "View | None":
        """The same elements under another shape, or None where that needs a copy."""
        old = [(d, s) for d, s in zip(self.shape, self.strides, strict=True) if not same_dim(d, 1)]
        strides: list[Dim] = []
        at = 0
        for dim in shape:
            if same_dim(dim, 1):
                strides.append(0)
                continue
            if at == len(old):
                return None
            stride = self._split(old, at, dim)
            if stride is None:
                return None
            strides.append(stride)
            if same_dim(old[at][0], 1):
                at += 1
        return View(shape, tuple(strides), self.offset, self.dtype) if at == len(old) else None

    @staticmethod
    def _split(old: list[tuple[Dim, Dim]], at: int, dim: Dim) -> Dim | None:
        """Take `dim` from the front of the old axes at `at`, merging axes that lie one after another as needed."""
        size, stride = old[at]
        while (rest := exact_quotient(size, dim)) is None:
            if at + 1 == len(old) or not same_dim(stride, simplify(old[at + 1][0] * old[at + 1][1])):
                return None
            size, stride = simplify(size * old[at + 1][0]), old[at + 1][1]
            del old[at]
        old[at] = (rest, stride)
        return simplify(stride * rest)

    def collapse(self, axes: int) -> "View | None":
        """The first `axes` axes as one (rank 1 + the rest), or None where they do not lie at one stride."""
        return self.reshape((elements(self.shape[:axes]), *self.shape[axes:]))

    @property
    def extent(self) -> Dim:
        """Elements from the start of the buffer to the last one seen, plus one."""
        last = sum(((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True)), start=self.offset + 0)
        return simplify(last + 1)

    def __str__(self) -> str:
        dims = ", ".join(f"{dim_text(d)}:{dim_text(s)}" for d, s in zip(self.shape, self.strides, strict=True))
        return f"{self.dtype}[{dims}]" + ("" if same_dim(self.offset, 0) else f"+{dim_text(self.offset)}")


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides in elements."""
    sizes = list(accumulate(reversed(shape[1:]), lambda a, b: simplify(a * b), initial=1))
    return tuple(reversed(sizes)) if shape else ()


def exact_quotient(size: Dim, dim: Dim) -> Dim | None:
    """`size / dim` where that is a whole number for all sizes, else None."""
    if isinstance(size, int) and isinstance(dim, int):
        return size // dim if size % dim == 0 else None
    import sympy

    quotient = sympy.cancel(sympy.sympify(size) / dim)
    top, bottom = sympy.fraction(sympy.together(quotient))
    return simplify(top) if bottom == 1 else None


def shape_groups(new: Shape, old: Shape) -> list[tuple[range, range]]:
    """Runs of axes of both shapes that hold the same elements, as short as possible."""
    cuts = [
        (i, j)
        for i in range(len(new) + 1)
        for j in range(len(old) + 1)
        if same_dim(elements(new[:i]), elements(old[:j]))
    ]
    chain, at = [], (0, 0)
    for i, j in [*cuts[1:], (len(new), len(old))]:
        if i >= at[0] and j >= at[1] and (i, j) != at:
            chain.append((range(at[0], i), range(at[1], j)))
            at = (i, j)
    return chain
