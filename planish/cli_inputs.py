"""Inputs for artifacts that are run from the command line: from a file, or made up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import InputError, nearest
from planish.runtime.dtypes import NUMPY, DTypeName
from planish.runtime.plan import FunctionPlan


def read_inputs(path: Path, plan: FunctionPlan) -> list[Any]:
    """The plan's inputs from a .npz or .safetensors file, by name; raises InputError on one that is missing."""
    if not path.exists():
        raise InputError(f"there is no file '{path}' to read inputs from")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        arrays = load_file(path)
    else:
        raise InputError(f"inputs come from a .npz or .safetensors file, not '{path}'")
    for spec in plan.inputs:
        if spec.name not in arrays:
            raise InputError(f"'{path}' has no input '{spec.name}'{nearest(spec.name, arrays)}")
    return [arrays[spec.name] for spec in plan.inputs]


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
        return random.standard_normal(shape).astype(np.float32)
    if dtype in ("f64", "f32", "f16"):
        return random.standard_normal(shape).astype(NUMPY[dtype])
    return np.ones(shape, NUMPY[dtype])
