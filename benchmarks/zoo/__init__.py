"""Trained models that install from package registries alone, with real data and a metric for each."""

from benchmarks.zoo.data import DataError
from benchmarks.zoo.efficientnet_lite0 import EFFICIENTNET_LITE0
from benchmarks.zoo.glassllm import GLASSLLM
from benchmarks.zoo.minilm import MINILM
from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.smollm2 import SMOLLM2
from benchmarks.zoo.vit_s14 import VIT_S14
from benchmarks.zoo.whisper_tiny_encoder import WHISPER_TINY_ENCODER

ZOO: tuple[ZooModel, ...] = (MINILM, VIT_S14, EFFICIENTNET_LITE0, WHISPER_TINY_ENCODER, SMOLLM2, GLASSLLM)

__all__ = ["ZOO", "Call", "DataError", "Inputs", "Quality", "ZooModel", "tensors"]
