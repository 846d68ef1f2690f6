"""The imported model: its program and the form of its arguments and results."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from planish.compiler.ir import Program
from planish.errors import InputError
from planish.runtime.signature import Signature
from planish.runtime.tree import Tree


@dataclass(frozen=True, slots=True)
class Computed:
    """The place of a computed result among the leaves of the output: a tensor, or an int held by one."""

    integer: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A program with the form of the model's arguments and results.

    `signature` takes a call apart into the graph's inputs, in their order. `output_tree` describes the result, where
    integers that depend on sizes are scalar tensors. `output_spec` and `output_leaves` rebuild the model's own result
    type in this process; without a spec (ONNX) the tree does.
    """

    program: Program
    signature: Signature
    output_tree: Tree
    output_spec: pytree.TreeSpec | None = None
    output_leaves: tuple[Any, ...] = ()

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The tensors of a call in the order of the graph's inputs.

        Raises InputError naming the argument that is missing, unknown or of another form.
        """
        return tuple(self.signature.leaves(args, kwargs))

    def rebuild(self, results: Sequence[Any]) -> Any:
        """The model's result from the graph's outputs."""
        if self.output_spec is None:
            return self.output_tree.build(iter(results))
        rest = iter(results)
        return pytree.tree_unflatten([_filled(leaf, rest) for leaf in self.output_leaves], self.output_spec)

    def result_leaves(self, result: Any) -> tuple[Any, ...]:
        """The computed parts of the model's own result, in the order of the graph's outputs."""
        if self.output_spec is None:
            return tuple(self.output_tree.leaves(result, "output"))
        leaves = self.output_spec.flatten_up_to(result)
        pairs = zip(leaves, self.output_leaves, strict=True)
        return tuple(torch.as_tensor(leaf) for leaf, place in pairs if isinstance(place, Computed))


def _filled(leaf: Any, rest: Iterator[Any]) -> Any:
    if not isinstance(leaf, Computed):
        return leaf
    return int(next(rest)) if leaf.integer else next(rest)


@contextmanager
def named_keywords(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While open, keyword arguments that the model takes by `**kwargs` are parameters of its own.

    torch.export takes no dynamic sizes of a model that is given some by `**kwargs`.
    """
    forward, signature = model.forward, inspect.signature(model.forward)
    surplus = [name for name in names if name not in signature.parameters]
    if not surplus:
        yield
        return

    @functools.wraps(forward)
    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in surplus]
    named.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    before = model.__dict__.get("forward")
    model.forward = named
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def signature_of(
    arguments: Mapping[str, Any], is_tensor: Callable[[Any], bool], names: Sequence[str], rest: str
) -> Signature:
    """The signature of a call with `arguments` in order, by place as far as they follow the model's own `names`."""
    placed = 0
    for given, name in zip(arguments, names, strict=False):
        if given != name:
            break
        placed += 1
    surplus = rest if rest in arguments and placed == len(names) else ""
    return Signature.of_example(arguments, is_tensor, positional=placed, rest=surplus)


def positional(names: Sequence[str], rest: str, args: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments by name; those beyond `names` are a tuple under the name `rest`, where there is one."""
    named: dict[str, Any] = dict(zip(names, args, strict=False))
    if len(args) > len(names):
        if not rest:
            raise InputError(f"the model takes {len(names)} positional arguments ({', '.join(names)}), not {len(args)}")
        named[rest] = tuple(args[len(names) :])
    return named


def positional_names(function: Callable[..., Any]) -> tuple[tuple[str, ...], str]:
    """The names of the positional parameters, and that of `*rest` or ""."""
    parameters = inspect.signature(function).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return names, next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
