"""planish: the model compiled for this CPU with its dynamic sizes left dynamic."""

from torch import nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module compiled exactly, for every size in the model's ranges."""
    import planish

    compiled: Call = planish.compile(module, "cpu", inputs=tuple(inputs.values()), dynamic=model.dynamic)
    return compiled


PLANISH = Peer("planish", "planish", "dynamic", build)
