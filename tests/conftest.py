"""Fixtures for all tests: a fixed seed, and golden files, rewritten with `--update-golden`."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# read when Triton is imported: kernels run in its interpreter here, and are compiled in processes of their own
os.environ.setdefault("TRITON_INTERPRET", "1")

_GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.fixture(autouse=True, scope="module")
def _what_was_imported_stays() -> None:
    """Compiling collects garbage, which need not look through all modules every time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """A test draws the same numbers alone and in any order."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text with `golden/<test file>/<test name>.txt`."""
    path = _GOLDEN / request.path.stem.removeprefix("test_") / f"{request.node.name.removeprefix('test_')}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {path.name}: run with --update-golden and read what it wrote"
        assert text == path.read_text(encoding="utf-8")

    return check
