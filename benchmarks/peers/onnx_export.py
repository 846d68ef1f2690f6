"""Zoo models as ONNX files with dynamic axes, exported once a process for the peers that read them."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from benchmarks.zoo import ZooModel

_EXPORT_BATCH = 2


def exported(model: ZooModel, module: nn.Module) -> Path:
    """The path of `model` as ONNX; inputs keep their names, dynamic axes the names of the model's sizes."""
    path = Path(_folder().name) / f"{model.name}.onnx"
    if not path.exists():
        _export(model, module, path)
    return path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="planish-benchmarks-")


def _export(model: ZooModel, module: nn.Module, path: Path) -> None:
    # torch.export takes a size of 1 for a constant, so the example has two rows.
    inputs = model.inputs(_EXPORT_BATCH, model.length)
    part = path.with_name(f"{path.stem}.part.onnx")
    with contextlib.redirect_stdout(io.StringIO()), _quiet(logging.getLogger("torch.onnx")):
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            dynamo=True,
            input_names=list(inputs),
            dynamic_shapes=model.dynamic_shapes(),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    program.save(str(part), external_data=False)
    part.rename(path)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
