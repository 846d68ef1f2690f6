"""PyTorch eager: the module itself in inference mode."""

import torch
from torch import nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module as it is."""
    torch.set_num_threads(threads)
    return torch.inference_mode()(module.__call__)


EAGER = Peer("eager", "torch", "dynamic", build)
