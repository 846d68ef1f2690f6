"""What names a kernel and its sizes among measurements: everything that its code is made from."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from planish.codegen.triton.compile import Request
from planish.codegen.triton.sources import Existing

_KERNELS = "planish.codegen.triton.kernels"
_ALWAYS = f"{_KERNELS}.math"  # generated functions call it


def kernel_key(request: Request) -> str:
    """SHA-256 (hex) of everything that a kernel is compiled from: what is asked for, and the source of its modules."""
    named = {c.module for c in request.constants.values() if isinstance(c, Existing)}
    sources = "".join(_digest(module) for module in sorted({request.module, _ALWAYS, *named}))
    return hashlib.sha256((repr(request) + sources).encode()).hexdigest()


def sizes_key(sizes: Mapping[str, int]) -> str:
    """The named sizes as canonical JSON."""
    return json.dumps(dict(sizes), sort_keys=True, separators=(",", ":"))


@cache
def _digest(module: str) -> str:
    """Of a module of kernels and of those that it imports; other modules come with Triton, whose version counts."""
    if not module.startswith(_KERNELS):
        return ""
    found = find_spec(module)
    if found is None or found.origin is None:
        return ""
    text = Path(found.origin).read_text(encoding="utf-8")
    return hashlib.sha256((text + "".join(map(_digest, _imported(text)))).encode()).hexdigest()


def _imported(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_KERNELS}."):
            yield node.module
