"""How many kernels a layer of a language model is on a GPU: what joins the kernel of its neighbour."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
import transformers

from planish.codegen.select import Choice, select
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.request import request_of
from planish.codegen.triton.templates import TEMPLATES
from planish.compilation_generation import with_sizes, with_split
from planish.compiler.importers import import_torch
from planish.compiler.ir import Program
from planish.compiler.pass_ import Context, Pass
from planish.compiler.pipeline import Pipeline
from planish.generation import Generation
from planish.hardware_profiles import load_profile
from planish.passes import EXACT
from planish.passes.quantize_weights import QuantizeWeights
from tests.codegen.triton.harness import device
from tests.compiler.models import bert
from tests.generation import architectures


@cache
def exact() -> tuple[Program, Context]:
    """The two functions of a language model, and what its passes were told."""
    config = transformers.LlamaConfig(**architectures._GATED)
    net = architectures.build(transformers.LlamaForCausalLM, config).half()
    ids, generation = torch.tensor([[5, 9, 11, 3, 17]]), Generation(context=16, chunk=4)
    kwargs, dynamic = with_sizes(net, (ids,), {}, None, generation)
    imported = import_torch(net.eval(), (ids,), kwargs, dynamic=dynamic)
    context = Context(load_profile("h200"), dict(imported.program.main.hints()))
    return Pipeline(with_split(EXACT, generation)).run(imported.program, context)[0], context


@cache
def program(*lossy: Pass) -> Program:
    made, context = exact()
    return Pipeline(lossy).run(made, context)[0]


def layer(*lossy: Pass, gpu: str = "h200") -> list[Choice]:
    """The calls of the second layer when it decodes a token."""
    work = select(program(*lossy).functions["decode"], TEMPLATES, device(gpu)).work
    return [each for each in work if isinstance(each, Choice) and ".layers.1." in f".{each.call.scope}."]


def launches(choices: Sequence[Choice]) -> list[tuple[str, int]]:
    """The templates of calls, and how many launches each is."""
    return [(c.template.name, len(c.template.build(c.call, device()).launches)) for c in choices]


def test_a_layer_of_int4_decodes_in_nine_launches() -> None:
    assert launches(layer(QuantizeWeights(bits=4, group=32))) == [
        ("rows", 1),
        ("quantized-linear", 1),  # queries, keys and values
        ("cache-update", 1),  # keys with their positions, and values
        ("cached-attention", 2),  # with the positions of queries; parts of the keys, and their merge
        ("quantized-linear", 1),  # with the residual
        ("rows", 1),
        ("quantized-linear", 1),  # gate and up
        ("quantized-linear", 1),  # with the residual
    ]


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_a_layer_with_quantized_activations_decodes_in_eleven_launches(bits: int, group: int | None) -> None:
    assert launches(layer(QuantizeWeights(bits=bits, group=group, activations="int8"))) == [
        ("quantized-rows", 1),  # with the norm
        ("int8-linear", 1),
        ("cache-update", 1),
        ("cached-attention", 2),
        ("quantized-rows", 1),
        ("int8-linear", 1),
        ("quantized-rows", 1),
        ("int8-linear", 1),  # gate and up
        ("quantized-rows", 1),
        ("int8-linear", 1),
    ]


def test_a_layer_of_bert_with_quantized_activations_is_nine_launches() -> None:
    case = bert()
    imported = import_torch(case.model.half(), case.args, dict(case.kwargs), dynamic=case.dynamic).program
    context = Context(load_profile("h200"), dict(imported.main.hints()))
    lossy = QuantizeWeights(bits=8, activations="int8")
    work = select(Pipeline((*EXACT, lossy)).run(imported, context)[0].main, TEMPLATES, device()).work
    inside = [each for each in work if isinstance(each, Choice) and ".layer.1." in each.call.scope]
    assert launches(inside) == [
        ("int8-linear", 1),  # queries, keys and values; their codes come with the norm before
        ("attention", 1),
        ("quantized-rows", 1),
        ("int8-linear", 1),  # with the residual
        ("quantized-rows", 1),  # the norm, which is a residual too, with its codes
        ("int8-linear", 1),
        ("quantized-rows", 1),
        ("int8-linear", 1),  # with the residual
        ("rows", 1),  # the pooler reads codes of its first row alone
    ]


@pytest.mark.parametrize("gpu", ["a100", "rtx-4090", "h200", "mi300x"])
def test_what_joined_compiles_without_spills(gpu: str) -> None:
    choices = [c for c in layer(gpu=gpu) if "rope" in c.call.label or "silu" in c.call.label]
    assert [c.template.name for c in choices] == ["cache-update", "cached-attention", "gemm"]
    requests = [
        request_of(c.call, launch, regime.variants[0])
        for c in choices
        for launch in c.template.build(c.call, device(gpu)).launches
        for regime in launch.regimes[:1]
    ]
    for request, binary in zip(requests, compile_all(requests, device(gpu)), strict=True):
        assert refuse_resources(binary, device(gpu)) is None
        assert binary.spilled_bytes == 0, request.name
