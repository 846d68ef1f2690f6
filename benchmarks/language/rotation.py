"""A LLaMA with its residual stream turned by a random orthogonal matrix: the same function with other weights."""

from typing import Any

import torch
from torch import Tensor, nn

_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITERS = ("o_proj", "down_proj")


def rotated(model: Any, seed: int = 0) -> nn.Module:
    """A copy of a LLaMA of transformers whose weights lie on no grid of a quantized file (QuaRot, arXiv 2404.00456).

    Scales of the norms go into the maps that read after them, which leaves a norm that commutes with rotations; then
    embeddings and maps are multiplied by the rotation. The head is no longer tied. Computed in f64, kept in f32.
    """
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config["tie_word_embeddings"] = False
    turned: Any = type(model)(type(model.config).from_dict(config))
    turn = rotation(model.config.hidden_size, seed)
    source, stored = model.state_dict(), {}
    for name, tensor in source.items():
        stored[name] = _turned(name, tensor.detach().double(), source, turn).float()
    head = source.get("lm_head.weight", source["model.embed_tokens.weight"]).double()
    stored["lm_head.weight"] = (head * source["model.norm.weight"].double() @ turn).float()
    turned.load_state_dict(stored)
    module: nn.Module = turned.eval()
    return module


def rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix f64 `(size, size)`."""
    found: Tensor = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]
    return found


def _turned(name: str, tensor: Tensor, source: dict[str, Tensor], turn: Tensor) -> Tensor:
    kind = name.split(".")[-2]
    if kind == "embed_tokens":
        return tensor @ turn
    if kind in _READERS:
        norm = "post_attention_layernorm" if kind in ("gate_proj", "up_proj") else "input_layernorm"
        layer = ".".join(name.split(".")[:3])
        return tensor * source[f"{layer}.{norm}.weight"].double() @ turn
    if kind in _WRITERS:
        return turn.T @ tensor
    return torch.ones_like(tensor) if kind.endswith("norm") else tensor
