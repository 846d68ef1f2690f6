"""What the runtime passes to each kernel of a language model against what the compiled kernel takes."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from benchmarks.gpu.decode import _inputs
from planish.codegen.triton.compile import Binary, Request, compile_all
from planish.codegen.triton.device import Device
from planish.codegen.triton.parameters import _of_amdgcn, _of_ptx, refuse_parameters
from planish.generation import Generation
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.device.launcher import Passed, packed
from tests.codegen.triton.harness import device
from tests.generation import architectures
from tests.runtime.device import interpreted


def _launched(folder: Path, monkeypatch: pytest.MonkeyPatch, profile: str) -> list[tuple[Request, Sequence[Passed]]]:
    """What each kernel of a small model is compiled from, and what it is passed for a prompt and for a token."""
    asked: list[Request] = []
    passed: dict[str, Sequence[Passed]] = {}

    def noting(requests: Sequence[Request], gpu: Device) -> tuple[Binary, ...]:
        names = range(len(asked), len(asked) + len(requests))
        asked.extend(requests)
        return tuple(replace(b, symbol=str(i)) for i, b in zip(names, uncompiled(requests, gpu), strict=True))

    def launch(_: object, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        passed[kernel] = arguments

    uncompiled = interpreted.uncompiled
    monkeypatch.setattr(interpreted, "uncompiled", noting)
    monkeypatch.setattr(interpreted.InterpretedLauncher, "launch", launch)
    config = transformers.LlamaConfig(**{**architectures._GATED, "vocab_size": 64, "num_hidden_layers": 1})
    net, settings = architectures.build(transformers.LlamaForCausalLM, config).half(), Generation(context=16, chunk=4)
    ids, lossy = torch.tensor([[5, 9, 11]]), [QuantizeWeights(bits=4, group=32)]
    run = interpreted.language_executable(net, ids, folder, settings, profile=profile, lossy=lossy)
    for name, tokens in (("prefill", 3), ("decode", 1)):
        run.function(name).run(_inputs(run, name, tokens, 0, SimpleNamespace(device="cpu")))  # type: ignore[arg-type]
    return [(asked[int(run.plan.kernels[name].symbol)], given) for name, given in passed.items()]


@pytest.mark.parametrize("profile", ["h200", "mi300x"])
def test_kernels_take_what_they_are_passed_byte_for_byte(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = _launched(tmp_path, monkeypatch, profile)
    assert len({request.name for request, _ in launched}) >= 5
    gpu = device(profile)
    read, threads = (_of_ptx, r"\.reqntid (\d+)") if gpu.backend == "cuda" else (_of_amdgcn, r"workgroup_size: (\d+)")
    binaries = compile_all([request for request, _ in launched], gpu)
    for (request, given), binary in zip(launched, binaries, strict=True):
        assert [ctypes.sizeof(argument) for argument in packed(given)] == read(binary.assembly), request.name
        assert [str(binary.num_warps * gpu.warp_size)] == re.findall(threads, binary.assembly), request.name


_PTX = """.visible .entry norm(
	.param .u64 .ptr .global .align 1 norm_param_0,
	.param .u32 norm_param_1,
	.param .f32 norm_param_2,
	.param .u64 .ptr .global .align 1 norm_param_3
)
.reqntid 128
{ ld.param.u64 %rd1, [norm_param_0];"""


def test_a_kernel_with_other_parameters_than_a_launch_passes_is_refused() -> None:
    why = "the compiled kernel takes parameters of [8, 4, 4, 8] bytes, a launch passes [8, 4, 4, 8, 8]"
    assert refuse_parameters(("*fp16", "i32", "fp32"), _PTX, "cuda") == why
    assert (
        refuse_parameters(("*fp16", ("i32", "fp32")), _PTX.replace("param_3\n", "param_3,\n.param .u64 p"), "cuda")
        is None
    )


_METADATA = """amdhsa.kernels:
  - .agpr_count:     0
    .args:
      - .address_space:  global
        .offset:         0
        .size:           8
        .value_kind:     global_buffer
      - .offset:         8
        .size:           4
        .value_kind:     by_value
      - .address_space:  global
        .offset:         16
        .size:           8
        .value_kind:     global_buffer
      - .address_space:  global
        .offset:         24
        .size:           8
        .value_kind:     global_buffer
      - .offset:         32
        .size:           4
        .value_kind:     hidden_block_count_x
    .group_segment_fixed_size: 0"""


def test_what_the_runtime_of_amd_passes_by_itself_does_not_count() -> None:
    assert refuse_parameters(("*fp16", "i32"), _METADATA, "hip") is None
    assert refuse_parameters(("*fp16", "i64"), _METADATA, "hip") is not None
