"""Ranks sentences by similarity with a compiled MiniLM: needs numpy, tokenizers and planish.runtime alone."""

import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from planish.runtime import load

QUERY = "A man is playing a guitar."
SENTENCES = [
    "The stock market fell sharply today.",
    "Someone plays an instrument.",
    "A chef prepares a meal in the kitchen.",
    "He strums the strings of his acoustic guitar.",
    "Heavy rain is expected over the weekend.",
]


def main() -> None:
    start = time.perf_counter()
    model = load(sys.argv[1])
    loaded = time.perf_counter()
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[2], "tokenizer.json")))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch([QUERY, *SENTENCES])
    ids = np.array([e.ids for e in encoded], np.int64)
    mask = np.array([e.attention_mask for e in encoded], np.int64)
    states = model(ids, mask)
    means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    scores = unit[1:] @ unit[0]
    ready = time.perf_counter()
    print(f"loaded and checked in {1e3 * (loaded - start):.0f} ms, first ranking after {1e3 * (ready - start):.0f} ms")
    absent = [name for name in ("torch", "transformers", "tvm", "planish.compiler") if name not in sys.modules]
    print(f"not imported: {', '.join(absent)}\n\nsimilar to {QUERY!r}")
    order = np.argsort(-scores)
    for i in order:
        print(f"  {scores[i]:+.3f}  {SENTENCES[i]}")
    assert {*order[:2]} == {1, 3}, "the two sentences about music should come first"
    assert scores[order[1]] > scores[order[2]] + 0.2, "the others should be far behind"


if __name__ == "__main__":
    main()
