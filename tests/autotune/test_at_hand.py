"""Measuring where the device is, on a torch.cuda and a driver that are fakes: what is asked of them, and in what order."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planish
from planish.autotune import measure as measure_module
from planish.autotune import tuner as tuner_module
from planish.autotune.child import ChildUnavailable
from planish.autotune.measure import EventClock, answer, prepare
from planish.autotune.trial import Block, Loaded, Place, Seen, Skipped, Times, Trial
from planish.autotune.tuner import Measuring, machine_at_hand, measuring
from planish.codegen.triton import build as build_module
from planish.compilation import _device_generator
from planish.errors import InputError
from planish.hardware_profiles import load_profile
from planish.runtime.launches import KernelSpec
from tests.benchmarks import fake_cuda
from tests.codegen.triton.harness import device


class _Driver:
    """A driver that says its version."""

    version = 13000

    def __init__(self, interface: object) -> None:
        pass


class _Launcher:
    """A launcher on the CPU that counts launches by kernel."""

    device = torch.device("cpu")
    launched: Sequence[str] = ()

    def __init__(self, driver: object, where: object, specs: Mapping[str, KernelSpec], code: Any, warp: int) -> None:
        assert set(specs) == set(code) == {"reference", "candidate"}
        assert warp == 32
        type(self).launched = []

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        type(self).launched = [*self.launched, kernel]

    def entered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wait(self) -> None:
        """Everything is done."""

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        body()
        return lambda: None


def _trial(blocks: tuple[Block, ...] = (Block(64, b"ab"), Block(64))) -> Trial:
    kernels = [Loaded(KernelSpec("", "k", 4, 0, 32, 0), code, (1, 1, 1)) for code in (b"1", b"2")]
    places = (Place(0, 0, "f32"), Place(1, 0, "f32"))
    return Trial(
        "cuda", blocks, places, kernels[0], kernels[1], (), (), (Seen(1, "f32", (16,), (1,), 0),), rotated_bytes=1
    )


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    for module in (measure_module, tuner_module):
        monkeypatch.setattr(module, "Driver", _Driver)
    monkeypatch.setattr(measure_module, "DriverLauncher", _Launcher)


@pytest.mark.usefixtures("_gpu")
def test_a_trial_is_answered_by_the_devices_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "ones", lambda shape, device: torch.zeros(shape))
        prepare()
    found = answer(_trial())
    assert found == Times(1e-3, 1e-3)
    assert _Launcher.launched[:3] == ["candidate", "reference", "candidate"]


@pytest.mark.usefixtures("_gpu")
def test_what_the_device_has_no_room_for_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure_module, "_filled", full)
    assert answer(_trial()) == Skipped("the device has no room for the 128 bytes of a launch")


@pytest.mark.usefixtures("_gpu")
def test_the_clock_gives_seconds_between_two_events() -> None:
    assert EventClock().seconds(lambda: None) == 1e-3


@pytest.mark.usefixtures("_gpu")
def test_the_machine_is_named_by_device_profile_triton_and_driver() -> None:
    machine = machine_at_hand(device())
    assert (machine.device, machine.driver) == ("NVIDIA H200", "13000")
    assert machine.profile == load_profile("h200").fingerprint


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(("tune", "most", "measures"), [(None, 3, True), (0, 3, False), (7, 7, True)])
def test_compile_measures_where_the_gpu_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tune: int | None, most: int, measures: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Any] = []

    def build(*given: object, library: Any, progress: object) -> None:
        made.append(library)
        library.tuner.notes.append("a note")

    monkeypatch.setattr(build_module, "build_for_device", build)
    notes: list[str] = []
    _device_generator(load_profile("h200"), tune, notes)({}, {}, tmp_path, print)  # type: ignore[arg-type]
    assert notes == ["a note"]
    assert (made[0].most, isinstance(made[0].tuner, Measuring)) == (most, measures)


@pytest.mark.usefixtures("_gpu")
def test_another_gpu_than_the_targets_is_not_measured() -> None:
    with pytest.raises(InputError, match="tune=3 measures on the device, but the GPU here is of the profile h200"):
        planish.compile(nn.Identity(), "h100", inputs=(torch.zeros(1),), tune=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_process_that_measures_refuses_a_machine_without_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        fake_cuda.install(patched)
        patched.setattr(tuner_module, "Driver", _Driver)
        tuner = measuring(device(), tmp_path / "k.sqlite")
    with pytest.raises(ChildUnavailable, match=r"RuntimeError|AssertionError"):
        tuner._child.run(_trial(), timeout=5.0)
