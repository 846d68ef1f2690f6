"""Tiny models with fixed random weights for tests, each with example inputs, dynamic sizes and inputs of other sizes."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from planish.compiler.importers import Imported, import_torch


@dataclass(frozen=True, slots=True)
class Case:
    """A model in eval mode, inputs to import it with, and inputs of other sizes that it must serve too."""

    model: nn.Module
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    dynamic: Mapping[str, Mapping[int, object]] | None = None
    other_args: tuple[object, ...] | None = None
    other_kwargs: Mapping[str, object] = field(default_factory=dict)


def _tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, 90, (batch, length))


def _mask(batch: int, length: int) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    return mask


_TOKEN_SIZES = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _build(kind: type[nn.Module], config: transformers.PreTrainedConfig, attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point() and b.ndim == 1)]:
        if tensor.ndim == 1 and tensor.numel() > 1:
            tensor.data += 0.1 * torch.rand(tensor.shape, generator=generator)
    return model


def _tokens_case(model: nn.Module, *, low: int = 1) -> Case:
    torch.manual_seed(2)
    sizes = {name: {0: "batch", 1: ("sequence", low, 64)} for name in _TOKEN_SIZES}
    kwargs = {"input_ids": _tokens(2, 8), "attention_mask": _mask(2, 8)}
    other = {"input_ids": _tokens(3, 13), "attention_mask": _mask(3, 13)}
    return Case(model, kwargs=kwargs, dynamic=sizes, other_args=(), other_kwargs=other)


def _decoder_case(model: nn.Module) -> Case:
    case = _tokens_case(model)
    more = {"use_cache": False}
    return Case(case.model, (), {**case.kwargs, **more}, case.dynamic, (), {**case.other_kwargs, **more})


def _images_case(model: nn.Module, size: int, name: str = "pixel_values") -> Case:
    torch.manual_seed(2)
    images, other = torch.randn(2, 3, size, size), torch.randn(5, 3, size, size)
    return Case(model, (images,), dynamic={name: {0: "batch"}}, other_args=(other,))


def bert(attention: str = "sdpa") -> Case:
    config = transformers.BertConfig(vocab_size=100, max_position_embeddings=64, **_SMALL)
    return _tokens_case(_build(transformers.BertModel, config, attention))


def bert_eager() -> Case:
    return bert("eager")


def roberta() -> Case:
    config = transformers.RobertaConfig(vocab_size=100, max_position_embeddings=80, **_SMALL)
    return _tokens_case(_build(transformers.RobertaModel, config))


def distilbert() -> Case:
    config = transformers.DistilBertConfig(
        vocab_size=100, max_position_embeddings=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48
    )
    return _tokens_case(_build(transformers.DistilBertForMaskedLM, config))


class MeanPooled(nn.Module):
    """A sentence encoder: BERT, mean over the tokens that the mask keeps, unit length."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(tokens.dtype)
        pooled = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=-1)


def minilm() -> Case:
    config = transformers.BertConfig(vocab_size=100, max_position_embeddings=64, **_SMALL)
    return _tokens_case(MeanPooled(_build(transformers.BertModel, config)).eval())


def vit(attention: str = "sdpa") -> Case:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **_SMALL)
    return _images_case(_build(transformers.ViTForImageClassification, config, attention), 16)


def vit_eager() -> Case:
    return vit("eager")


def swin() -> Case:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return _images_case(_build(transformers.SwinForImageClassification, config, "eager"), 16)


def convnext() -> Case:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5)
    return _images_case(_build(transformers.ConvNextForImageClassification, config, "eager"), 32)


def resnet() -> Case:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=5)
    return _images_case(_build(transformers.ResNetForImageClassification, config, "eager"), 32)


_WHISPER = {
    "vocab_size": 100,
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_model": 32,
    "max_source_positions": 20,
    "max_target_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def whisper_encoder() -> Case:
    model = _build(transformers.WhisperModel, transformers.WhisperConfig(**_WHISPER)).get_encoder()
    torch.manual_seed(2)
    sounds, other = torch.randn(2, 8, 40), torch.randn(3, 8, 40)
    return Case(model, (sounds,), dynamic={"input_features": {0: "batch"}}, other_args=(other,))


def whisper_decoder() -> Case:
    model = _build(transformers.WhisperModel, transformers.WhisperConfig(**_WHISPER)).get_decoder()
    torch.manual_seed(2)
    sizes = {"input_ids": {0: "batch", 1: ("sequence", 1, 64)}, "encoder_hidden_states": {0: "batch"}}
    kwargs = {"input_ids": _tokens(2, 6), "encoder_hidden_states": torch.randn(2, 20, 32), "use_cache": False}
    other = {"input_ids": _tokens(3, 9), "encoder_hidden_states": torch.randn(3, 20, 32), "use_cache": False}
    return Case(model, kwargs=kwargs, dynamic=sizes, other_args=(), other_kwargs=other)


def gpt2(attention: str = "sdpa") -> Case:
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, **tokens)
    return _decoder_case(_build(transformers.GPT2LMHeadModel, config, attention))


def gpt2_eager() -> Case:
    return gpt2("eager")


_LLAMA = {"vocab_size": 100, "max_position_embeddings": 64, "num_key_value_heads": 2, **_SMALL}


def llama(attention: str = "sdpa") -> Case:
    return _decoder_case(_build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**_LLAMA), attention))


def llama_eager() -> Case:
    return llama("eager")


def mistral() -> Case:
    return _decoder_case(
        _build(transformers.MistralForCausalLM, transformers.MistralConfig(sliding_window=4, **_LLAMA))
    )


def qwen2() -> Case:
    return _decoder_case(_build(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**_LLAMA)))


def t5_encoder() -> Case:
    config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return _tokens_case(_build(transformers.T5EncoderModel, config, "eager"))


def mlp() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)).eval()
    return Case(model, (torch.randn(4, 8),), dynamic={"input": {0: "batch"}}, other_args=(torch.randn(1, 8),))


def convnet() -> Case:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(*layers, *head).eval()
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.5, 0.5)
        model[1].running_var.uniform_(0.5, 1.5)
    return Case(
        model, (torch.randn(2, 3, 8, 8),), dynamic={"input": {0: "batch"}}, other_args=(torch.randn(5, 3, 8, 8),)
    )


TOYS: Mapping[str, Callable[[], Case]] = {case.__name__: case for case in (mlp, convnet)}
TRANSFORMERS: Mapping[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        *(bert, bert_eager, roberta, distilbert, minilm, vit, vit_eager, swin, convnext, resnet),
        *(whisper_encoder, whisper_decoder, gpt2, gpt2_eager, llama, llama_eager, mistral, qwen2, t5_encoder),
    )
}
CASES: Mapping[str, Callable[[], Case]] = {**TOYS, **TRANSFORMERS}


def each(names: Iterable[str], slow: Collection[str] = ("roberta", "distilbert", "qwen2")) -> list[Any]:
    """Parameters for the names; the slow ones have the ops of BERT or LLaMA."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@cache
def imported(name: str) -> tuple[Case, Imported]:
    """A case and its program, exported once for all tests of a process."""
    case = CASES[name]()
    return case, import_torch(case.model, case.args, case.kwargs, dynamic=case.dynamic)
