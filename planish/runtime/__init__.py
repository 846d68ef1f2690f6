"""What a machine that only runs artifacts needs: the format, the executor and nothing of the compiler."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.runtime.executor import CompiledFunction, Executable
    from planish.runtime.inspection import inspect
    from planish.runtime.loading import load
    from planish.runtime.tree import Output

__all__ = ["CompiledFunction", "Executable", "Output", "inspect", "load"]

_HOMES = {
    "CompiledFunction": "planish.runtime.executor",
    "Executable": "planish.runtime.executor",
    "Output": "planish.runtime.tree",
    "inspect": "planish.runtime.inspection",
    "load": "planish.runtime.loading",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: parts of this folder are read by those that load no artifact."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'planish.runtime' has no attribute '{name}'; it has {', '.join(__all__)}")
