"""The command line: compile, run, bench, inspect, profiles, passes."""

import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from planish.errors import InputError, PlanishError

app = typer.Typer(
    name="planish",
    help="Compile PyTorch and ONNX models for one hardware target, and run what comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profiles_app = typer.Typer(
    help="Hardware profiles: list them, show one, or detect this machine's.", no_args_is_help=True
)
app.add_typer(profiles_app, name="profiles")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
console = Console(stderr=True)


def main() -> None:
    """Run the command line; errors of planish end it with one sentence and status 1."""
    try:
        app()
    except PlanishError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False)
        sys.exit(1)


@app.command("compile")
def compile_command(
    model: Annotated[
        str, typer.Argument(help="package.module:function that returns (model, inputs[, dynamic]), or a .onnx file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write: a folder, or a .zip.")],
    target: Annotated[str, typer.Option(help="'cpu', a profile's name, or the path of a profile's TOML.")] = "cpu",
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="A pass as text; repeat in order. All exact passes by default.")
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="An expected size, such as B=8; repeat.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a call; all cores by default.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace whatever is at the output.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a model and write its artifact."""
    import planish

    module, inputs, dynamic = load_reference(model)
    with console.status("starting") as status:
        compiled = planish.compile(
            module,
            target,
            inputs=inputs,
            dynamic=dynamic,
            workload=dict(parse_size(text) for text in workload or []),
            passes=passes,
            threads=threads,
            progress=lambda stage: status.update(stage),
        )
        status.update("saving")
        compiled.save(output, overwrite=overwrite)
    report = compiled.report
    if as_json:
        typer.echo(
            json.dumps({"artifact": str(output), "report": report if isinstance(report, str) else report.to_json()})
        )
    else:
        typer.echo(str(report))
        typer.echo(f"wrote {output}")


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="An artifact: folder or .zip.")],
    inputs: Annotated[
        Path | None, typer.Option(help="A .npz or .safetensors with the inputs by name; random ones by default.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="A size for random inputs, such as S=64; repeat.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the results as .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Run an artifact once and print its results' shapes, or write them."""
    import numpy

    from planish.cli_inputs import example_inputs, read_inputs
    from planish.runtime.artifact import load

    executable = load(artifact)
    main_function = executable.main
    given = read_inputs(inputs, main_function.plan) if inputs else example_inputs(main_function.plan, sizes_of(size))
    results = main_function.run(given)
    if output:
        numpy.savez(output, **{f"output_{i}": result for i, result in enumerate(results)})
    rows = [
        {"output": i, "dtype": str(r.dtype), "shape": list(r.shape), "first": r.ravel()[:4].tolist()}
        for i, r in enumerate(results)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        print_table(["output", "dtype", "shape", "first values"], [list(map(str, row.values())) for row in rows])


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="An artifact: folder or .zip.")],
    size: Annotated[list[str] | None, typer.Option(help="A size for the inputs, such as B=8; repeat.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    by_scope: Annotated[bool, typer.Option("--profile", help="Also the time of each kernel by module.")] = False,
    as_json: Json = False,
) -> None:
    """Time calls of an artifact on random inputs: median, 10th percentile and best, in milliseconds."""
    from planish.cli_inputs import example_inputs
    from planish.runtime.artifact import load

    executable = load(artifact, threads=threads)
    given = example_inputs(executable.main.plan, sizes_of(size))
    times = time_calls(lambda: executable.main.run(given), seconds)
    deciles = statistics.quantiles(times, n=10)
    row = {"calls": len(times), "median_ms": statistics.median(times), "p10_ms": deciles[0], "best_ms": min(times)}
    if as_json:
        typer.echo(json.dumps({**row, "threads": executable.threads}))
        return
    typer.echo(
        ", ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
    )
    if by_scope:
        typer.echo(str(executable.main.profile_leaves(given)))


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact: folder or .zip.")], as_json: Json = False
) -> None:
    """Show what an artifact is, without running any of it."""
    from planish.runtime.inspection import inspect as read

    info = read(artifact)
    typer.echo(json.dumps(info.to_json()) if as_json else str(info))


@app.command("passes")
def passes_command(as_json: Json = False) -> None:
    """List the passes with their options and what they do."""
    from planish.compiler.recipe import pass_text
    from planish.passes import ALL, EXACT

    default = [pass_text(p) for p in EXACT]
    rows = [{"pass": p.name, "contract": str(p.contract), "does": (p.__doc__ or "").split("\n")[0]} for p in ALL]
    if as_json:
        typer.echo(json.dumps({"passes": rows, "default": default}))
    else:
        print_table(["pass", "contract", "what it does"], [list(row.values()) for row in rows])
        typer.echo("default order: " + ", ".join(default))


@profiles_app.command("list")
def profiles_list(as_json: Json = False) -> None:
    """List the built-in profiles."""
    from planish.hardware_profiles import load_profile, profile_names

    rows = [
        {"name": name, "backend": (p := load_profile(name)).backend, "description": p.description}
        for name in profile_names()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        print_table(["profile", "backend", "description"], [list(row.values()) for row in rows])


@profiles_app.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help="A profile's name, or the path of a TOML.")], as_json: Json = False
) -> None:
    """Print a profile as TOML."""
    from planish.hardware_profiles import load_profile

    profile = load_profile(name)
    typer.echo(profile.model_dump_json() if as_json else profile.to_toml())


@profiles_app.command("detect")
def profiles_detect(
    refresh: Annotated[bool, typer.Option(help="Measure again instead of using the stored figures.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the CPU at hand (about four seconds, once) and print its profile as TOML."""
    from planish.hardware_profiles import detect

    profile = detect(refresh=refresh)
    typer.echo(profile.model_dump_json() if as_json else profile.to_toml())


def load_reference(reference: str) -> tuple[Any, Any, Any]:
    """Model, inputs and dynamic axes of `package.module:function`, or an ONNX file's path with neither.

    Raises InputError naming the part that is wrong.
    """
    if reference.endswith(".onnx"):
        return reference, None, None
    name, _, attribute = reference.partition(":")
    if not attribute:
        raise InputError(f"'{reference}' is neither an .onnx file nor package.module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"'{reference}': there is no module '{error.name}'; run where it can be imported") from None
    if not callable(function := getattr(module, attribute, None)):
        raise InputError(f"'{reference}': module '{name}' has no function '{attribute}'")
    result = function()
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise InputError(f"'{reference}' returned {type(result).__name__}; it must return (model, inputs[, dynamic])")
    return (*result, None)[:3]


def sizes_of(texts: list[str] | None) -> dict[str, int]:
    """The sizes of repeated options."""
    return dict(parse_size(text) for text in texts or [])


def parse_size(text: str) -> tuple[str, int]:
    """`B=8` as a name and a number; raises InputError otherwise."""
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value.isdigit():
        raise InputError(f"a size is NAME=NUMBER such as B=8, not '{text}'")
    return name, int(value)


def time_calls(call: Any, seconds: float) -> list[float]:
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


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A table on standard output."""
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
