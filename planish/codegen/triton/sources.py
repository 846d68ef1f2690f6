"""Functions that are written at compile time and become Triton functions."""

import hashlib
import importlib
import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton import JITFunction


@dataclass(frozen=True, slots=True)
class Generated:
    """The Python text of one function `name`, without its decorator."""

    name: str
    text: str

    def function(self) -> "JITFunction":
        """The Triton function of the text; equal texts give one function."""
        return _function(self)


@dataclass(frozen=True, slots=True)
class Existing:
    """A function or dtype that a kernel takes as a constant, by the module that holds it."""

    module: str
    name: str

    def function(self) -> Any:
        """The object of that name."""
        return getattr(importlib.import_module(self.module), self.name)


def resolved(constants: Mapping[str, object]) -> dict[str, Any]:
    """Constants as Triton takes them."""
    return {k: v.function() if isinstance(v, Generated | Existing) else v for k, v in constants.items()}


@lru_cache(maxsize=4096)
def _function(source: Generated) -> Any:
    import triton
    import triton.language as tl

    from planish.codegen.triton.kernels import math as tm

    # Triton reads the source of a function through inspect, which looks into linecache
    name = f"<planish {source.name} {hashlib.sha256(source.text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "tm": tm, "__name__": "planish.codegen.triton.generated"}
    exec(compile(source.text, name, "exec"), scope)  # noqa: S102 - the text is ours, made from a checked graph
    return triton.jit(scope[source.name])
