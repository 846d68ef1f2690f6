"""The functions of a language model that choose tokens on a GPU: `greedy` and `sample`."""

from planish.codegen.select import select
from planish.codegen.triton.device import Device
from planish.codegen.triton.templates import TEMPLATES
from planish.compiler import ops
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.types import DType
from planish.errors import TemplateError
from planish.runtime.generation.sampling import CONTROLS


def with_token_functions(program: Program, device: Device) -> tuple[Program, tuple[str, ...]]:
    """The program with both functions for the logits of `decode`, and nothing to report; where the device has no
    kernel for them the program as it is, and why."""
    decode = program.functions["decode"]
    functions = greedy(decode), sample(decode)
    try:
        for graph in functions:
            select(graph, TEMPLATES, device)
    except TemplateError as error:
        return program, (f"tokens are chosen on the host: {error}",)
    for graph in functions:
        program = program.with_function(graph)
    return program, ()


def greedy(decode: Graph) -> Graph:
    """`(logits) -> the tokens of the largest`."""
    logits = _logits(decode)
    return Graph("greedy", (logits,), (ops.greedy_tokens(logits),), decode.sizes)


def sample(decode: Graph) -> Graph:
    """`(logits, seen, controls) -> a token of each row by its options`."""
    logits = _logits(decode)
    seen = ops.input_(name="seen", shape=logits.shape, dtype=DType.u8)
    controls = ops.input_(name="controls", shape=(logits.shape[0], len(CONTROLS)), dtype=DType.f64)
    given = (logits, seen, controls)
    return Graph("sample", given, (ops.sampled_tokens(*given),), decode.sizes)


def _logits(decode: Graph) -> Value:
    result = decode.outputs[0]
    return ops.input_(name="logits", shape=result.shape, dtype=result.dtype)
