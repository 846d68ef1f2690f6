"""planish.compile and planish.load as a user calls them."""

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import planish
from planish.errors import ArtifactError, ImportGraphError, InputError, PassError, ProfileError


class Classifier(nn.Module):
    """A small model with two inputs, a dynamic batch and a dict as its result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = nn.functional.gelu(self.norm(self.embed(ids)) * scale)
        return {"hidden": hidden, "logits": self.head(hidden.mean(1)).softmax(-1)}


IDS, SCALE = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1)), torch.ones(24)
DYNAMIC = {"ids": {0: ("batch", 1, 16), 1: ("length", 1, 32)}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Classifier().eval()


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> planish.CompiledModel:
    return planish.compile(model, "cpu", inputs=(IDS, SCALE), dynamic=DYNAMIC)


@pytest.fixture(scope="module")
def saved(fast: planish.CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifacts") / "classifier.planish"
    fast.save(path)
    return path


def same(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(reference)
    for name in reference:
        torch.testing.assert_close(ours[name], reference[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (4, 7), (3, 32), (16, 5)])
def test_a_compiled_model_gives_the_numbers_of_the_model_at_every_size(
    fast: planish.CompiledModel, model: nn.Module, batch: int, length: int
) -> None:
    ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        same(fast(ids, SCALE), model(ids, SCALE))
        same(fast(scale=SCALE, ids=ids), model(ids, SCALE))


def test_a_loaded_artifact_takes_numpy_and_gives_numpy(saved: Path, model: nn.Module) -> None:
    result = planish.load(saved)(IDS.numpy(), SCALE.numpy())
    assert isinstance(result["logits"], np.ndarray)
    with torch.no_grad():
        np.testing.assert_allclose(result["logits"], model(IDS, SCALE)["logits"].numpy(), rtol=1e-4, atol=1e-5)


def test_a_zip_of_an_artifact_loads_too(fast: planish.CompiledModel, tmp_path: Path) -> None:
    fast.save(tmp_path / "classifier.zip")
    same(dict(planish.load(tmp_path / "classifier.zip")(IDS, SCALE)), fast(IDS, SCALE))


def test_threads_may_call_at_once(fast: planish.CompiledModel) -> None:
    expected = fast(IDS, SCALE)["logits"]
    wrong: list[int] = []

    def work() -> None:
        for i in range(50):
            if not torch.equal(fast(IDS, SCALE)["logits"], expected):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_keeps_its_own_result_type() -> None:
    class Pair(NamedTuple):
        left: torch.Tensor
        right: torch.Tensor

    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> Pair:
            return Pair(x * 2, x + 1)

    result = planish.compile(Split().eval(), inputs=torch.ones(3))(torch.ones(3))
    assert type(result).__name__ == "Pair"
    assert torch.equal(result.left, torch.full((3,), 2.0))


def test_profile_gives_a_time_to_every_kernel(fast: planish.CompiledModel) -> None:
    profile = fast.profile(IDS, SCALE, repeat=3)
    assert len(profile.rows) == len(fast.executable.main.plan.calls)
    assert all(row.ms >= 0 for row in profile.rows)
    assert "head" in str(profile)


def test_the_report_names_passes_and_kernels(fast: planish.CompiledModel, saved: Path) -> None:
    text = str(fast.report)
    assert "fold-constants" in text
    assert "kernel calls" in text
    assert planish.load(saved).report == text


def test_an_unknown_op_runs_as_torch_and_is_named_in_the_report() -> None:
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv_ex(x * 2)[0] + 1

    x = torch.eye(4) + 0.1
    fast = planish.compile(Inverse().eval(), inputs=x)
    torch.testing.assert_close(fast(x), Inverse()(x))
    assert "inv_ex" in str(fast.report)


def test_missing_inputs_are_named(fast: planish.CompiledModel) -> None:
    with pytest.raises(InputError, match="input 'scale' is missing"):
        fast(IDS)
    with pytest.raises(InputError, match="no input is called 'idds'; did you mean 'ids'"):
        fast(idds=IDS, scale=SCALE)


def test_a_wrong_dtype_names_expected_and_given_types(fast: planish.CompiledModel) -> None:
    with pytest.raises(InputError, match=r"ids.*i64\[batch, length\].*f32"):
        fast(IDS.float(), SCALE)


def test_a_size_outside_its_range_says_which_range(fast: planish.CompiledModel) -> None:
    with pytest.raises(InputError, match=r"size length of input 'ids' is 40, outside the declared 1\.\.32"):
        fast(torch.zeros(2, 40, dtype=torch.int64), SCALE)


def test_unknown_targets_passes_and_sizes_suggest_the_nearest(model: nn.Module) -> None:
    with pytest.raises(ProfileError, match="did you mean 'zen5'"):
        planish.compile(model, "zen55", inputs=(IDS, SCALE))
    with pytest.raises(PassError, match="did you mean 'fold-constants'"):
        planish.compile(model, inputs=(IDS, SCALE), passes=["fold-constant"])
    with pytest.raises(InputError, match="has no size 'bach'; did you mean 'batch'"):
        planish.compile(model, inputs=(IDS, SCALE), dynamic=DYNAMIC, workload={"bach": 8})


def test_a_target_without_a_code_generator_says_so(model: nn.Module) -> None:
    with pytest.raises(ProfileError, match="'ecp5-85k' has the fpga backend, which cannot be compiled for yet"):
        planish.compile(model, "ecp5-85k", inputs=(IDS, SCALE))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"an nn.Module or the path of an .onnx file, not a dict"):
        planish.compile({}, inputs=IDS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs example inputs"):
        planish.compile(nn.Linear(2, 2).eval())


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ImportGraphError, match=r"training mode.*call model.eval\(\)"):
        planish.compile(nn.Linear(2, 2), inputs=torch.ones(1, 2))


def test_a_model_that_torch_cannot_export_gives_the_reason_and_advice() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ImportGraphError, match=r"torch\.export cannot export Branch: .*To go on"):
        planish.compile(Branch().eval(), inputs=torch.ones(3))


def test_an_artifact_for_another_instruction_set_is_written_but_not_run(model: nn.Module, tmp_path: Path) -> None:
    other = planish.compile(model, "neoverse-v2", inputs=(IDS, SCALE), dynamic=DYNAMIC)
    other.save(tmp_path / "arm.planish")
    with pytest.raises(ArtifactError, match=r"neoverse-v2.*cannot run here"):
        other(IDS, SCALE)
    with pytest.raises(ArtifactError, match=r"neoverse-v2.*cannot run here"):
        planish.load(tmp_path / "arm.planish")


@pytest.mark.parametrize("each", ["quantize-weights{group=32}", 'quantize-weights{bits=8, activations="int8"}'])
def test_a_lossy_pass_compiles_and_keeps_its_error(each: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 64)).eval()
    x = torch.randn(5, 96)
    compiled = planish.compile(net, inputs=(x,), passes=[*planish.passes.EXACT, each])
    with torch.no_grad():
        expected = net(x)
    error = float((compiled(x) - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.2
    compiled.save(tmp_path / "net.planish")
    torch.testing.assert_close(planish.load(tmp_path / "net.planish")(x), compiled(x))
