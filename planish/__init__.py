"""planish compiles a PyTorch or ONNX model for one hardware target."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish import errors, passes, runtime
    from planish.api import CompiledModel, compile, load  # noqa: A004 - the name that users of torch and TVM know
    from planish.compiler.ir import Workload
    from planish.compiler.types import Size
    from planish.generation import Generation
    from planish.hardware_profiles import Profile
    from planish.language_model import LanguageModel

__all__ = [
    "CompiledModel",
    "Generation",
    "LanguageModel",
    "Profile",
    "Size",
    "Workload",
    "compile",
    "errors",
    "load",
    "passes",
    "runtime",
]
__version__ = "0.1.0"

_HOMES = {
    "CompiledModel": "planish.api",
    "Generation": "planish.generation",
    "LanguageModel": "planish.language_model",
    "Profile": "planish.hardware_profiles",
    "Size": "planish.compiler.types",
    "Workload": "planish.compiler.ir",
    "compile": "planish.api",
    "load": "planish.api",
}
_MODULES = ("errors", "passes", "runtime")


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that `import planish` itself loads neither torch nor sympy."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"planish.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'planish' has no attribute '{name}'; it has {', '.join(sorted(__all__))}")
