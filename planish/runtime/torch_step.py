"""Runs the ops of a plan that have no kernel of ours, through torch."""

from collections.abc import Callable, Mapping
from typing import Any

from planish.errors import ArtifactError, BackendMissing
from planish.runtime.fields import Json
from planish.runtime.plan import TorchStep
from planish.runtime.torch_arguments import evaluate


def import_torch(step: TorchStep) -> Any:
    """torch; raises BackendMissing where it is not installed."""
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise BackendMissing(f"{step.target} in '{step.scope}' runs as torch; install it: pip install torch") from error
    return torch


def run_torch_step(
    step: TorchStep, value: Callable[[Json], Any], sizes: Mapping[str, int], torch: Any, device: Any = "cpu"
) -> tuple[Any, ...]:
    """The results of the op as tensors of any strides (None where the op gives none), one for each output of the step.

    `value` gives the tensor of a value id; ops that make tensors make them on `device`. Raises ArtifactError for an op
    that torch lacks or that mutates its arguments, and when the op fails.
    """
    overload = overload_of(step, torch)
    arguments = [evaluate(argument, value, sizes, torch) for argument in step.arguments]
    keywords = {name: evaluate(argument, value, sizes, torch) for name, argument in step.keywords.items()}
    if any(argument.name == "device" for argument in overload._schema.arguments):
        keywords.setdefault("device", torch.device(device))
    try:
        with torch.no_grad():
            result = overload(*arguments, **keywords)
    except torch.OutOfMemoryError:
        raise  # the caller knows what it needed
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise ArtifactError(f"{step.target} in '{step.scope}' failed in torch: {error}") from error
    results = tuple(result) if isinstance(result, tuple | list) else (result,)
    if len(results) != len(step.outputs):
        raise ArtifactError(f"{step.target} gave {len(results)} results, the plan names {len(step.outputs)}")
    return tuple(item if isinstance(item, torch.Tensor) else None for item in results)


def overload_of(step: TorchStep, torch: Any) -> Any:
    """The functional op of torch that the step names; raises ArtifactError where it must not or cannot run."""
    if why := step.refusal:
        raise ArtifactError(why)
    _, packet, name = step.target.split(".")
    overload = getattr(getattr(torch.ops.aten, packet, None), name, None)
    if overload is None:
        raise ArtifactError(f"torch {torch.__version__} has no {step.target}; compile with this torch")
    if overload._schema.is_mutable:
        raise ArtifactError(f"{step.target} changes its arguments; an artifact runs functional ops only")
    return overload
