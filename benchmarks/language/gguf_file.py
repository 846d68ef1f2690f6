"""A LLaMA of transformers as a GGUF file, which llama.cpp and OpenVINO GenAI read."""

import json
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from benchmarks.language.source import Source
from benchmarks.zoo import smollm2

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_file(source: Source, kind: str) -> Path:
    """The file of `source` with every matrix stored as `kind`, one of TYPES; made once, then kept."""
    return source.file(f"{kind}.gguf", lambda path: _write(source, kind, path))


def _write(source: Source, kind: str, path: Path) -> None:
    model: Any = source.load()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(source.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(source.shape.head_width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_FILE_TYPES[kind])
    _add_tokenizer(writer, source.shape.vocabulary)
    for name, tensor in _tensors(model, source):
        values = tensor.detach().float().numpy()
        stored = TYPES[kind] if values.ndim > 1 else TYPES["f32"]
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    stored = json.loads(smollm2.tokenizer_of(size).to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and token.endswith(">") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(model: Any, source: Source) -> list[tuple[str, Tensor]]:
    """The weights by the names of GGUF; a head that is tied to the embedding is stored once."""
    found = []
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in _NAMES:
            if not (tied and stem == "lm_head"):
                found.append((f"{_NAMES[stem]}.weight", tensor))
            continue
        _, _, layer, *rest = stem.split(".")
        target = _LAYER_NAMES[".".join(rest)]
        heads = {"attn_q": source.shape.heads, "attn_k": source.shape.cache_heads}.get(target)
        found.append((f"blk.{layer}.{target}.weight", tensor if heads is None else _neighbours(tensor, heads)))
    return found


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head reordered from rotary pairs half a head apart to pairs that are neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
