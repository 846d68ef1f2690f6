"""What the choice of tokens on a device depends on, and the memory in which a step and the host meet."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from planish.runtime.generation.sampling import CONTROLS, Sampler

CHOICES: Final = ("greedy", "sample")  # functions of the artifact
LARGEST: Final = (0.0, 0.0, 0.0, 1.0, 0.0, 1.0)  # the numbers of `CONTROLS` that take the token of the largest logit
_WORD: Final = 8  # bytes of an id, a position or an option


@dataclass(frozen=True, slots=True)
class Choosing:
    """The function that chooses the tokens of all rows, None where the host does; whether a row penalizes tokens."""

    function: str | None
    penalizes: bool = False

    @classmethod
    def by(cls, samplers: Sequence[Sampler], functions: Collection[str]) -> "Choosing":
        """As the samplers want it, where the artifact has the function; without samplers the largest logits count."""
        function = "greedy" if all(sampler.is_greedy for sampler in samplers) else "sample"
        if function not in functions:
            return cls(None)
        return cls(function, any(sampler.seen is not None for sampler in samplers))

    def inputs(self, logits: Any, seen: Any, controls: Any) -> list[Any]:
        """What the function takes, for all rows of the logits."""
        return [logits] if self.function == "greedy" else [logits, seen[: len(logits)], controls]


@dataclass(frozen=True, slots=True, eq=False)
class StepMemory:
    """What a step of some rows reads and what it chose, in one block of bytes: on the host, and on the device.

    ids i64[rows, 1], past and count i64[rows], controls f64[rows, 6], chosen f64[rows, 2]; `given` are the bytes of all
    but the last.
    """

    given: Any
    ids: Any
    past: Any
    count: Any
    controls: Any
    chosen: Any

    @staticmethod
    def bytes(rows: int) -> int:
        """The bytes of the block."""
        return _ends(rows)[-1]

    @classmethod
    def of(cls, memory: Any, rows: int) -> "StepMemory":
        """The parts of a tensor of at least so many bytes."""
        import torch

        ends, shapes = _ends(rows), ((rows, 1), (rows,), (rows,), (rows, len(CONTROLS)), (rows, 2))
        found = []
        for start, shape, dtype in zip((0, *ends), shapes, (*[torch.int64] * 3, *[torch.float64] * 2), strict=False):
            count = _WORD * shape[0] * (shape[1] if len(shape) > 1 else 1)
            found.append(memory[start : start + count].view(dtype).view(shape))
        return cls(memory[: ends[-2]], *found)


def _ends(rows: int) -> tuple[int, ...]:
    """Where the parts end; each begins at a multiple of 16 bytes, as kernels want it."""
    counts = (rows, rows, rows, rows * len(CONTROLS), rows * 2)
    return tuple(accumulate(-(-count // 2) * 2 * _WORD for count in counts))
