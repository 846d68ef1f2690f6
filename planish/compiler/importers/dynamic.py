"""Named dynamic sizes: what the user declares for inputs, and what torch.export is told and answers."""

import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from planish.compiler.types import Size
from planish.errors import ImportGraphError, nearest

UNBOUNDED = 2**31 - 1
Axes: TypeAlias = Mapping[int, "Declared"]


@dataclass(frozen=True, slots=True)
class Declared:
    """One dynamic axis as declared: a name with bounds where the user gave them, or a Dim of torch to pass on.

    `hint` is the usual size where the user gave one, `example` that of the example inputs. `open_below` says that the
    lower bound is ours to raise, since the user gave none; `open_above` likewise that the upper one is ours to lower.
    """

    name: str
    low: int | None = None
    high: int | None = None
    hint: int | None = None
    example: int | None = None
    open_below: bool = False
    open_above: bool = False
    passed: Any = None

    @property
    def minimum(self) -> int:
        """The least size that torch.export may be told, since it specialises 0 and 1."""
        return max(2, self.low or 0)

    @property
    def maximum(self) -> int | None:
        """The greatest size that torch.export is told: above the least, or it would be fixed."""
        return None if self.high is None else max(self.high, self.minimum + 1)


def declared_axes(named: Mapping[str, Any], dynamic: Any) -> list[Axes]:
    """The dynamic axes of every leaf of the arguments, in the order in which torch flattens them.

    `dynamic` maps argument names to `{axis: declaration}` or to containers of those that follow the argument; a tuple
    or list goes with the arguments in order. Raises ImportGraphError naming the argument and what it may be.
    """
    if dynamic is None:
        dynamic = {}
    if isinstance(dynamic, tuple | list):
        if len(dynamic) > len(named):
            raise ImportGraphError(f"dynamic has {len(dynamic)} entries for the {len(named)} given inputs")
        dynamic = dict(zip(named, dynamic, strict=False))
    if not isinstance(dynamic, Mapping):
        raise ImportGraphError(f"dynamic is a dict such as {{'x': {{0: 'batch'}}}}, not {dynamic!r}")
    for name in dynamic:
        if name not in named:
            raise ImportGraphError(f"dynamic names '{name}', which is no given input{nearest(name, named)}")
    return [axes for name, value in named.items() for axes in _axes(value, dynamic.get(name), name)]


def _axes(value: Any, declared: Any, path: str) -> Iterator[Axes]:
    if isinstance(value, torch.Tensor):
        yield _tensor_axes(value, declared, path)
        return
    leaves = pytree.tree_leaves(value)
    if declared is None or not leaves or leaves[0] is value:
        yield from ({} for _ in leaves)
        return
    children, _ = pytree.tree_flatten(value, is_leaf=lambda v: v is not value)
    keys = list(value) if isinstance(value, Mapping) else list(range(len(children)))
    if isinstance(declared, tuple | list):
        declared = dict(enumerate(declared))
    if not isinstance(declared, Mapping):
        raise ImportGraphError(f"dynamic of '{path}' follows the {type(value).__name__} given there, not {declared!r}")
    for key in declared:
        if key not in keys:
            known = nearest(str(key), map(str, keys))
            raise ImportGraphError(f"dynamic of '{path}' names {key!r}, which is not in it{known}")
    for key, child in zip(keys, children, strict=True):
        yield from _axes(child, declared.get(key), f"{path}[{key!r}]")


def _tensor_axes(value: torch.Tensor, declared: Any, path: str) -> Axes:
    if declared is None:
        return {}
    if isinstance(declared, tuple | list):
        declared = dict(enumerate(declared))
    if not isinstance(declared, Mapping):
        raise ImportGraphError(f"dynamic of '{path}' is {{axis: name}}, such as {{0: 'batch'}}, not {declared!r}")
    found: dict[int, Declared] = {}
    for axis, size in declared.items():
        if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
            raise ImportGraphError(f"dynamic of '{path}' names axis {axis!r}; it has axes 0..{value.ndim - 1}")
        static = size is None or (isinstance(size, int) and not isinstance(size, bool))
        if not static and size is not torch.export.Dim.STATIC:
            found[axis % value.ndim] = declared_size(size, f"{path}_{axis % value.ndim}", path)
    return found


def declared_size(size: Any, fallback: str, path: str) -> Declared:
    """One axis as declared for the input `path`; `fallback` names an axis that is dynamic without a name.

    Raises ImportGraphError on what is no size.
    """
    if isinstance(size, str):
        declared = Declared(size)
    elif isinstance(size, Size):
        high = None if size.high == UNBOUNDED else size.high
        declared = Declared(size.name, size.low, high, size.hint if size.hint > 1 else None)
    elif isinstance(size, tuple | list) and len(size) == 3 and isinstance(size[0], str):
        declared = Declared(*size)
    elif type(size).__name__ == "Dim":
        low, high = int(size.min), size.max
        declared = Declared(size.__name__, low or None, int(high) if isinstance(high, int) else None)
    elif type(size).__name__ in ("_DerivedDim", "_DimHint", "_DimHintType"):
        declared = Declared(re.sub(r"\W", "_", fallback), passed=size)
    else:
        raise ImportGraphError(
            f"dynamic of '{path}' holds {size!r}; a size is a name, (name, low, high), a Size or a torch.export.Dim"
        )
    _check_size(declared, path)
    return declared


def _check_size(size: Declared, path: str) -> None:
    if not size.name.isidentifier() or keyword.iskeyword(size.name):
        raise ImportGraphError(f"dynamic of '{path}' names a size {size.name!r}; use an identifier that is no keyword")
    for bound in (size.low, size.high):
        if bound is not None and type(bound) is not int:
            raise ImportGraphError(f"size '{size.name}' of '{path}' has the bound {bound!r}; bounds are integers")
    low = 1 if size.low is None else size.low
    if low < 1:
        raise ImportGraphError(
            f"size '{size.name}' of '{path}' starts at {low}; empty tensors are not computed, so start at 1"
        )
    if size.high is not None and size.high < low:
        raise ImportGraphError(f"size '{size.name}' of '{path}' has the empty range {low}..{size.high}")


def merged(axes: Sequence[Axes], leaves: Sequence[Any], hints: Mapping[str, int]) -> dict[str, Declared]:
    """One declaration a name, with the example's size.

    Raises ImportGraphError when examples of one name differ in size or fall outside its range.
    """
    found: dict[str, Declared] = {}
    for leaf, dynamic in zip(leaves, axes, strict=True):
        for axis, size in dynamic.items():
            if size.passed is not None:
                continue
            actual, known = leaf.shape[axis], found.get(size.name)
            if known is not None and known.example != actual:
                raise ImportGraphError(
                    f"size '{size.name}' is {known.example} in one example input and {actual} in another; they share a "
                    "name and so must be equal"
                )
            known = known or Declared(size.name)
            low, high = _tighter(max, known.low, size.low), _tighter(min, known.high, size.high)
            hint = known.hint if size.hint is None else size.hint
            found[size.name] = Declared(size.name, low, high, hint, actual, low is None, high is None)
    for name in hints:
        if name not in found:
            raise ImportGraphError(f"hints names '{name}', which is no dynamic size{nearest(name, found)}")
    for size in found.values():
        _check_example(size)
    return found


def _check_example(size: Declared) -> None:
    name, actual = size.name, size.example or 0
    if not (size.low or 0) <= actual <= (size.high or UNBOUNDED):
        raise ImportGraphError(
            f"the example has {name} = {actual}, outside its declared range {size.low or 1}..{size.high}"
        )
    if actual == 0 or (size.high is not None and size.high < 2):
        raise ImportGraphError(
            f"size '{name}' needs an example of at least 1 and a range that reaches 2 or more; or leave it static"
        )


def _tighter(pick: Callable[[int, int], int], first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return pick(first, second)


def enlarged(leaves: Sequence[Any], axes: Sequence[Axes], sizes: Mapping[str, Declared]) -> list[Any]:
    """The example with every dynamic axis of size 1 (which torch.export would fix) repeated to the least it allows.

    A tensor given twice is copied, since torch.export takes equal objects for one input of one shape.
    """
    found: list[Any] = []
    for i, (leaf, dynamic) in enumerate(zip(leaves, axes, strict=True)):
        again = isinstance(leaf, torch.Tensor) and any(leaf is earlier for earlier in leaves[:i])
        named = {axis: sizes[size.name] for axis, size in dynamic.items() if size.passed is None}
        found.append(_enlarged(leaf.clone() if again else leaf, named))
    return found


def _enlarged(leaf: Any, axes: Axes) -> Any:
    for axis, size in axes.items():
        if leaf.shape[axis] == 1 and (size.high is None or size.high > 1):
            leaf = leaf.repeat_interleave(size.minimum, axis)
    return leaf


def export_dims(axes: Sequence[Axes], sizes: Mapping[str, Declared]) -> list[dict[int, Any] | None]:
    """What torch.export takes for every leaf."""
    dims = {name: torch.export.Dim(name, min=size.minimum, max=size.maximum) for name, size in sizes.items()}
    return [{a: s.passed or dims[s.name] for a, s in dynamic.items()} or None for dynamic in axes]


_FIX = re.compile(r"^\s*(\w+) = (.+)$", re.MULTILINE)
_BOUND = re.compile(r"(min|max)=(\d+)")
_GUARDED = re.compile(r"Not all values of (\w+) = ")
_ALL_BUT = re.compile(r"Not all values of (\w+) = .* generated guard .*\.size\(\)\[\d+\] != (\d+)\.")


def narrowed(message: str, sizes: Mapping[str, Declared]) -> dict[str, Declared] | None:
    """`sizes` with the ranges that torch asks for, where the user left them open; None where that is no remedy."""
    suggestions = _FIX.findall(message.partition("Suggested fixes:")[2])
    changed = dict(sizes)
    for name, text in suggestions:
        if name not in sizes or not text.startswith("Dim("):
            return None
        bounds = {side: int(value) for side, value in _BOUND.findall(text)}
        low, high = bounds.get("min"), bounds.get("max")
        own = sizes[name]
        if (low is not None and own.low not in (None, low)) or (high is not None and own.high not in (None, high)):
            return None
        changed[name] = replace(own, low=own.low if low is None else low, high=own.high if high is None else high)
    return changed if suggestions and changed != dict(sizes) else _lowered(message, sizes) or _raised(message, sizes)


def _lowered(message: str, sizes: Mapping[str, Declared]) -> dict[str, Declared] | None:
    """`sizes` without the greatest value, where torch would compile another program for that one alone.

    A slice of a table that is all of the table is no slice to torch.
    """
    excluded = {name: int(value) for name, value in _ALL_BUT.findall(message) if name in sizes}
    if not all(sizes[name].open_above and sizes[name].high == value for name, value in excluded.items()):
        return None
    return {**sizes, **{n: replace(sizes[n], high=value - 1) for n, value in excluded.items()}} if excluded else None


def _raised(message: str, sizes: Mapping[str, Declared]) -> dict[str, Declared] | None:
    """`sizes` with twice the least value, up to the example's, where torch names a guard without a remedy.

    Such a guard asks that a size after strided layers is not 1, for which torch would compile another program.
    """
    guarded = {name for name in _GUARDED.findall(message) if name in sizes}
    for name in guarded:
        own = sizes[name]
        if not own.open_below or own.example is None or own.minimum >= own.example:
            return None
    raised = {n: replace(sizes[n], low=min(2 * sizes[n].minimum, sizes[n].example or 2)) for n in guarded}
    return {**sizes, **raised} if guarded else None
