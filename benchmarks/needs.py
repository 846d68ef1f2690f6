"""The packages that benchmarks import, told before they are: this file imports none of them."""

from collections.abc import Sequence
from importlib.util import find_spec

# by the names under which they are imported and installed
_ALWAYS = ("torch", "numpy", "networkx", "sympy", "pydantic", "safetensors", "tokenizers", "rich", "typer")
_BY_COMMAND = {"gpu": ("triton", "transformers")}


def refusal(arguments: Sequence[str]) -> str | None:
    """Why the command line with these arguments cannot begin, with what to install, or None."""
    needed = (*_ALWAYS, *_BY_COMMAND.get(next(iter(arguments), ""), ()))
    if not (missing := [name for name in needed if find_spec(name) is None]):
        return None
    return f"{', '.join(missing)} cannot be imported here: pip install {' '.join(missing)}"
