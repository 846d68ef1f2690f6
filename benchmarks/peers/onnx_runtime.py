"""ONNX Runtime on its CPU provider, all graph optimizations on."""

from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported
from benchmarks.peers.peer import Peer
from benchmarks.zoo import Call, Inputs, ZooModel


def build(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """A session on the exported model, its dynamic axes fixed to the sizes of `inputs`."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin after a call would take time from the peer that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, axes in model.dynamic.items():
        for axis, size in axes.items():
            options.add_free_dimension_override_by_name(size, inputs[name].shape[axis])
    session = onnxruntime.InferenceSession(str(exported(model, module)), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*values: Tensor) -> object:
        arrays = (value.numpy() for value in values)
        return tuple(session.run(None, dict(zip(names, arrays, strict=True))))

    return call


ONNX_RUNTIME = Peer("onnxruntime", "onnxruntime", "static", build)
