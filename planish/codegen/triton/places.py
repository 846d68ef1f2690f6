"""Where in a tensor a block of elements lies, as Triton text: indices by axis, and addresses through views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from planish.codegen.view import View, shape_groups
from planish.compiler.types import Dim, Shape, elements, same_dim, same_shape, simplify

DimText: TypeAlias = Callable[[Dim], str]


@dataclass(frozen=True, slots=True)
class Run:
    """A row-major index over neighbouring axes of sizes `shape`, as the text of an integer block."""

    text: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Part:
    """One axis of a run: its `axis`-th."""

    run: Run
    axis: int


Place: TypeAlias = Part | str


def axis_text(place: Place, dim: DimText) -> str:
    """The index along one axis."""
    if isinstance(place, str):
        return place
    run, inner = place.run, elements(place.run.shape[place.axis + 1 :])
    text = run.text if same_dim(inner, 1) else f"({run.text} // {dim(inner)})"
    outermost = same_dim(elements(run.shape[: place.axis]), 1)
    return text if outermost else f"({text} % {dim(run.shape[place.axis])})"


def parts(text: str, shape: Shape) -> tuple[Place, ...]:
    """The places along all axes of a run."""
    if len(shape) == 1:
        return (text,)
    return tuple("0" if same_dim(d, 1) else Part(Run(text, shape), i) for i, d in enumerate(shape))


def linear_text(places: Sequence[Place], shape: Shape, dim: DimText) -> str:
    """The row-major index of the element at `places` of axes of sizes `shape`."""
    wide = [(p, d) for p, d in zip(places, shape, strict=True) if not same_dim(d, 1)]
    if not wide:
        return "0"
    if (run := _whole_run(wide)) is not None:
        return run.text
    text = axis_text(wide[0][0], dim)
    for place, size in wide[1:]:
        text = f"({text} * {dim(size)} + {axis_text(place, dim)})"
    return text


def address_text(view: View, places: Sequence[Place], dim: DimText) -> str:
    """The element offset of `view[places]`; runs whose axes lie at one stride are not taken apart."""
    terms = [] if same_dim(view.offset, 0) else [dim(view.offset)]
    axes = [
        (p, d, s)
        for p, d, s in zip(places, view.shape, view.strides, strict=True)
        if not same_dim(d, 1) and not same_dim(s, 0)
    ]
    while axes:
        count = _together(axes)
        text, stride = (axis_text(axes[0][0], dim), axes[0][2]) if count == 1 else (_run(axes).text, axes[count - 1][2])
        if text != "0":
            terms.append(text if same_dim(stride, 1) else f"{text} * {dim(stride)}")
        del axes[:count]
    return " + ".join(terms) if terms else "0"


def _run(axes: Sequence[tuple[Place, Dim, Dim]]) -> Run:
    place = axes[0][0]
    assert isinstance(place, Part)
    return place.run


def _together(axes: Sequence[tuple[Place, Dim, Dim]]) -> int:
    """How many of the first axes are all of one run and lie at one stride."""
    if not isinstance(axes[0][0], Part):
        return 1
    wide = [d for d in axes[0][0].run.shape if not same_dim(d, 1)]
    mine = axes[: len(wide)]
    if _whole_run([(p, d) for p, d, _ in mine]) is None:
        return 1
    dense = all(same_dim(a[2], simplify(b[1] * b[2])) for a, b in pairwise(mine))
    return len(mine) if dense else 1


def _whole_run(wide: Sequence[tuple[Place, Dim]]) -> Run | None:
    """The run of which the axes are all that are wider than 1, in order."""
    first = wide[0][0]
    if not isinstance(first, Part):
        return None
    run = first.run
    mine = [i for i, d in enumerate(run.shape) if not same_dim(d, 1)]
    if len(mine) != len(wide):
        return None
    fits = all(
        isinstance(p, Part) and p.run == run and p.axis == i and same_dim(d, run.shape[i])
        for (p, d), i in zip(wide, mine, strict=True)
    )
    return run if fits else None


def regrouped(places: Sequence[Place], new: Shape, old: Shape, dim: DimText) -> tuple[Place, ...]:
    """The places in shape `old` of the elements at `places` of the same elements under shape `new`."""
    found: list[Place] = []
    for new_axes, old_axes in shape_groups(new, old):
        mine = [places[a] for a in new_axes]
        shape, wanted = tuple(new[a] for a in new_axes), tuple(old[a] for a in old_axes)
        if same_shape(shape, wanted):
            found += mine
        elif wanted:
            found += parts(linear_text(mine, shape, dim), wanted)
    return tuple(found)
