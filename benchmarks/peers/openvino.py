"""OpenVINO on its CPU plugin in fp32, with the latency hint."""

from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported
from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """The exported model reshaped to `inputs` and compiled; outputs are views that the next call overwrites."""
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    graph = core.read_model(str(exported(model, module)))
    graph.reshape({name: list(value.shape) for name, value in inputs.items()})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        # On processors with bf16 the plugin would otherwise compute in bf16.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def call(*values: Tensor) -> object:
        arrays = {i: value.numpy() for i, value in enumerate(values)}
        return tuple(request.infer(arrays, share_inputs=True, share_outputs=True).values())

    return call


OPENVINO = Peer("openvino", "openvino", "static", build)
