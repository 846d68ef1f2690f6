"""OpenVINO on its CPU plugin in fp32 or bf16, with the latency hint."""

from functools import partial

from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported
from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(precision: str, model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The exported model reshaped to `inputs` and compiled; outputs are views that the next call overwrites.

    The plugin computes in `precision`: it would choose bf16 by itself on processors that have it.
    """
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    graph = core.read_model(str(exported(model, module)))
    graph.reshape({name: list(value.shape) for name, value in inputs.items()})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def call(*values: Tensor) -> object:
        arrays = {i: value.numpy() for i, value in enumerate(values)}
        return tuple(request.infer(arrays, share_inputs=True, share_outputs=True).values())

    return call


OPENVINO = Peer("openvino", "openvino", "static", partial(build, "f32"))
OPENVINO_BF16 = Peer("openvino-bf16", "openvino", "static", partial(build, "bf16"))
