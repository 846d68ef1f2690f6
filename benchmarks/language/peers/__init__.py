"""The runtimes of language models that are compared; each is imported when it runs."""

from benchmarks.language.peers.ctranslate2 import CTRANSLATE2
from benchmarks.language.peers.llama_cpp import LLAMA_CPP
from benchmarks.language.peers.onnx_genai import ONNX_GENAI
from benchmarks.language.peers.openvino_genai import OPENVINO_GENAI
from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage
from benchmarks.language.peers.planish import PLANISH, PLANISH_G32, PLANISH_INT8_ACTIVATIONS
from benchmarks.language.peers.torch_models import EAGER, TORCHAO

PEERS: tuple[LanguagePeer, ...] = (
    PLANISH,
    PLANISH_G32,
    PLANISH_INT8_ACTIVATIONS,
    LLAMA_CPP,
    OPENVINO_GENAI,
    ONNX_GENAI,
    CTRANSLATE2,
    TORCHAO,
    EAGER,
)

__all__ = [
    "CTRANSLATE2",
    "EAGER",
    "LLAMA_CPP",
    "ONNX_GENAI",
    "OPENVINO_GENAI",
    "PEERS",
    "PLANISH",
    "PLANISH_G32",
    "PLANISH_INT8_ACTIVATIONS",
    "TORCHAO",
    "Generated",
    "LanguagePeer",
    "Session",
    "Setting",
    "Storage",
]
