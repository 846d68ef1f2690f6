"""Weights on their way to a device, on a torch.cuda that is a fake: what is copied, what is waited for, what is freed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.errors import ArtifactError
from planish.runtime.device.upload import Pinned, uploading
from planish.runtime.intake import Intake
from planish.runtime.manifest import FileEntry
from planish.runtime.storage import describe_files
from planish.runtime.tensors import TensorFile, write_weights

COUNT = 100_003


class _Cuda:
    """Notes what is waited for; copies are done at once. Memory is the CPU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[str] = []
        self.made: list[torch.Tensor] = []
        self.free = 1 << 30
        empty = torch.empty

        def on_cpu(size: int, *, dtype: torch.dtype, device: Any = None, pin_memory: bool = False) -> torch.Tensor:
            found = empty(size, dtype=dtype)
            if not pin_memory:
                self.made.append(found)
            return found

        monkeypatch.setattr(torch, "empty", on_cpu)
        for name, value in {
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "NVIDIA H200",
            "mem_get_info": lambda device: (self.free, 1 << 40),
            "memory_reserved": lambda device: 0,
            "memory_allocated": lambda device: 0,
            "current_stream": lambda device: None,
            "Stream": lambda device: self,
            "stream": lambda stream: nullcontext(),
            "Event": lambda: self,
            "empty_cache": lambda: self.noted.append("empty_cache"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def wait_stream(self, other: object) -> None:
        """Everything is done."""

    def synchronize(self) -> None:
        self.noted.append("wait")

    def record(self, stream: object) -> None:
        assert stream is self


@pytest.fixture
def weights(tmp_path: Path) -> TensorFile:
    values = torch.randint(0, 255, (COUNT,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_weights(tmp_path / "w.safetensors", {"w": values.numpy()})
    return TensorFile(tmp_path / "w.safetensors", aligned=True)


@contextmanager
def _reading(folder: Path, **changes: Any) -> Iterator[Callable[..., Any]]:
    with ThreadPoolExecutor(2) as pool:
        entry: FileEntry = describe_files(folder)["w.safetensors"]
        entries = {"w.safetensors": FileEntry(changes.get("sha256", entry.sha256), entry.bytes)}
        yield partial(Intake(folder, entries, pool, contents=True).read, "w.safetensors")


def test_the_data_of_the_file_reach_their_places(
    tmp_path: Path, weights: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Cuda(monkeypatch)
    monkeypatch.setattr(Pinned, "chunk_bytes", 4096)
    with torch.inference_mode(), _reading(tmp_path) as read, uploading(weights, read) as memory:
        assert memory.numel() == weights.data.nbytes
    assert memory.numpy().tobytes() == weights.data.tobytes()
    assert not memory.is_inference()


def test_a_header_that_fills_buffers_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    _Cuda(monkeypatch)
    there = torch.zeros(6, dtype=torch.uint8)
    landing = Pinned(there, 10, torch.cuda.Stream(torch.device("cpu")))  # type: ignore[no-untyped-call]
    for start in range(0, 16, 4):
        landing.place(start, 4)[:] = bytes(range(start, start + 4))
        landing.landed(start, 4)
    assert there.tolist() == list(range(10, 16))


def test_an_altered_file_is_refused_by_name_and_its_memory_is_freed(
    tmp_path: Path, weights: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = _Cuda(monkeypatch)
    with (
        _reading(tmp_path, sha256="0" * 64) as read,
        pytest.raises(ArtifactError, match=r"'w\.safetensors' is damaged: its hash is not the recorded one"),
        uploading(weights, read),
    ):
        pass
    assert [each.untyped_storage().nbytes() for each in cuda.made] == [0]
    assert cuda.noted[-2:] == ["wait", "empty_cache"]


def test_a_plan_that_cannot_be_read_meanwhile_frees_what_was_sent(
    tmp_path: Path, weights: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = _Cuda(monkeypatch)
    with (
        _reading(tmp_path) as read,
        pytest.raises(ArtifactError, match=r"plan\.json is damaged"),
        uploading(weights, read),
    ):
        raise ArtifactError("plan.json is damaged")
    assert [each.untyped_storage().nbytes() for each in cuda.made] == [0]


def test_weights_that_do_not_fit_are_refused_before_anything_is_read(
    weights: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Cuda(monkeypatch).free = 1000
    words = f"loading the weights takes {weights.data.nbytes} bytes on the NVIDIA H200, which has 1000 free"
    with pytest.raises(ArtifactError, match=words), uploading(weights, lambda _: pytest.fail("it was read")):
        pass
