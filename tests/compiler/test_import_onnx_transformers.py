"""Attention models that both of torch's ONNX exporters write, imported with dynamic sizes and run against PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.evaluate import evaluate
from planish.compiler.importers import Imported, import_onnx
from planish.compiler.verify import verify
from planish.errors import ImportGraphError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("torch_mlir")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


class Positions(nn.Module):
    """Tokens plus the first positions of a table of 24."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(10, 8), nn.Embedding(24, 8)
        self.places = nn.Buffer(torch.arange(24)[None])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.tokens(x) + self.positions(self.places[:, : x.shape[1]])
        return result


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        )
        self.model = transformers.ViTModel(config)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x).last_hidden_state
        return result


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
        )
        self.model = transformers.LlamaForCausalLM(config)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(input_ids=x, use_cache=False).logits
        return result


def run(imported: Imported, **inputs: Tensor) -> object:
    program = imported.program
    return imported.rebuild(evaluate(program.main, imported.leaves((), inputs), program.weights))


def by_torchscript(model: nn.Module, x: Tensor, path: Path, axes: dict[int, str]) -> Path:
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": axes}, "opset_version": 17, "dynamo": False}
    torch.onnx.export(model.eval(), (x,), str(path), **names)
    return path


def by_torch_export(model: nn.Module, x: Tensor, path: Path, axes: dict[int, str]) -> Path:
    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_shapes": shapes, "dynamo": True, "verbose": False}
    torch.onnx.export(model.eval(), (x,), str(path), **names)
    return path


EXPORTERS = pytest.mark.parametrize("export", [by_torchscript, by_torch_export])
Export = Callable[[nn.Module, Tensor, Path, dict[int, str]], Path]
BOTH = {0: "batch", 1: "length"}


@EXPORTERS
def test_attention_with_a_dynamic_batch(export: Export, tmp_path: Path) -> None:
    """The TorchScript exporter slices shapes at places that it computes from constants."""
    attention = SelfAttention().eval()
    imported = import_onnx(export(attention, torch.randn(2, 5, 32), tmp_path / "model.onnx", {0: "batch"}))
    verify(imported.program)
    assert not imported.program.notes
    x = torch.randn(3, 5, 32)
    torch.testing.assert_close(run(imported, x=x), attention(x), rtol=0, atol=1e-5)


def test_names_a_size_that_the_exporter_has_written_into_the_file(tmp_path: Path) -> None:
    path = by_torchscript(SelfAttention(), torch.randn(2, 5, 32), tmp_path / "model.onnx", BOTH)
    with pytest.raises(ImportGraphError, match=r"does not reshape to \[5, 4\*batch, 8\] at every size.*dynamo=True"):
        import_onnx(path)


@pytest.mark.parametrize("layer", ["attention", "encoder"])
def test_attention_with_two_dynamic_sizes(layer: str, tmp_path: Path) -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = SelfAttention() if layer == "attention" else encoder
    imported = import_onnx(by_torch_export(model, torch.randn(2, 5, 32), tmp_path / "model.onnx", BOTH))
    verify(imported.program)
    assert len(imported.program.main.sizes) == 2
    x = torch.randn(3, 9, 32)
    torch.testing.assert_close(run(imported, x=x), model.eval()(x), rtol=0, atol=1e-5)


@EXPORTERS
def test_a_table_of_positions_limits_the_sequence(export: Export, tmp_path: Path) -> None:
    model = Positions().eval()
    imported = import_onnx(export(model, torch.randint(0, 10, (2, 5)), tmp_path / "model.onnx", BOTH))
    assert [size.high for size in imported.program.main.sizes] == [2**31 - 1, 24]
    tokens = torch.randint(0, 10, (3, 24))
    torch.testing.assert_close(run(imported, x=tokens), model(tokens), rtol=0, atol=1e-6)


def test_refuses_a_declared_range_that_the_table_of_positions_lacks(tmp_path: Path) -> None:
    path = by_torchscript(Positions(), torch.randint(0, 10, (2, 5)), tmp_path / "model.onnx", BOTH)
    with pytest.raises(ImportGraphError, match=r"needs length <= 24, but it is declared as 1\.\.100"):
        import_onnx(path, dynamic={"x": {1: ("length", 1, 100)}})


@EXPORTERS
def test_a_vision_transformer_with_a_dynamic_batch(export: Export, tmp_path: Path) -> None:
    model = VisionTransformer().eval()
    imported = import_onnx(export(model, torch.randn(2, 3, 16, 16), tmp_path / "model.onnx", {0: "batch"}))
    verify(imported.program)
    assert not imported.program.notes
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(run(imported, x=x), model(x), rtol=0, atol=1e-5)


def test_a_language_model_with_two_dynamic_sizes(tmp_path: Path) -> None:
    model = LanguageModel().eval()
    imported = import_onnx(by_torch_export(model, torch.randint(0, 50, (2, 7)), tmp_path / "model.onnx", BOTH))
    verify(imported.program)
    assert not imported.program.notes
    tokens = torch.randint(0, 50, (3, 9))
    torch.testing.assert_close(run(imported, x=tokens), model(tokens), rtol=0, atol=1e-5)
