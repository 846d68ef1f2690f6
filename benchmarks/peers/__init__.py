"""The runtimes that planish is compared with, and planish itself."""

from benchmarks.peers.eager import EAGER
from benchmarks.peers.onnx_runtime import ONNX_RUNTIME
from benchmarks.peers.openvino import OPENVINO
from benchmarks.peers.peer import Peer, PeerError
from benchmarks.peers.planish import PLANISH
from benchmarks.peers.torch_compile import TORCH_COMPILE

PEERS: tuple[Peer, ...] = (EAGER, TORCH_COMPILE, ONNX_RUNTIME, OPENVINO, PLANISH)

__all__ = ["PEERS", "Peer", "PeerError"]
