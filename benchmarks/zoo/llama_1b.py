"""A LLaMA of 1.1 billion random parameters in bf16: what it says means nothing, how fast it says it does."""

import torch
from torch import nn

VOCABULARY = 32000
_SPREAD = 0.02


def load(layers: int = 22) -> nn.Module:
    """The language model: token ids `(batch, length)` to logits `(batch, length, 32000)`, bf16, 2.2 GB, no cache.

    The shape is TinyLlama's (arXiv 2401.02385): hidden 2048, 32 heads, 4 key and value heads, intermediate 5632, head
    not tied. Weights are normal with deviation 0.02 from a fixed seed; `layers` makes a smaller one for tests.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        use_cache=False,
        dtype="bfloat16",
    )
    model: nn.Module = without_initialisation(LlamaForCausalLM, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, _SPREAD, generator=generator)
        else:
            parameter.data.fill_(1.0)
    return model.eval()


def without_initialisation(kind: type, config: object) -> nn.Module:
    """A model of transformers whose weights are left as the memory was, to be filled."""
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            model: nn.Module = kind(config)
    finally:
        torch.set_default_dtype(before)
    return model
