"""ONNX files become programs through torch-mlir's importer and the aten table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.compiler.importers.trees import Imported
from planish.errors import ImportGraphError


def import_onnx(
    model: "str | Path | Any", inputs: Any = None, *, dynamic: Mapping[str, Mapping[int, Any]] | None = None
) -> Imported:
    """The program of an ONNX model."""
    raise ImportGraphError("ONNX files cannot be imported yet")
