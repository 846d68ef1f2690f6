"""CTranslate2 model files: the reader, and Whisper's weights under the names that transformers uses."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


@dataclass(slots=True)
class _Cursor:
    data: bytes
    position: int = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(code)
        return int(value)

    def take(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def text(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()


def read(path: Path) -> dict[str, Tensor]:
    """Every variable of a CTranslate2 `model.bin` (format version 6) as fp32, aliases included."""
    cursor = _Cursor(path.read_bytes())
    version, _, _ = cursor.number("I"), cursor.text(), cursor.number("I")
    if version != 6:
        raise ValueError(f"{path} has CTranslate2 format {version}; this reader knows 6")
    variables = dict(_variable(cursor) for _ in range(cursor.number("I")))
    for _ in range(cursor.number("I")):
        alias, name = cursor.text(), cursor.text()
        variables[alias] = variables[name]
    return variables


def _variable(cursor: _Cursor) -> tuple[str, Tensor]:
    name = cursor.text()
    shape = [cursor.number("I") for _ in range(cursor.number("B"))]
    dtype = _DTYPES[cursor.number("B")]
    values = np.frombuffer(cursor.take(cursor.number("I")), dtype).reshape(shape)
    return name, torch.from_numpy(values.astype(np.float32))


def whisper_weights(stored: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state of `WhisperForConditionalGeneration` with `layers` encoder and decoder layers, fp32."""
    embedding = stored["decoder/embeddings/weight"]
    weights = {
        "model.encoder.embed_positions.weight": stored["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": stored["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": embedding,
        "proj_out.weight": embedding,
    }
    for conv in ("conv1", "conv2"):
        weights |= _copied(stored, f"encoder/{conv}", f"model.encoder.{conv}", ("weight", "bias"))
    for side in ("encoder", "decoder"):
        weights |= _norm(stored, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(layers):
            weights |= dict(_layer(stored, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"))
    return weights


def _layer(stored: Mapping[str, Tensor], source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    yield from _self_attention(stored, f"{source}/self_attention", f"{target}.self_attn").items()
    yield from _norm(stored, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm").items()
    if f"{source}/attention/linear_0/weight" in stored:
        yield from _cross_attention(stored, f"{source}/attention", f"{target}.encoder_attn").items()
        yield from _norm(stored, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm").items()
    for index, name in enumerate(("fc1", "fc2")):
        yield from _copied(stored, f"{source}/ffn/linear_{index}", f"{target}.{name}", ("weight", "bias")).items()
    yield from _norm(stored, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm").items()


def _self_attention(stored: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    weights = _split(stored, f"{source}/linear_0", target, ("q_proj", "k_proj", "v_proj"))
    return weights | _copied(stored, f"{source}/linear_1", f"{target}.out_proj", ("weight", "bias"))


def _cross_attention(stored: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    weights = _copied(stored, f"{source}/linear_0", f"{target}.q_proj", ("weight", "bias"))
    weights |= _split(stored, f"{source}/linear_1", target, ("k_proj", "v_proj"))
    return weights | _copied(stored, f"{source}/linear_2", f"{target}.out_proj", ("weight", "bias"))


def _split(stored: Mapping[str, Tensor], source: str, target: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The projections that CTranslate2 stores as one; Whisper's keys have no bias, so that part is dropped."""
    matrices = stored[f"{source}/weight"].chunk(len(names))
    biases = stored[f"{source}/bias"].chunk(len(names))
    weights = {f"{target}.{name}.weight": matrix for name, matrix in zip(names, matrices, strict=True)}
    return weights | {f"{target}.{n}.bias": bias for n, bias in zip(names, biases, strict=True) if n != "k_proj"}


def _norm(stored: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    return {f"{target}.weight": stored[f"{source}/gamma"], f"{target}.bias": stored[f"{source}/beta"]}


def _copied(stored: Mapping[str, Tensor], source: str, target: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {f"{target}.{name}": stored[f"{source}/{name}"] for name in names}
