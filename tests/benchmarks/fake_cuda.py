"""Stands for `torch.cuda` where there is none: streams, graphs and events that note what is done with them."""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class Event:
    """Tells times that grow by a millisecond from event to event."""

    count = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.count += 1
        self.at = Event.count

    def synchronize(self) -> None:
        """Everything is done."""

    def elapsed_time(self, end: "Event") -> float:
        return float(end.at - self.at)


class Stream:
    """A stream of which nothing is asked."""

    cuda_stream = 7

    def __init__(self, device: object = None) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        """Everything is done."""


class Graph:
    """Replays nothing, and counts how often."""

    replayed = 0

    def replay(self) -> None:
        Graph.replayed += 1


@contextlib.contextmanager
def _entered(*given: object, **named: object) -> Iterator[None]:
    yield


def install(monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H200") -> None:
    """Put these in the place of torch.cuda's, whose device has this name."""
    properties = SimpleNamespace(shared_memory_per_block_optin=232448, L2_cache_size=60 << 20)
    replaced: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: name,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: Stream(),
        "stream": _entered,
        "device": _entered,
        "graph": _entered,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
    }
    for word, value in replaced.items():
        monkeypatch.setattr(torch.cuda, word, value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
