"""The peer of decoding: a LLaMA's step of one token over caches of fixed length, in plain torch, layer by layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_WEIGHTS = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


class Decoder:
    """Steps of transformers' LLaMA `model` with room for `context` tokens; `layer` runs each of its layers.

    A step reads `token` i64[1, 1] and `position` i64[1], tensors of the device whose contents change, and gives logits
    [1, 1, V]. Nothing of it depends on a number of the host: it can be recorded.
    """

    def __init__(self, model: Any, context: int, layer: Callable[..., Tensor] | None = None) -> None:
        config, first = model.config, model.lm_head.weight
        self._model, self._layer = model, layer or decode_layer
        self._width = config.hidden_size // config.num_attention_heads
        self._epsilon = config.rms_norm_eps
        self._weights = [tuple(each.get_submodule(name).weight for name in _WEIGHTS) for each in model.model.layers]
        self._positions = torch.arange(context, device=first.device)
        cos, sin = model.model.rotary_emb(first[:1, None], self._positions[None])
        self._cos, self._sin = cos[0], sin[0]
        shape = (1, config.num_key_value_heads, context, self._width)
        self._caches = [
            (torch.zeros(shape, dtype=first.dtype, device=first.device), torch.zeros_like(first.new_empty(shape)))
            for _ in model.model.layers
        ]
        self.token = torch.zeros((1, 1), dtype=torch.int64, device=first.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=first.device)

    def step(self) -> Tensor:
        """The logits after the token at its position."""
        x = self._model.model.embed_tokens(self.token)
        cos, sin = self._cos[self.position], self._sin[self.position]
        seen = (self._positions <= self.position)[None, None, None]
        for weights, (keys, values) in zip(self._weights, self._caches, strict=True):
            x = self._layer(x, weights, keys, values, self.position, cos, sin, seen, self._width, self._epsilon)
        logits: Tensor = self._model.lm_head(self._model.model.norm(x))
        return logits

    def read(self, tokens: Tensor) -> Tensor:
        """The logits [V] after tokens i64[S], read one by one from position 0."""
        for at, token in enumerate(tokens.tolist()):
            self.token.fill_(token)
            self.position.fill_(at)
            logits = self.step()
        return logits[0, 0]


def decode_layer(
    x: Tensor,
    weights: tuple[Tensor, ...],
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
    seen: Tensor,
    width: int,
    epsilon: float,
) -> Tensor:
    """One layer for one token: x [1, 1, H] -> [1, 1, H]; writes its key and value into the caches."""
    before, q_proj, k_proj, v_proj, o_proj, after, gate, up, down = weights
    normed = functional.rms_norm(x, (x.shape[-1],), before, epsilon)
    q, k, v = (functional.linear(normed, w).view(1, 1, -1, width).transpose(1, 2) for w in (q_proj, k_proj, v_proj))
    keys.index_copy_(2, position, _rotated(k, cos, sin))
    values.index_copy_(2, position, v)
    mixed = functional.scaled_dot_product_attention(
        _rotated(q, cos, sin), keys, values, attn_mask=seen, enable_gqa=True
    )
    x = x + functional.linear(mixed.transpose(1, 2).reshape(1, 1, -1), o_proj)
    normed = functional.rms_norm(x, (x.shape[-1],), after, epsilon)
    return x + functional.linear(functional.silu(functional.linear(normed, gate)) * functional.linear(normed, up), down)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin
