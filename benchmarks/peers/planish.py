"""planish: the model compiled for this CPU with its dynamic sizes left dynamic, in f32 or bf16."""

from functools import partial

from torch import nn

from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel

_EXPORT_BATCH = 2


def build(precision: str, model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The module compiled for every size in the model's ranges; `inputs` are the declared workload."""
    import planish

    # torch.export takes a size of 1 for a constant, so the example has two rows or more.
    example = model.inputs(max(_EXPORT_BATCH, len(next(iter(inputs.values())))), model.length)
    dynamic = {
        name: {axis: (size, *model.sizes[size]) for axis, size in axes.items()} for name, axes in model.dynamic.items()
    }
    sizes = {size: inputs[name].shape[axis] for name, axes in model.dynamic.items() for axis, size in axes.items()}
    return planish.compile(
        module,
        "cpu",
        inputs=tuple(example.values()),
        dynamic=dynamic,
        workload=sizes,
        precision=precision,
        threads=threads,
    )


PLANISH = Peer("planish", "planish", "dynamic", partial(build, "f32"))
PLANISH_BF16 = Peer("planish-bf16", "planish", "dynamic", partial(build, "bf16"))
