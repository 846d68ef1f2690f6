"""PyTorch eager: the module itself in inference mode, and under autocast to bf16."""

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module as it is."""
    torch.set_num_threads(threads)
    return torch.inference_mode()(module.__call__)


def build_bf16(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module under autocast, which casts the operands of products to bf16 and keeps cast weights during a call."""
    torch.set_num_threads(threads)

    def call(*values: Tensor) -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return module(*values)

    return call


EAGER = Peer("eager", "torch", "dynamic", build)
EAGER_BF16 = Peer("eager-bf16", "torch", "dynamic", build_bf16)
