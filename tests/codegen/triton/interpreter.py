"""Triton's interpreter, which looks through its whole language at every call of a function, made to look once."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import triton
import triton.language as tl
from triton.runtime import interpreter

needs_amds_f8 = pytest.mark.skipif(
    triton.__version__.startswith("3.6."), reason="the interpreter of Triton 3.6 has no f8 of AMD"
)

_LANGUAGE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
_numpy_dtype, _patch_lang, _plain_reduce, _unwrap_shape = (
    interpreter._get_np_dtype,
    interpreter._patch_lang,
    tl.reduce,
    tl.core._unwrap_shape,
)


def look_once() -> None:
    """Let it remember what it finds out at every operation; kernels compute what they computed before.

    Only reductions with functions of ours are combined in another order: by neighbours, as devices do.
    """
    # checks of overflow, whose results only an option reads that is off
    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    interpreter._patch_lang = _patch_once
    interpreter._patch_builtin = _replace_builtins
    interpreter._patch_attr = _replace
    interpreter._get_np_dtype = _dtype
    interpreter.ReduceOps.generic_reduce = _reduce_by_neighbours
    tl.core._unwrap_shape = _numbers
    tl.core.tensor.__init__ = _tensor


def _patch_once(_: Callable[..., Any]) -> Any:
    """A function that is called by a kernel finds the language replaced already."""
    return _patch_lang(_LANGUAGE) if tl.reduce is _plain_reduce else interpreter._LangPatchScope()


def _replace_builtins(package: Any, builder: Any, scope: Any) -> None:
    for name in _builtins(package):
        if tl.core.is_builtin(member := getattr(package, name)):  # not yet replaced
            _replace(package, name, member, builder, scope)


@cache
def _builtins(package: Any) -> tuple[str, ...]:
    return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))


def _replace(package: Any, name: str, member: Callable[..., Any], _: Any, scope: Any) -> None:
    semantic, called = interpreter.interpreter_semantic, inspect.unwrap(member)

    def interpreted(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = semantic
        return called(*args, **kwargs)

    scope.set_attr(package, name, interpreted)


_DTYPES: dict[str, numpy.dtype[Any]] = {}


def _dtype(dtype: Any) -> numpy.dtype[Any]:
    if dtype.name not in _DTYPES:
        _DTYPES[dtype.name] = _numpy_dtype(dtype)
    return _DTYPES[dtype.name]


def _numbers(shape: Any) -> list[int]:
    if isinstance(shape, list | tuple) and all(type(n) is int for n in shape):
        return list(shape)
    return _unwrap_shape(shape)


def _tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - the name that callers use
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _extent(tuple(type.shape) if type.is_block() else ())


@cache
def _extent(shape: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.core.tuple([tl.constexpr(n) for n in shape]), tl.constexpr(prod(shape))


def _reduce_by_neighbours(self: Any, values: Sequence[Any]) -> list[Any]:
    """Combines halves of blocks at once, in order, instead of one element after another."""
    rank, whole = values[0].handle.data.ndim, self.axis is None
    values, axis = self.unravel(values, self.axis)
    blocks = [numpy.moveaxis(value.handle.data, axis, -1) for value in values]
    while blocks[0].shape[-1] > 1:
        pairs = [
            self.to_tensor(block[..., side::2], value.dtype)
            for side in (0, 1)
            for block, value in zip(blocks, values, strict=True)
        ]
        found = self.combine_fn.fn(*pairs)
        found = found if isinstance(found, tuple) else (found,)
        blocks = [each.handle.data.astype(block.dtype) for each, block in zip(found, blocks, strict=True)]
    kept = [block[..., 0] for block in blocks]
    if self.keep_dims:
        kept = [block.reshape((1,) * rank) if whole else numpy.expand_dims(block, axis) for block in kept]
    return [
        self.to_tensor(block if block.ndim else block.item(), v.dtype) for block, v in zip(kept, values, strict=True)
    ]
