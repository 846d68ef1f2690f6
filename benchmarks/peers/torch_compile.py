"""torch.compile with Inductor and static shapes, in fp32 and under autocast to bf16."""

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module compiled for these shapes alone: graphs of earlier shapes are dropped first."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    call: Call = torch.inference_mode()(torch.compile(module, dynamic=False))
    return call


def build_bf16(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The same under autocast."""
    compiled = build(model, module, inputs, threads)

    def call(*values: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(*values)

    return call


TORCH_COMPILE = Peer("torch.compile", "torch", "static", build)
TORCH_COMPILE_BF16 = Peer("torch.compile-bf16", "torch", "static", build_bf16)
