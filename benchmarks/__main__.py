"""The command line of the benchmarks: run, kernels, compile, quality, table, plot."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer
from rich.console import Console

from benchmarks.peers import PEERS, PeerError
from benchmarks.results import FOLDER, load
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
Results = Annotated[Path, typer.Argument(help="A result file of `run`.")]


@app.command("run")
def run_suite(
    name: Name = "latest",
    models: Models = "",
    peers: Peers = "",
    batches: Batches = "1,8",
    threads: Threads = 2,
    seconds: Seconds = 20.0,
    quality: Annotated[bool, typer.Option("--quality", help="Also measure quality on real data.")] = False,
) -> None:
    """Time every model under every peer, in turns, and print the table."""
    sizes = tuple(_size(word) for word in batches.split(","))
    chosen = Choice(_chosen(models, ZOO), _chosen(peers, PEERS), sizes, threads, Effort(seconds), quality)
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
def quality(name: Name = "quality", models: Models = "", threads: Threads = 2) -> None:
    """Measure each model's metric on real data under eager and planish, and how far their outputs lie apart."""
    from benchmarks.quality import quality_markdown, run_quality

    with _progress() as say:
        suite = run_quality(_chosen(models, ZOO), name, FOLDER / f"{name}.json", threads=threads, say=say)
    typer.echo(quality_markdown(suite))


@app.command()
def table(file: Results) -> None:
    """Print results as Markdown."""
    typer.echo(markdown(load(file)))


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


def _size(word: str) -> int:
    if not word.strip().isdigit() or int(word) < 1:
        raise InputError(f"'{word}' is no batch size; give whole numbers from 1 on, separated by commas")
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
