"""The time from loading an artifact to its first token, in a process that has done nothing yet: run as a module."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SECONDS = 120.0


def first_token(path: Path) -> Mapping[str, float]:
    """Seconds until the device is ready, of loading, and from the start of loading to the first token, in a fresh
    process; raises RuntimeError with what it said where it failed."""
    command = [sys.executable, "-m", "benchmarks.gpu.first_token", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"the process that loads the artifact failed: {done.stderr.strip()[-400:]}")
    found: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(path: Path, load: Callable[..., Any], ready: Callable[[], None]) -> Mapping[str, float]:
    """What `first_token` gives, in this process. Files are hashed, and the recorded result is repeated."""
    start = time.perf_counter()
    ready()
    before = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter()
    next(iter(model.generate([1, 2, 3, 4], max_new_tokens=1)))
    first = time.perf_counter()
    return {
        "ready_seconds": before - start,
        "load_seconds": loaded - before,
        "first_token_seconds": first - before,
    }


def _ready() -> None:
    import torch

    torch.cuda.synchronize()


if __name__ == "__main__":
    from planish.runtime.loading import load

    sys.stdout.write(json.dumps(timed(Path(sys.argv[1]), load, _ready)) + "\n")
