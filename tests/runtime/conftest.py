"""The library and the artifact that the tests of this folder share."""

from pathlib import Path

import pytest

from planish.runtime.artifact import write
from tests.runtime.small import affine_contents, build_library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def folder(library: Path, tmp_path: Path) -> Path:
    """A fresh artifact as a folder."""
    path = tmp_path / "affine.planish"
    write(path, affine_contents(library))
    return path


@pytest.fixture
def archive(library: Path, tmp_path: Path) -> Path:
    """A fresh artifact as a zip."""
    path = tmp_path / "affine.zip"
    write(path, affine_contents(library))
    return path
