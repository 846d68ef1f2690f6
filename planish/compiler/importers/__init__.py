"""Importers: PyTorch modules and ONNX files become programs."""

from planish.compiler.importers.onnx import import_onnx
from planish.compiler.importers.torch_export import import_torch
from planish.compiler.importers.trees import Imported

__all__ = ["Imported", "import_onnx", "import_torch"]
