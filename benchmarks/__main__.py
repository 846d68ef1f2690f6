"""The command line of the benchmarks: of models, of language models, and what shows the results."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from benchmarks.needs import refusal

if __name__ == "__main__" and (why := refusal(sys.argv[1:])) is not None:
    sys.exit(f"error: {why}")

import typer
from rich.console import Console

from benchmarks.peers import BY_PRECISION, Peer, PeerError
from benchmarks.results import FOLDER, load, suite_of
from benchmarks.run import Choice, Say, run
from benchmarks.table import markdown
from benchmarks.timing import Effort
from benchmarks.zoo import ZOO, DataError
from planish.errors import InputError, PlanishError, nearest

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Name = Annotated[str, typer.Option(help="The result file is benchmarks/results/NAME.json.")]
Models = Annotated[str, typer.Option(help="Models of the zoo, separated by commas; all by default.")]
Peers = Annotated[str, typer.Option(help="Peers, separated by commas; all by default.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, separated by commas.")]
Threads = Annotated[int, typer.Option(help="Threads that every peer may use.", min=1)]
Seconds = Annotated[float, typer.Option(help="Seconds of timing for each case.", min=0)]
Precision = Annotated[str, typer.Option(help="What products compute in: f32, or bf16 beside f32.")]
Results = Annotated[Path, typer.Argument(help="A file of results.")]


@app.command("run")
def run_suite(
    name: Name = "latest",
    models: Models = "",
    peers: Peers = "",
    batches: Batches = "1,8",
    threads: Threads = 2,
    seconds: Seconds = 20.0,
    quality: Annotated[bool, typer.Option("--quality", help="Also measure quality on real data.")] = False,
    precision: Precision = "f32",
) -> None:
    """Time every model under every peer, in turns, and print the table."""
    sizes, those = _sizes(batches), _chosen(peers, _of_precision(precision))
    chosen = Choice(_chosen(models, ZOO), those, sizes, threads, Effort(seconds), quality, precision)
    with _progress() as say:
        suite = run(chosen, name, FOLDER / f"{name}.json", say)
    typer.echo(markdown(suite))


@app.command()
def kernels(
    name: Name = "kernels",
    only: Annotated[str, typer.Option(help="Names of kernels, separated by commas; all by default.")] = "",
    threads: Threads = 2,
    seconds: Seconds = 2.0,
) -> None:
    """Time single kernels of planish against the peak and bandwidth of the machine."""
    from benchmarks.kernels import KERNELS, run_kernels
    from benchmarks.table import kernel_markdown

    path = FOLDER / f"{name}.json"
    with _progress() as say:
        suite = run_kernels(_chosen(only, KERNELS), name, path, threads=threads, effort=Effort(seconds), say=say)
    typer.echo(kernel_markdown(suite))


@app.command("compile")
def compile_models(name: Name = "compile", models: Models = "", threads: Threads = 2) -> None:
    """Compile models, each in a process of its own: seconds by stage and peak memory."""
    from benchmarks.compile import compile_markdown, run_compile

    with _progress() as say:
        suite = run_compile(_chosen(models, ZOO), name, FOLDER / f"{name}.json", threads=threads, say=say)
    typer.echo(compile_markdown(suite))


@app.command()
def quality(name: Name = "quality", models: Models = "", threads: Threads = 2, precision: Precision = "f32") -> None:
    """Measure each model's metric on real data under eager and planish, and how far their outputs lie apart."""
    from benchmarks.quality import quality_markdown, run_quality

    ours = _of_precision(precision)[-1]
    with _progress() as say:
        path = FOLDER / f"{name}.json"
        suite = run_quality(_chosen(models, ZOO), name, path, threads=threads, say=say, ours=ours)
    typer.echo(quality_markdown(suite))


@app.command()
def language(
    name: Name = "language",
    models: Annotated[str, typer.Option(help="smollm2, llama-1.1b, separated by commas; both by default.")] = "",
    formats: Annotated[str, typer.Option(help="int4, int8, bf16, f32, separated by commas; all by default.")] = "",
    peers: Peers = "",
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas; 1,8 by default.")] = "",
    cases: Annotated[
        str,
        typer.Option(
            help="prefill-TOKENS or decode-TOKENS, after prompts of so many tokens, separated by commas; by default "
            "prefill-128, -512, -2048 and decode-16, -512, -2048. A decode case times its prefill as well."
        ),
    ] = "",
    threads: Threads = 2,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a generation; 33 by default.", min=2)] = None,
    rounds: Annotated[int | None, typer.Option(help="Generations of a case; 3 by default.", min=1)] = None,
    limit: Annotated[
        float | None, typer.Option(help="Seconds that a peer may spend on a case; 60 by default.", min=1)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="After so many minutes nothing new is begun; the same command goes on.", min=0)
    ] = None,
    group: Annotated[int, typer.Option(help="Peers alive at once; by default what the memory holds.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="By default 4 and 8 bits, batch 1, three peers.")] = False,
    headline: Annotated[bool, typer.Option("--headline", help="By default the cases with an aim, six peers.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the file holds already.")] = False,
) -> None:
    """Time prefill and decode of language models under every peer, in turns, and print the table.

    Results are kept case by case: a run that was killed, or out of its minutes, goes on with the same command.
    --quick and --headline choose what is measured where nothing else is said.
    """
    from benchmarks.language.grid import FULL, HEADLINE, QUICK, chosen
    from benchmarks.language.run import Run, left, run_language
    from benchmarks.language.table import language_markdown

    if quick and headline:
        raise InputError("--quick and --headline choose different cases; give one of them")
    names = {"models": models, "formats": formats, "peers": peers, "cases": cases}
    effort: dict[str, Any] = {"tokens": tokens, "rounds": rounds, "limit_seconds": limit}
    sizes = _sizes(batches) if batches else ()
    preset = chosen(QUICK if quick else HEADLINE if headline else FULL, **names, batches=sizes, **effort)
    run = Run(preset, threads, group, minutes)
    with _progress() as say:
        suite = run_language(run, name, FOLDER / f"{name}.json", say, fresh=fresh)
    typer.echo(language_markdown(suite))
    if missing := left(run, suite):
        typer.echo(f"{len(missing)} cases are left, {missing[0]} the first; the same command goes on", err=True)


@app.command()
def perplexity(
    name: Name = "perplexity",
    models: Annotated[str, typer.Option(help="smollm2, glassllm; both by default.")] = "",
    formats: Annotated[str, typer.Option(help="Names of formats, separated by commas; all by default.")] = "",
    windows: Annotated[int, typer.Option(help="Windows of each text.", min=1)] = 4,
    threads: Threads = 2,
    reference: Annotated[bool, typer.Option("--reference", help="On the reference evaluator, not compiled.")] = False,
) -> None:
    """Measure the perplexity of formats of weights and caches on real text."""
    from benchmarks.language.perplexity import perplexity_markdown, run_perplexity
    from benchmarks.language.quality import FORMATS, MODELS

    found = _chosen(models, MODELS), _chosen(formats, FORMATS)
    with _progress() as say:
        path = FOLDER / f"{name}.json"
        suite = run_perplexity(*found, name, path, windows=windows, threads=threads, reference=reference, say=say)
    typer.echo(perplexity_markdown(suite))


@app.command()
def greedy(
    name: Name = "greedy",
    prompts: Annotated[int, typer.Option(help="Passages of real text to continue.", min=1)] = 20,
    tokens: Annotated[int, typer.Option(help="Tokens of each continuation.", min=1)] = 64,
    threads: Threads = 2,
) -> None:
    """Compare on SmolLM2 the greedy texts of the float artifact with those of transformers."""
    from benchmarks.language.greedy import greedy_markdown, greedy_prompts, run_greedy
    from benchmarks.language.source import load_smollm2

    path, passages = FOLDER / f"{name}.json", greedy_prompts(prompts)
    with _progress() as say:
        suite = run_greedy(load_smollm2(), passages, tokens, name, path, threads=threads, say=say)
    typer.echo(greedy_markdown(suite))


@app.command()
def start(
    name: Name = "start",
    runs: Annotated[int, typer.Option(help="Fresh processes to time.", min=1)] = 7,
    threads: Threads = 2,
) -> None:
    """Compile SmolLM2 in 4 bits, then time fresh processes from their start to the first token and their memory."""
    from benchmarks.language.start import run_start, start_markdown

    with _progress() as say:
        suite = run_start(name, FOLDER / f"{name}.json", runs=runs, threads=threads, say=say)
    typer.echo(start_markdown(suite))


@app.command()
def gpu(
    name: Annotated[
        str, typer.Option(help="The result file is benchmarks/results/NAME.json; by default gpu-DEVICE.")
    ] = "",
    only: Annotated[str, typer.Option(help="Names of cases, separated by commas; all by default.")] = "",
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each size of a case.", min=0)] = 0.15,
    minutes: Annotated[float, typer.Option(help="After so many it stops; the same command goes on.")] = 8.0,
    tune: Annotated[int, typer.Option(help="Variants of each kernel to measure; some cases take six.", min=0)] = 3,
    ship: Annotated[
        bool, typer.Option("--ship", help="Write the times of variants to the records that planish brings along.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the file holds already.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder of all that is written, --ship included; benchmarks/results.")
    ] = None,
) -> None:
    """Check and time kernels and layers on the GPU at hand beside torch, and print the table.

    Results are kept case by case: a run that was killed, or out of its minutes, goes on with the same command.
    """
    from benchmarks.gpu.results import gpu_markdown, plot_gpu
    from benchmarks.gpu.run import ALL, GpuRun, begin, left, measure_named, run_gpu, ship_records

    run = GpuRun(_chosen(only, ALL), seconds, minutes, tune)
    begun = begin()
    path = (out or FOLDER) / f"{name or 'gpu-' + begun.device.lower().replace(' ', '-')}.json"
    with _progress() as say:
        suite = run_gpu(run, begun, path, say, measure=measure_named, fresh=fresh)
    typer.echo(gpu_markdown(suite))
    if find_spec("matplotlib") is not None:
        plot_gpu(suite, path.with_suffix(".png"))
    if ship:
        typer.echo(ship_records(out), err=True)
    if missing := left(run, suite):
        typer.echo(f"{len(missing)} cases are left, {missing[0]} the first; the same command goes on", err=True)


@app.command()
def table(file: Results) -> None:
    """Print results of `run` or `language` as Markdown."""
    from benchmarks.language.results import load as load_language
    from benchmarks.language.table import language_markdown

    typer.echo(language_markdown(load_language(file)) if suite_of(file) == "language" else markdown(load(file)))


@app.command()
def plot(
    file: Results, out: Annotated[Path | None, typer.Option(help="The PNG; beside FILE by default.")] = None
) -> None:
    """Draw results as a PNG."""
    from benchmarks.plot import plot as draw

    path = out or file.with_suffix(".png")
    draw(load(file), path)
    typer.echo(str(path))


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


def _chosen(words: str, known: Iterable[_Item]) -> tuple[_Item, ...]:
    """The items whose names are in `words`, in the order of `known`; all of them for the empty text."""
    items = tuple(known)
    wanted = {word.strip() for word in words.split(",") if word.strip()}
    names = {item.name for item in items}
    if unknown := sorted(wanted - names):
        raise InputError(f"nothing to measure is called '{unknown[0]}'{nearest(unknown[0], names)}")
    return tuple(item for item in items if item.name in wanted or not wanted)


def _of_precision(precision: str) -> tuple[Peer, ...]:
    """The peers of a run, of which the last is planish."""
    if precision not in BY_PRECISION:
        raise InputError(f"'{precision}' is no precision{nearest(precision, BY_PRECISION)}; give f32 or bf16")
    return BY_PRECISION[precision]


def _sizes(words: str) -> tuple[int, ...]:
    return tuple(_size(word) for word in words.split(","))


def _size(word: str) -> int:
    if not word.strip().isdigit() or int(word) < 1:
        raise InputError(f"'{word}' is no size; give whole numbers from 1 on, separated by commas")
    return int(word)


@contextmanager
def _progress() -> Iterator[Say]:
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda text: status.update(text) if console.is_terminal else console.print(text)


def main() -> None:
    """Runs the command line; errors of the user or of a peer are one line and exit status 2."""
    try:
        app()
    except (PlanishError, PeerError, DataError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
