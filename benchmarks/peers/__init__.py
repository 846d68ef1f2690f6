"""The runtimes that planish is compared with, and planish itself."""

from collections.abc import Mapping

from benchmarks.peers.eager import EAGER, EAGER_BF16
from benchmarks.peers.onnx_runtime import ONNX_RUNTIME
from benchmarks.peers.openvino import OPENVINO, OPENVINO_BF16
from benchmarks.peers.peer import Peer, PeerError
from benchmarks.peers.planish import PLANISH, PLANISH_BF16
from benchmarks.peers.torch_compile import TORCH_COMPILE, TORCH_COMPILE_BF16

PEERS: tuple[Peer, ...] = (EAGER, TORCH_COMPILE, ONNX_RUNTIME, OPENVINO, PLANISH)
# ONNX Runtime has no bf16 kernels for CPUs; the fp32 peers show what bf16 gains.
BY_PRECISION: Mapping[str, tuple[Peer, ...]] = {
    "f32": PEERS,
    "bf16": (EAGER, OPENVINO, PLANISH, EAGER_BF16, TORCH_COMPILE_BF16, OPENVINO_BF16, PLANISH_BF16),
}

__all__ = ["BY_PRECISION", "PEERS", "Peer", "PeerError"]
