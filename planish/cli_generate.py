"""The command `generate`: text to the terminal as it is made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.cli_bench import Json
from planish.errors import InputError


def generate(
    artifact: Annotated[Path, typer.Argument(help="The artifact of a language model: folder or .zip.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from; '-' reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to make at most.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token; above, it draws.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that reach this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability relative to the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1, repeats become less likely.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes draws repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; repeat.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take the text as a user's message in a chat.")] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="The prompt is token ids, such as '1 5 7'; so is the result.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a step; all cores by default.")] = None,
    verify: Annotated[bool, typer.Option(help="Check hashes and the recorded result first.")] = True,
    as_json: Json = False,
) -> None:
    """Generate text with a compiled language model; the speed is told at the end.

    For example: planish generate smollm2.planish "Once upon a time" --max-new-tokens 64 --top-p 0.9 --seed 1
    """
    from planish.runtime.generation.generator import GeneratesText, Options
    from planish.runtime.loading import load

    if chat and ids:
        raise InputError("--chat takes text, --ids token ids; give one of them")
    model = load(artifact, verify=verify, threads=threads)
    if not isinstance(model, GeneratesText):
        raise InputError(f"'{artifact}' is no language model; compile one with --generate")
    # an end of line is the shell's, not the prompt's
    text = typer.get_text_stream("stdin").read().removesuffix("\n") if prompt == "-" else prompt
    options: Options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop,
    }
    with model.chat(text, **options) if chat else model.generate(_ids(text) if ids else text, **options) as stream:
        pieces = _told(stream, ids=ids, quiet=as_json)
        _summary(stream, "".join(pieces), as_json=as_json)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--ids takes token ids such as '1 5 7', not '{text}'")
    return [int(word) for word in words]


def _told(stream: Any, *, ids: bool, quiet: bool) -> Sequence[str]:
    pieces = []
    for token in stream:
        pieces.append(f"{int(token)} " if ids else token.text)
        if not quiet:
            typer.echo(pieces[-1], nl=False)
    return pieces


def _summary(stream: Any, text: str, *, as_json: bool) -> None:
    figures = {
        "prompt_tokens": len(stream.prompt),
        "tokens": len(stream.ids),
        "finish_reason": stream.finish_reason,
        "seconds_to_first": round(stream.seconds_to_first, 4),
        "tokens_per_second": round(stream.tokens_per_second, 1),
    }
    if as_json:
        typer.echo(json.dumps({"text": text, "ids": stream.ids, **figures}))
        return
    typer.echo()
    typer.echo(
        f"{figures['prompt_tokens']} + {figures['tokens']} tokens, first after {stream.seconds_to_first:.3f} s, then "
        f"{stream.tokens_per_second:.1f} a second; ended by {stream.finish_reason}",
        err=True,
    )
