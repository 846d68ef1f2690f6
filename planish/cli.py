"""The command line: compile, generate, run, bench, inspect, profiles, passes."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planish.cli_bench import Json, bench
from planish.cli_generate import generate
from planish.errors import InputError, PlanishError

app = typer.Typer(
    name="planish",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profiles_app = typer.Typer(
    help="Hardware profiles: list them, show one, or detect this machine's.", no_args_is_help=True
)
app.add_typer(profiles_app, name="profiles")
app.command()(generate)
app.command()(bench)

console = Console(stderr=True)


def main() -> None:
    """Run the command line; errors of planish end it with one sentence and status 1."""
    try:
        app(prog_name="planish")
    except PlanishError as error:
        message = f"[bold red]{type(error).__name__}[/]: {escape(str(error))}"
        console.print(message, highlight=False, soft_wrap=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from planish import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Compile PyTorch and ONNX models for one hardware target, and run what comes out."""


@app.command("compile")
def compile_command(
    model: Annotated[
        str, typer.Argument(help="package.module:function that returns (model, inputs[, dynamic]), or a .onnx file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write: a folder, or a .zip.")],
    target: Annotated[
        str,
        typer.Option(help="'cpu' or 'gpu' for what is at hand, a profile's name such as h200, or a profile's TOML."),
    ] = "cpu",
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="A pass as text; repeat in order. All exact passes by default.")
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="An expected size, such as B=8; repeat.")] = None,
    generating: Annotated[
        bool, typer.Option("--generate", help="Compile a language model that generates text.")
    ] = False,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer, with --generate.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Prompts at once, with --generate.")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Prompt tokens of one step, with --generate.")] = None,
    cache: Annotated[str | None, typer.Option(help="f32, f16, i8 or i4, with --generate.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json or its folder, with --generate.")] = None,
    precision: Annotated[str, typer.Option(help="What products compute in: f32 or bf16.")] = "f32",
    tune: Annotated[
        int | None, typer.Option(min=0, help="GPUs: variants of each kernel to measure here; 3 where the GPU is.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at the output even if it is no artifact.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a model and write its artifact.

    For example: planish compile mypackage.models:encoder -o encoder.planish --workload batch=8
    """
    import planish
    from planish.cli_inputs import generation_of, load_reference, sizes_of
    from planish.runtime.storage import check_target, staging

    wanted = generation_of(generating, context=context, batch=batch, chunk=chunk, cache=cache, tokenizer=tokenizer)
    check_target(output.absolute(), overwrite=overwrite)
    with staging(output.absolute()):  # what cannot be written is said before the work, not after it
        pass
    with console.status("loading the model") as status:
        module, inputs, dynamic = load_reference(model)
        compiled = planish.compile(
            module,
            target,
            inputs=inputs,
            dynamic=dynamic,
            workload=sizes_of(workload),
            passes=passes,
            generate=wanted,
            precision=precision,
            tune=tune,
            progress=status.update,
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
    """Run an artifact once and print what comes out, or write it.

    For example: planish run encoder.planish --inputs sentence.npz -o states.npz
    """
    from planish.cli_inputs import example_inputs, read_inputs, result_names, sizes_of, write_results
    from planish.runtime.generation.generator import GeneratesText
    from planish.runtime.loading import load

    if inputs and size:
        raise InputError("--size is for random inputs; inputs from a file have their own sizes")
    executable = load(artifact)
    if isinstance(executable, GeneratesText):
        raise InputError(f"'{artifact}' is a language model; run it with: planish generate {artifact} \"some text\"")
    function = executable.main
    given = read_inputs(inputs, function.plan) if inputs else example_inputs(function.plan, sizes_of(size))
    results = dict(zip(result_names(function.plan), function.run(given), strict=True))
    if output:
        write_results(output, results)
    rows = [
        {"output": name, "dtype": str(r.dtype), "shape": list(r.shape), "first": r.ravel()[:4].tolist()}
        for name, r in results.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    print_table(["output", "dtype", "shape", "first values"], [_result_cells(row) for row in rows])
    if output:
        typer.echo(f"wrote {output}")


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


def _result_cells(row: Mapping[str, Any]) -> list[str]:
    first = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row["first"])
    return [row["output"], row["dtype"], " x ".join(map(str, row["shape"])) or "scalar", first]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A table on standard output."""
    table = Table(*head)
    for row in rows:
        table.add_row(*map(escape, row))
    # Redirected output has no width of its own: rows stay on one line there.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
