"""The recorded inputs and outputs of an artifact, and the check that it still computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import ArtifactError
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.dtypes import ITEMSIZE, NUMPY, DTypeName
from planish.runtime.executor import Executable
from planish.runtime.generation.generator import GeneratesText, Generator
from planish.runtime.manifest import Tolerance
from planish.runtime.operands import widen
from planish.runtime.plan import FunctionPlan, Plan
from planish.runtime.tensors import TensorFile, write_tensors

Array = np.ndarray[Any, Any]
LANGUAGE = "generation"
_BLOCK = 1 << 18  # elements that are compared at once: their copies in f64 stay small


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs of a function and what it gives for them, in the order of the plan; bf16 as any 2-byte array of its bits.

    `tolerance` is how far another machine's result may be.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    tolerance: Tolerance


@dataclass(frozen=True, slots=True)
class LanguageGolden:
    """A prompt i64[S] of a language model and the logits f32[V] after it."""

    prompt: Array
    logits: Array
    tolerance: Tolerance


def write_golden(path: Path, plan: Plan, golden: Mapping[str, Golden], language: LanguageGolden | None = None) -> None:
    """Write golden.safetensors; raises ArtifactError where the arrays are not of the plan's dtypes."""
    tensors: dict[str, tuple[DTypeName, Array]] = {}
    if language is not None:
        tensors["generation.prompt"] = "i64", _bits("i64", language.prompt, "prompt")
        tensors["generation.logits"] = "f32", _bits("f32", language.logits, "logits")
    for name, recorded in golden.items():
        for word, dtypes, arrays in (
            ("input", [spec.type.dtype for spec in plan.functions[name].inputs], recorded.inputs),
            ("output", [spec.dtype for spec in plan.functions[name].outputs], recorded.outputs),
        ):
            if len(dtypes) != len(arrays):
                raise ArtifactError(f"golden of {name}: {len(arrays)} {word}s for {len(dtypes)} in the plan")
            for i, (dtype, array) in enumerate(zip(dtypes, arrays, strict=True)):
                tensors[f"{name}.{word}.{i}"] = (dtype, _bits(dtype, array, f"{word} {i} of {name}"))
    write_tensors(path, tensors)


def check_golden(executable: Executable | DeviceExecutable, path: Path, tolerances: Mapping[str, Tolerance]) -> None:
    """Run every function that has a record; raises ArtifactError with the place that is off the most."""
    stored = TensorFile(path)
    for name, tolerance in tolerances.items():
        if name == LANGUAGE and isinstance(executable, GeneratesText):
            _check_language(executable.generator, stored, tolerance)
            continue
        if name not in executable.functions:
            raise ArtifactError(f"the manifest records results of '{name}', which the plan lacks")
        function = executable.functions[name]
        inputs, expected = _recorded(stored, name, function.plan)
        for i, (result, wanted) in enumerate(zip(function.run(inputs), expected, strict=True)):
            _compare(f"output {i} of {function.name}", result, wanted, tolerance)


def _check_language(generator: Generator, stored: TensorFile, tolerance: Tolerance) -> None:
    """The recorded prompt: all but its last token by `prefill`, that one by `decode`, then all by `prefill`."""
    prompt = _load(stored, "generation.prompt", "i64").tolist()
    wanted = _load(stored, "generation.logits", "f32")
    session = generator.session()
    if len(prompt) > 1:
        session.start([prompt[:-1]])
        _compare("the logits of decode", session.step([prompt[-1]]).logits()[0], wanted, tolerance)
    _compare("the logits of prefill", session.start([prompt]).logits()[0], wanted, tolerance)
    generator.give_back(session)


def _recorded(stored: TensorFile, name: str, plan: FunctionPlan) -> tuple[list[Array], list[Array]]:
    inputs = [_load(stored, f"{name}.input.{i}", spec.type.dtype) for i, spec in enumerate(plan.inputs)]
    outputs = [_load(stored, f"{name}.output.{i}", spec.dtype) for i, spec in enumerate(plan.outputs)]
    return inputs, [
        widen(array) if spec.dtype == "bf16" else array for array, spec in zip(outputs, plan.outputs, strict=True)
    ]


def _load(stored: TensorFile, key: str, dtype: DTypeName) -> Array:
    return stored.array(key, dtype, stored.shape(key))


def _compare(name: str, result: Array, wanted: Array, tolerance: Tolerance) -> None:
    what = f"golden check: {name}"
    if result.shape != wanted.shape:
        raise ArtifactError(f"{what} has shape {list(result.shape)}, recorded {list(wanted.shape)}; compile again")
    given, known = result.reshape(-1), wanted.reshape(-1)
    blocks = range(0, known.size, _BLOCK)
    worst = max((_worst(given, known, start, tolerance) for start in blocks), default=(0.0, 0))
    if worst[0] == 0.0:
        return
    place = np.unravel_index(-worst[1], wanted.shape)
    raise ArtifactError(
        f"{what} is {result[place]} at {[int(i) for i in place]}, recorded {wanted[place]} (rtol {tolerance.rtol}, "
        f"atol {tolerance.atol}); the code does not compute the model here: compile it on this machine"
    )


def _worst(result: Array, wanted: Array, start: int, tolerance: Tolerance) -> tuple[float, int]:
    """The largest error over the tolerance in the block from `start` on, or 0, and the negated place of its first."""
    given, known = (array[start : start + _BLOCK] for array in (result, wanted))
    if known.dtype.kind != "f":
        error = (given != known).astype(np.float64)
    else:
        given, known = given.astype(np.float64), known.astype(np.float64)
        close = np.isclose(given, known, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
        with np.errstate(invalid="ignore"):
            error = np.where(close, 0.0, np.nan_to_num(np.abs(given - known), nan=np.inf))
    place = int(error.argmax())
    return float(error[place]), -(start + place)


def _bits(dtype: DTypeName, array: Array, what: str) -> Array:
    if dtype == "bf16" and array.itemsize == ITEMSIZE["bf16"]:
        return np.ascontiguousarray(array).view(np.uint16)
    if array.dtype.name != NUMPY[dtype]:
        raise ArtifactError(f"golden {what} is {array.dtype}, the plan says {dtype}")
    return array
