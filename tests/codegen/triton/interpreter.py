"""Triton's interpreter, which looks through its whole language at every call of a function, made to look once."""

import inspect
from functools import cache
from typing import Any

import pytest
import triton
from triton.runtime import interpreter

needs_amds_f8 = pytest.mark.skipif(
    triton.__version__.startswith("3.6."), reason="the interpreter of Triton 3.6 has no f8 of AMD"
)


def look_once() -> None:
    """Let it remember the names that it replaces: half of the time of small kernels goes into finding them."""
    interpreter._patch_builtin = _replace_builtins


def _replace_builtins(package: Any, builder: Any, scope: Any) -> None:
    for name in _builtins(package):
        if interpreter.tl.core.is_builtin(member := getattr(package, name)):  # not yet replaced
            interpreter._patch_attr(package, name, member, builder, scope)


@cache
def _builtins(package: Any) -> tuple[str, ...]:
    return tuple(name for name, member in inspect.getmembers(package) if interpreter.tl.core.is_builtin(member))
