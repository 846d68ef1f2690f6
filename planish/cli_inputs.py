"""What the command line is given: models by reference, sizes, inputs from a file or made up; and results written."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from safetensors import SafetensorError
from safetensors.numpy import load_file

from planish.errors import InputError, PlanishError, nearest
from planish.runtime.dtypes import NUMPY, DTypeName
from planish.runtime.plan import FunctionPlan

if TYPE_CHECKING:
    from planish.generation import Generation


def load_reference(reference: str) -> tuple[Any, Any, Any]:
    """Model, inputs and dynamic axes of `package.module:function`, or an ONNX file's path with neither.

    Raises InputError naming the part that is wrong.
    """
    if reference.endswith(".onnx"):
        return reference, None, None
    name, _, attribute = reference.partition(":")
    if not name or not attribute:
        raise InputError(f"'{reference}' is neither an .onnx file nor package.module:function")
    sys.path.insert(0, str(Path.cwd()))
    module = _import_module(name, reference)
    if not callable(function := getattr(module, attribute, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"'{reference}': module '{name}' has no function '{attribute}'{nearest(attribute, known)}")
    result = _call(function, reference)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise InputError(f"'{reference}' returned {type(result).__name__}; it must return (model, inputs[, dynamic])")
    return (*result, None)[:3]


def sizes_of(texts: Sequence[str] | None) -> dict[str, int]:
    """`B=8` and the like as names and numbers; raises InputError on any other text."""
    sizes = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value.isdecimal():
            raise InputError(f"a size is NAME=NUMBER such as B=8, not '{text}'")
        sizes[name] = int(value)
    return sizes


def generation_of(wanted: bool, **options: Any) -> "Generation | None":
    """The generation that the options ask for; raises InputError on options without `--generate`."""
    from planish.generation import Generation

    given = {name: value for name, value in options.items() if value is not None}
    if given and not wanted:
        raise InputError(f"--{next(iter(given))} is for language models; add --generate")
    return Generation(**given) if wanted else None


def read_inputs(path: Path, plan: FunctionPlan) -> list[Any]:
    """The plan's inputs from a .npz or .safetensors file, by name.

    Raises InputError on a file that cannot be read and on an input that it lacks.
    """
    if not path.is_file():
        raise InputError(f"there is no file '{path}' to read inputs from")
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"inputs come from a .npz or .safetensors file, not '{path}'")
    try:
        arrays = _read_arrays(path)
    except (OSError, ValueError, EOFError, BadZipFile, SafetensorError) as error:
        raise InputError(f"'{path}' cannot be read: {error}; write it with numpy.savez or safetensors") from error
    for spec in plan.inputs:
        if spec.name not in arrays:
            raise InputError(f"'{path}' has no input '{spec.name}'{nearest(spec.name, arrays)}")
    return [arrays[spec.name] for spec in plan.inputs]


def result_names(plan: FunctionPlan) -> list[str]:
    """A name for every result tensor: `logits`, `states[0]`, or `result` where it is the only one."""
    return [re.sub(r"^result(?:\.|\['([^']+)'\])", r"\1", path) for path in plan.result.paths("result")]


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Results by name as a .npz; raises InputError where it cannot be written."""
    if path.suffix != ".npz":
        raise InputError(f"results are written to a .npz file, not '{path}'")
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **results)
    except OSError as error:
        raise InputError(f"cannot write the results to '{path}': {error}") from error


def example_inputs(plan: FunctionPlan, sizes: Mapping[str, int]) -> list[Any]:
    """Inputs of the wanted sizes, else the usual ones: normal floats, ones for integers and bools, the same each time.

    Raises InputError on an unknown size or one outside its range.
    """
    known = {size.name: size for size in plan.sizes}
    for name, value in sizes.items():
        if name not in known:
            raise InputError(f"the artifact has no size '{name}'{nearest(name, known)}")
        if not known[name].low <= value <= known[name].high:
            raise InputError(f"size {name} = {value} is outside {known[name].low}..{known[name].high}")
    actual = {size.name: sizes.get(size.name, size.hint) for size in plan.sizes}
    random = np.random.default_rng(0)
    return [_array(random, spec.type.dtype, tuple(d.evaluate(actual) for d in spec.type.shape)) for spec in plan.inputs]


def _array(random: np.random.Generator, dtype: DTypeName, shape: tuple[int, ...]) -> Any:
    if dtype == "bf16":
        # the upper half of an f32 is a bf16
        return (random.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype in ("f64", "f32", "f16"):
        return random.standard_normal(shape).astype(NUMPY[dtype])
    return np.ones(shape, NUMPY[dtype])


def _import_module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = f"there is no module '{error.name}'"
        raise InputError(f"'{reference}': {missing}; run where it can be imported, or install it") from error
    except (ImportError, SyntaxError) as error:
        raise InputError(f"'{reference}': module '{name}' cannot be imported: {error}") from error


def _call(function: Callable[[], Any], reference: str) -> Any:
    try:
        return function()
    except PlanishError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise InputError(f"'{reference}' raised {type(error).__name__}: {error} ({where})") from error


def _read_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return load_file(path)
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, NpzFile):
        raise ValueError("it holds a single array without a name")
    with file:
        return dict(file)
