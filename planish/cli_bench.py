"""The command `bench`: times calls of an artifact, or prefill and decode of a language model."""

import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import InputError

if TYPE_CHECKING:
    from planish.runtime.artifact import Loaded
    from planish.runtime.generation.generator import GeneratesText

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def bench(
    artifact: Annotated[Path, typer.Argument(help="An artifact: folder or .zip.")],
    size: Annotated[list[str] | None, typer.Option(help="A size for the inputs, such as B=8; repeat.")] = None,
    prompt: Annotated[int | None, typer.Option(min=1, help="Language models: tokens of a prompt; 512 or less.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Language models: tokens of an answer; 32 or less.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Language models: prompts at once; 1 by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a call; all cores by default.")] = None,
    by_scope: Annotated[bool, typer.Option("--profile", help="Also the time of each kernel by module.")] = False,
    as_json: Json = False,
) -> None:
    """Time calls of an artifact on random inputs; of a language model prefill, decode and their share of the bandwidth.

    For example: planish bench encoder.planish --size batch=8 --profile
    """
    from planish.runtime.generation.generator import GeneratesText
    from planish.runtime.loading import load

    executable = load(artifact, threads=threads)
    if isinstance(executable, GeneratesText):
        if size:
            raise InputError("--size is for other models; a language model takes --prompt, --tokens and --batch")
        row, profile = _language(artifact, executable, (prompt, tokens, batch), seconds, by_scope=by_scope)
    else:
        for name, value in (("--prompt", prompt), ("--tokens", tokens), ("--batch", batch)):
            if value is not None:
                raise InputError(f"{name} is for language models, and '{artifact}' is none; use --size")
        row, profile = _calls(executable, size, seconds, by_scope=by_scope)
    if as_json:
        typer.echo(json.dumps({**row, "profile": profile.to_json()} if profile else row))
        return
    typer.echo(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if profile:
        typer.echo(str(profile))


def time_calls(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of repeated calls for about `seconds`, after three that do not count."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _calls(executable: "Loaded", size: list[str] | None, seconds: float, *, by_scope: bool) -> tuple[Any, Any]:
    from planish.cli_inputs import example_inputs, sizes_of

    function = executable.main
    given = example_inputs(function.plan, sizes_of(size))
    times = time_calls(lambda: function.run(given), seconds)
    spread = {"median_ms": statistics.median(times), "p10_ms": _tenth(times), "best_ms": min(times)}
    row = {"calls": len(times), "threads": executable.threads, **spread}
    return row, function.profile_leaves(given) if by_scope else None


def _language(
    artifact: Path,
    model: "GeneratesText",
    wanted: tuple[int | None, int | None, int | None],
    seconds: float,
    *,
    by_scope: bool,
) -> tuple[Any, Any]:
    prompt, tokens, batch = _lengths(model, *wanted)
    first, between = _generations(model, prompt, tokens, batch, seconds)
    step = statistics.median(between)
    row = {
        "generations": len(first),
        "threads": model.threads,
        "batch": batch,
        "prompt": prompt,
        "tokens": tokens,
        "seconds_to_first": statistics.median(first),
        "prefill_tokens_per_second": batch * prompt / statistics.median(first),
        "decode_tokens_per_second": batch / step,
        "token_median_ms": 1e3 * step,
        "token_p10_ms": 1e3 * _tenth(between),
        **_share(artifact, prompt + tokens // 2, batch, step, model.threads),
    }
    return row, model.profile_step("decode", past=prompt, rows=batch) if by_scope else None


def _share(artifact: Path, held: int, batch: int, step: float, threads: int) -> dict[str, float]:
    """How a step of so many seconds compares with streaming what it reads; nothing where the compiler is absent."""
    from planish.hardware_profiles import measure_stream

    if find_spec("torch") is None:
        return {}
    moved, stream = _step_bytes(artifact, held, batch), measure_stream(threads=threads)
    return {"token_megabytes": moved / 1e6, "stream_gbs": stream, "share_of_stream": moved / step / (1e9 * stream)}


def _lengths(model: "GeneratesText", prompt: int | None, tokens: int | None, batch: int | None) -> tuple[int, int, int]:
    """Tokens of a prompt and of an answer, and rows; what is not given fits the context."""
    settings = model.generator.settings
    answer = tokens or min(32, max(2, settings.context // 2))
    given = prompt or max(1, min(512, settings.context - answer + 1))
    if given + answer - 1 > settings.context:
        raise InputError(f"{given} + {answer} tokens do not fit a context of {settings.context}; take fewer")
    if (batch or 1) > settings.batch:
        raise InputError(f"--batch {batch}: the model was compiled for {settings.batch}; take fewer")
    return given, answer, batch or 1


def _generations(
    model: "GeneratesText", prompt: int, tokens: int, batch: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds to the first token and between tokens of generations for about `seconds`, after one that does not count.

    A token that ends texts may come early; then a generation is shorter.
    """
    first: list[float] = []
    between: list[float] = []
    rows = [[1 + (i + row) % (model.generator.settings.vocabulary - 1) for i in range(prompt)] for row in range(batch)]
    end = 0.0
    while len(first) < 2 or not between or time.perf_counter() < end:
        start = time.perf_counter()
        moments = [time.perf_counter() for _ in model.generate(rows, max_new_tokens=tokens)]
        if not end:
            end = time.perf_counter() + seconds
            continue
        first.append(moments[0] - start)
        between += [after - before for before, after in pairwise(moments)]
    return first, between


def _step_bytes(artifact: Path, held: int, batch: int) -> int:
    from planish.compiler.analysis import step_bytes
    from planish.compiler.text import parse_program
    from planish.runtime.artifact import PROGRAM
    from planish.runtime.storage import read_manifest, read_member

    text = read_member(artifact, PROGRAM, read_manifest(artifact).files[PROGRAM]).decode()
    return step_bytes(parse_program(text)["decode"], held, batch)


def _tenth(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[0]
