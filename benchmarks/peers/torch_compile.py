"""torch.compile with Inductor, static shapes and its search for the fastest CPU kernels."""

import torch
from torch import nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module compiled for these shapes alone: graphs of earlier shapes are dropped first."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    call: Call = torch.inference_mode()(torch.compile(module, dynamic=False))
    return call


TORCH_COMPILE = Peer("torch.compile", "torch", "static", build)
