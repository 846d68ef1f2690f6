"""Photographs that ship with scikit-image and scikit-learn, cut and scaled for a model."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image  # the benchmark of GPUs does without

PHOTOGRAPHS = {
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "retina": ("skimage", "data/retina.jpg"),
}


@cache
def photograph(name: str) -> "Image.Image":
    """One of `PHOTOGRAPHS` in RGB at its own size."""
    from PIL import Image

    package, path = PHOTOGRAPHS[name]
    with (files(package) / path).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def square(image: "Image.Image", size: int, *, scale: float = 1.0, x: float = 0.5, y: float = 0.5) -> "Image.Image":
    """A square of `scale` times the shorter side, placed at `x`, `y` in 0..1, resized to `size` pixels."""
    from PIL import Image

    side = round(scale * min(image.size))
    left, top = round(x * (image.width - side)), round(y * (image.height - side))
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def pixels(images: "list[Image.Image]", mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """`(count, 3, height, width)` fp32 of `(value - mean) / deviation`, values in 0..255, one mean a channel."""
    stacked = np.stack([np.asarray(image, np.float32) for image in images])
    scaled = (stacked - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def photographs(count: int, size: int) -> "list[Image.Image]":
    """`count` different squares of photographs: the 224 of 256 in the middle that ImageNet is judged on, then less."""
    names = list(PHOTOGRAPHS)
    return [
        square(photograph(names[i % len(names)]), size, scale=224 / 256 * 0.95 ** (i // len(names)))
        for i in range(count)
    ]
