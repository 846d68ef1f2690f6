"""What compiling a language model for generation adds: sizes, passes, interfaces and the recorded prompt."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.codegen.function_plan import Interface
from planish.compiler import ops
from planish.compiler.evaluate import Run, evaluate, run_node
from planish.compiler.importers import Imported
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.pass_ import Pass
from planish.errors import ImportGraphError, InputError
from planish.generation import Generation, end_tokens, tokenizer_of
from planish.hardware_profiles import Profile
from planish.passes import EXACT
from planish.passes.split_generation import SplitGeneration
from planish.passes.split_generation_analysis import token_ids
from planish.recording import codes_tolerance, is_narrower, model_tolerance
from planish.runtime.artifact import Language
from planish.runtime.generation.settings import Settings
from planish.runtime.golden import LanguageGolden
from planish.runtime.signature import Parameter, Signature
from planish.runtime.tree import sequence, tensor

_RECORDED_TOKENS = 24
_SEQUENCE, _BATCH = "sequence", "batch"


def with_sizes(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any, generation: Generation
) -> tuple[dict[str, Any], Any]:
    """Keyword arguments and dynamic axes for the import: without the model's own cache, batch and tokens dynamic.

    Declared `dynamic` axes stay as they are. Raises InputError where no example input is a tensor [B, S] of ids.
    """
    if not isinstance(generation, Generation):
        raise InputError(f"compile: generate is a planish.Generation(...), not {generation!r}")
    if isinstance(model, nn.Module) and "use_cache" not in kwargs and _takes_use_cache(model, len(args)):
        kwargs = {**kwargs, "use_cache": False}
    if dynamic is not None or not isinstance(model, nn.Module):
        return kwargs, dynamic
    given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
    ids = next((x for x in given.values() if _is_ids(x)), None)
    if ids is None:
        raise InputError(
            "compile with generate= needs example token ids, a tensor of integers [batch, tokens], among inputs; or "
            "declare dynamic"
        )
    axes: dict[int, Any] = {1: _SEQUENCE}
    if generation.batch > 1 or ids.shape[0] > 1:
        axes[0] = _BATCH
    return kwargs, {name: axes for name, x in given.items() if isinstance(x, Tensor) and x.shape == ids.shape}


@contextmanager
def saying_what_can_generate(model: Any, generation: Generation | None) -> Iterator[None]:
    """Where the number of tokens cannot be dynamic, says what kinds of models generate."""
    try:
        yield
    except ImportGraphError as error:
        cause, found, _ = str(error).partition(". To go on")
        if generation is None or not found or "does not take the dynamic sizes" not in cause:
            raise
        raise ImportGraphError(
            f"{type(model).__name__} cannot be compiled with generate=, which takes decoders where nothing but causal "
            f"attention mixes tokens, no recurrent layers (Mamba, RWKV) and no convolutions over tokens: {cause}"
        ) from error


def _takes_use_cache(model: nn.Module, given: int) -> bool:
    """Whether the model has an argument `use_cache` behind those given by place, or hands one on to what has."""
    parameters = inspect.signature(model.forward).parameters
    hands_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "use_cache" in list(parameters)[given:] or (
        hands_on and hasattr(getattr(model, "config", None), "use_cache")
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and value.ndim == 2


def check_generation(generation: Generation, profile: Profile) -> None:
    """Raise InputError where the target has no kernels for the caches, or the tokenizer cannot be stored."""
    tokenizer_of(generation.tokenizer)
    if generation.cache == "i4" and profile.backend != "triton":
        raise InputError(
            f"compile: caches of 'i4' have kernels for GPUs alone; on {profile.name} use cache='f32', 'f16' or 'i8'"
        )


def check_end(generation: Generation, program: Program) -> None:
    """Raise InputError where a given token that ends texts is none of the model's."""
    outside = [token for token in generation.given_end or () if token >= _vocabulary(program)]
    if outside:
        raise InputError(
            f"Generation: end holds token {outside[0]}, outside the vocabulary of {_vocabulary(program)} of the model"
        )


def context_notes(model: Any, generation: Generation | None) -> tuple[str, ...]:
    """What the report says of a context beyond the positions that the model's configuration was trained for."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if generation is None or not isinstance(most, int) or generation.context <= most:
        return ()
    return (
        f"{generation.context} tokens are more than the {most} of the model's max_position_embeddings; it may write "
        "nonsense behind those",
    )


def _vocabulary(program: Program) -> int:
    size = program.functions["decode"].outputs[0].shape[-1]
    assert isinstance(size, int)
    return size


def with_split(chosen: Sequence[Pass], generation: Generation) -> tuple[Pass, ...]:
    """The passes with `split-generation` behind the exact ones; those run first where `chosen` holds none of them."""
    exact = tuple(type(each) for each in EXACT)
    if any(isinstance(each, SplitGeneration) for each in chosen):
        return tuple(chosen)
    split = SplitGeneration(generation.context, generation.chunk, generation.batch, generation.cache)
    if not any(isinstance(each, exact) for each in chosen):
        return (*EXACT, split, *chosen)
    first = next((i for i, each in enumerate(chosen) if not isinstance(each, exact)), len(chosen))
    return (*chosen[:first], split, *chosen[first:])


def with_greedy_tokens(program: Program) -> Program:
    """The program whose `decode` also gives the likeliest token of each row, as the last of its results."""
    decode = program.functions["decode"]
    return program.with_function(replace(decode, outputs=(*decode.outputs, ops.greedy_tokens(decode.outputs[0]))))


def interfaces(program: Program) -> dict[str, Interface]:
    """How `prefill` and `decode` are called: inputs by their names, results as a list."""
    found = {}
    for name, graph in program.functions.items():
        inputs = tuple(Parameter(str(v.node.attrs["name"]), tensor()) for v in graph.inputs)
        found[name] = Interface(Signature(inputs, len(inputs)), sequence("list", [tensor()] * len(graph.outputs)))
    return found


def language(
    model: Any, imported: Imported, program: Program, generation: Generation, args: Any, kwargs: Any
) -> Language:
    """The settings, the tokenizer and the recorded prompt of the artifact."""
    stored = tokenizer_of(generation.tokenizer)
    vocabulary = _vocabulary(program)
    settings = Settings(
        context=generation.context,
        chunk=_tokens_at_once(program.functions["prefill"]),
        batch=generation.batch,
        vocabulary=vocabulary,
        end=tuple(token for token in end_tokens(generation, model, stored) if token < vocabulary),
        cache=generation.cache,
        special={} if stored is None else stored.special,
    )
    return Language(settings, stored, record(model, imported, program, args, kwargs))


def _tokens_at_once(graph: Graph) -> int:
    return next(size.high for size in graph.sizes if size.name == "tokens")


@torch.no_grad()
def record(model: Any, imported: Imported, program: Program, args: Any, kwargs: Any) -> LanguageGolden:
    """A prompt of the example ids and the logits after it, by the model itself where all passes keep its numbers.

    Else, and where the model's numbers are not finite, by the reference evaluator on the compiled program, which also
    says what the chosen codes compute.
    """
    leaves = list(imported.leaves(args, kwargs))
    graph = imported.program.main
    ids = leaves[graph.inputs.index(token_ids(graph))]
    prompt = ids[:1, : min(_RECORDED_TOKENS, _tokens_at_once(program.functions["prefill"]))].long().contiguous()
    if not _changed(program, imported.program):
        results = _called(model, imported, args, kwargs, ids, prompt)
        logits = _last_logits(results, program, prompt)
        if logits is not None:
            tolerance = model_tolerance(graph, (logits,))
            return LanguageGolden(prompt[0].numpy(), logits.numpy(), tolerance)
    logits = evaluated(program, prompt)
    tolerance = codes_tolerance(program, (logits,), lambda run: (evaluated(program, prompt, run),))
    return LanguageGolden(prompt[0].numpy(), logits.numpy(), tolerance)


def _changed(program: Program, source: Program) -> bool:
    """Whether weights, activations or caches are narrower than in the model."""
    caches = program.functions["decode"].inputs[3:]
    return is_narrower(program, source) or any(v.dtype.value != "f32" for v in caches)


def _called(model: Any, imported: Imported, args: Any, kwargs: Any, ids: Tensor, prompt: Tensor) -> tuple[Tensor, ...]:
    """The model's results for the prompt alone: masks of ones, positions from 0."""
    graph = imported.program.main
    leaves = imported.leaves(args, kwargs)
    cut = [
        prompt.to(x.dtype) if x is ids else _plain(str(v.node.attrs["name"]), x, prompt)
        for v, x in zip(graph.inputs, leaves, strict=True)
    ]
    if not isinstance(model, nn.Module):
        return evaluate(graph, cut, imported.program.weights)
    by_identity = {id(old): new for old, new in zip(leaves, cut, strict=True)}
    replaced = pytree.tree_map(lambda leaf: by_identity.get(id(leaf), leaf), (args, kwargs))
    result = model(*replaced[0], **replaced[1])
    return tuple(map(torch.as_tensor, imported.result_leaves(result)))


def _plain(name: str, given: Tensor, prompt: Tensor) -> Tensor:
    """An input besides the ids as `split-generation` takes it to be: a mask of ones, or positions."""
    cut = given[:1, : prompt.shape[1]] if given.ndim == 2 else given[..., : prompt.shape[1]]
    if "position" in name:
        return torch.arange(prompt.shape[1], dtype=given.dtype).expand(cut.shape)
    return torch.ones_like(cut)


def _last_logits(results: Sequence[Tensor], program: Program, prompt: Tensor) -> Tensor | None:
    """The logits f32[V] of the last token among the results of all tokens, or of the last one, if they are finite."""
    vocabulary = program.functions["prefill"].outputs[0].shape[-1]
    shapes = ((1, prompt.shape[1], vocabulary), (1, 1, vocabulary), (1, vocabulary))
    found = next((r for r in results if tuple(r.shape) in shapes), None)
    if found is None or not bool((last := found.reshape(-1, found.shape[-1])[-1]).isfinite().all()):
        return None
    return last.float().contiguous()


def evaluated(program: Program, prompt: Tensor, run: Run = run_node) -> Tensor:
    """The logits f32[V] after a prompt i64[1, S] by the reference evaluator, which runs nodes by `run`."""
    graph = program.functions["prefill"]
    count = torch.tensor([prompt.shape[1]])
    caches = [_empty(value) for value in graph.inputs[3:]]
    alone = Graph(graph.name, graph.inputs, graph.outputs[:1], graph.sizes)
    logits = evaluate(alone, [prompt, torch.zeros_like(count), count, *caches], program.weights, run=run)[0]
    return logits[0].float().contiguous()


def _empty(cache: Value) -> Tensor:
    shape = [size if isinstance(size, int) else 1 for size in cache.shape]
    return torch.zeros(shape, dtype=TORCH_DTYPE[cache.dtype])
