"""What a recorded result allows where activations are rounded to codes: other orders of sums, and no damage."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

import planish
from planish.compilation_generation import evaluated
from planish.compiler import ops
from planish.compiler.evaluate import run_node
from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.errors import ArtifactError
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.split_generation import SplitGeneration
from planish.recording import codes_tolerance
from planish.runtime.intake import hash_file
from planish.runtime.manifest import FileEntry, Manifest, Tolerance
from tests.generation import architectures
from tests.generation.stepping import imported, split

_PROMPT = torch.arange(3, 27)[None]


def llama(layers: int, hidden: int = 32) -> torch.nn.Module:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers}
    config = transformers.LlamaConfig(**{**architectures._GATED, **sizes})
    return architectures.build(transformers.LlamaForCausalLM, config)


def rounded(layers: int, hidden: int) -> Program:
    whole = split(imported(llama(layers, hidden), batch=1), SplitGeneration(64, 32, 1, "f32"))
    return split(whole, QuantizeWeights(bits=8, activations="int8"))


@cache
def deep() -> tuple[Program, Tensor, Tolerance]:
    """A network that rounding moves far, its logits and what is allowed."""
    program = rounded(16, 64)
    return program, *allowed(program)


def allowed(program: Program) -> tuple[Tensor, Tolerance]:
    """The recorded logits, and how far others may be from them."""
    logits = evaluated(program, _PROMPT)
    return logits, codes_tolerance(program, (logits,), lambda run: (evaluated(program, _PROMPT, run),))


def within(got: Tensor, logits: Tensor, tolerance: Tolerance) -> bool:
    return np.allclose(got.numpy(), logits.numpy(), rtol=tolerance.rtol, atol=tolerance.atol)


def in_double(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Products summed in f64, which no order of f32 sums gives."""
    if node.op is not ops.linear:
        return run_node(node, values, sizes)
    return (functional.linear(*(values[v].double() for v in node.operands)).float(),)


def test_other_orders_of_sums_are_within_the_tolerance() -> None:
    program, logits, tolerance = deep()
    assert within(evaluated(program, _PROMPT, in_double), logits, tolerance)


def test_codes_of_a_model_in_f16_allow_the_rounding_of_f16() -> None:
    whole = split(imported(llama(8).half(), batch=1), SplitGeneration(64, 32, 1, "f16"))
    program = split(whole, QuantizeWeights(bits=8))
    logits, tolerance = allowed(program)
    assert tolerance.rtol == 16 * 2.0**-11

    def wide(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """As a kernel that computes in f32 and rounds its result alone."""
        operands = {v: t.float() if t.dtype is torch.float16 else t for v, t in values.items()}
        results = run_node(node, operands, sizes)
        return tuple(t.to(TORCH_DTYPE[v.dtype]) for t, v in zip(results, node.values, strict=True))

    others = evaluated(program, _PROMPT, wide)
    assert float((others - logits).abs().max()) > 1e-4 * float(logits.abs().max())
    assert within(others, logits, tolerance)


def test_what_a_deep_network_moves_by_rounding_widens_the_tolerance_and_stays_far_from_damage() -> None:
    program, logits, tolerance = deep()
    largest = float(logits.abs().max())
    assert 0.05 * largest < tolerance.atol < 0.25 * largest
    name = "model.layers.8.mlp.down_proj.weight.scale"
    damaged = program.with_weights({**program.weights, name: -program.weights[name]})
    assert not within(evaluated(damaged, _PROMPT), logits, tolerance)


def test_weights_of_codes_alone_are_held_to_the_same_numbers() -> None:
    whole = split(imported(llama(2), batch=1), SplitGeneration(64, 32, 1, "f32"))
    logits, tolerance = allowed(split(whole, QuantizeWeights(bits=8)))
    assert tolerance == Tolerance(1e-3, 1e-3 * max(1.0, float(logits.abs().max())))


def test_load_refuses_code_that_computes_with_damaged_scales(tmp_path: Path) -> None:
    compiled = planish.compile(
        llama(2),
        inputs=(torch.arange(3, 19)[None],),
        generate=planish.Generation(context=32, chunk=16),
        passes=['quantize-weights{bits=8, activations="int8"}'],
    )
    compiled.save(tmp_path / "lm")
    planish.load(tmp_path / "lm")
    negate(tmp_path / "lm", "model.layers.1.mlp.down_proj.weight.scale")
    with pytest.raises(ArtifactError, match=r"golden check: the logits of decode is"):
        planish.load(tmp_path / "lm")


def negate(folder: Path, name: str) -> None:
    """Turn the signs of the f16 numbers whose name begins so, and sign the file anew."""
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    (entry,) = (entry for key, entry in header.items() if key.startswith(name) and entry["dtype"] == "F16")
    for at in range(start + entry["data_offsets"][0] + 1, start + entry["data_offsets"][1], 2):
        data[at] ^= 0x80
    file.write_bytes(data)
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    files = {**manifest.files, file.name: FileEntry(hash_file(file), len(data))}
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, files=files).to_bytes())
