"""The choice of tokens on GPUs: rows of logits in parts, whose results lie in scratch memory between launches."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from planish.codegen.call import Call
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Input,
    Kernel,
    Launch,
    Output,
    Regime,
    Scratch,
    Variant,
    Work,
)
from planish.codegen.triton.kernels import sampling
from planish.codegen.triton.tiles import power_of_two, product
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, simplify

if TYPE_CHECKING:
    from triton import JITFunction

_MOST_TOKENS: Final = 1 << 21  # of a vocabulary: their weights, 2**40 at most, are summed in 63 bits
_PARTS: Final = 32  # of a row, into which it is cut where they have from 256 to 4096 tokens
_MOST_PARTS: Final = 128
_BINS: Final = 128  # ranges of depths, eight to an octave from 2**-4 on
_LINES: Final = 64  # tokens of a column in the order of draws, as on the host; see `drawn`
_DRAWN: Final = 2048  # tokens that the program which draws looks at together
_ALIGNED: Final = 16  # bytes, at whose multiples a part of scratch memory begins
_TOPS: Final = ("largest", "tops", "places")
_FLOATS: Final = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The token of the largest logit, or one that is drawn after penalty, temperature, top_k, top_p and min_p.

    Rows have options of their own. A row is walked three times by many programs; one program draws among the tokens
    that the filters can reach.
    """

    name: ClassVar[str] = "token-choice"
    ops: ClassVar[tuple[Op, ...]] = (ops.greedy_tokens, ops.sampled_tokens)

    def refuse(self, call: Call, device: Device) -> str | None:
        logits = call.anchor.operands[0]
        if logits.dtype not in _FLOATS:
            return f"{logits.dtype} logits; it takes f32, f16 and bf16"
        if not isinstance(logits.shape[1], int):
            return "the number of tokens is not known"
        if logits.shape[1] > _MOST_TOKENS:
            return f"{logits.shape[1]} tokens are over its {_MOST_TOKENS}"
        if len(call.nodes) > 1:
            return "nothing is computed around the choice of tokens"
        places = all(view.is_contiguous and view.offset == 0 for view in (*call.inputs.values(), call.view))
        return None if places else "an operand does not lie in one piece"

    def build(self, call: Call, device: Device) -> Kernel:
        work = _Choice.of(call)
        launches = work.greedy() if call.anchor.op is ops.greedy_tokens else work.sampled()
        return Kernel(tuple(launches), work.scratch_bytes)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Choice:
    """Rows of logits, how they are cut, and where in scratch memory each launch finds what those before it left."""

    call: Call
    rows: Dim
    vocabulary: int
    block: int
    scratch: Mapping[str, Scratch]
    scratch_bytes: Dim

    @classmethod
    def of(cls, call: Call) -> "_Choice":
        rows, vocabulary = call.anchor.operands[0].shape
        assert isinstance(vocabulary, int)
        block = min(4096, max(256, power_of_two(-(-vocabulary // _PARTS))))
        block = max(block, power_of_two(-(-vocabulary // _MOST_PARTS)))
        found, end = {}, 0
        for name, (count, dtype) in _held(call, vocabulary, -(-vocabulary // block)).items():
            found[name] = Scratch(simplify(rows * end), dtype)
            end += -(-count * dtype.itemsize // _ALIGNED) * _ALIGNED
        return cls(call, rows, vocabulary, block, found, simplify(rows * end))

    @property
    def parts(self) -> int:
        return -(-self.vocabulary // self.block)

    def greedy(self) -> Iterator[Launch]:
        yield self._launch(sampling.top_of_part, _TOPS, self.parts, GREEDY=True, BLOCK=self.block)
        yield self._launch(sampling.take_largest, _TOPS, 1, PADDED=power_of_two(self.parts))

    def sampled(self) -> Iterator[Launch]:
        columns = max(1, self.vocabulary // _LINES)
        height = self.vocabulary // columns
        lines = {"COLUMNS": columns, "HEIGHT": height, "PADDED_HEIGHT": power_of_two(max(height, _LINES))}
        wide = power_of_two(-(-columns // self.parts))
        cut = {"PADDED": power_of_two(self.parts), "BLOCK": self.block, "BINS": _BINS}
        yield self._launch(sampling.top_of_part, _TOPS, self.parts, **cut, GREEDY=False)
        yield self._launch(sampling.measure_part, self.scratch, self.parts, **cut, **lines, WIDE=wide)
        yield self._launch(sampling.gather_part, self.scratch, self.parts, **cut)
        yield self._launch(sampling.draw, self.scratch, 1, **lines, **{**cut, "BLOCK": _DRAWN})

    def _launch(self, function: "JITFunction", scratch: Collection[str], programs: int, **constants: int) -> Launch:
        """A launch of `programs` a row, whose parameters are called as operands, parts of scratch memory and constants
        are; it takes those that it has."""
        names = ("logits", "seen", "controls")
        given: dict[str, Argument] = {name: Input(i) for i, name in enumerate(names) if i < len(self.call.inputs)}
        given |= {"output": Output(), **{name: self.scratch[name] for name in scratch}}
        known: dict[str, Constant] = {"VOCABULARY": self.vocabulary, "PARTS": self.parts, **constants}
        arguments = {name: given[name] for name in function.arg_names if name in given}
        absent = {name: None for name in names if name in function.arg_names and name not in given}
        return Launch(
            function,
            arguments,
            {name: known[name] for name in known if name in function.arg_names} | absent,
            (Regime(None, (self._variant(programs),)),),
        )

    def _variant(self, programs: int) -> Variant:
        read = float(self.vocabulary // programs * self.call.anchor.operands[0].dtype.itemsize)

        def work(_: Mapping[str, int]) -> Work:
            return Work(read, DType.f32, read, read, read / _LINES, read)

        return Variant({}, (product(self.rows, programs), 1, 1), work, num_warps=8)


def _held(call: Call, vocabulary: int, parts: int) -> Mapping[str, tuple[int, DType]]:
    """What scratch memory holds of a row: how many numbers of which dtype, by their names."""
    tops = {"largest": (parts, DType.f32), "tops": (parts, DType.f32), "places": (parts, DType.i32)}
    if call.anchor.op is ops.greedy_tokens:
        return tops
    return tops | {
        "counts": (parts * _BINS, DType.i32),
        "masses": (parts, DType.i64),
        "columns": (max(1, vocabulary // _LINES), DType.i64),
        "scores": (vocabulary, DType.f32),
        "tokens": (vocabulary, DType.i32),
        "reached": (1, DType.i32),
    }
