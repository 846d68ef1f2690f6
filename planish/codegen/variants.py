"""What a cost model said of the ways to run a kernel: rows of the compile report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One way to run a launch for sizes up to `most` (None: all above), and its `seconds` when `size` is what it was
    judged at.

    `basis` is "predicted" or "measured", `bound` what takes most of the predicted time, `chosen` whether it was taken;
    `refused` says why it could not be.
    """

    kernel: str
    launch: int
    most: int | None
    size: int
    variant: str
    seconds: float
    basis: str
    bound: str
    chosen: bool
    refused: str | None = None

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.variant}: {self.refused}"
        return f"{self.variant}: {1e6 * self.seconds:.1f} us {self.basis}, {self.bound}"
