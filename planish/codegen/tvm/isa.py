"""What a kernel needs to know of a CPU's instruction set, and the TVM target that compiles for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm.target import Target


@dataclass(frozen=True, slots=True)
class Isa:
    """`lanes` of f32 in a vector register, the count of vector `registers`, and the dot-product instructions.

    `halved` CPUs work on 512 bits in two halves, so that 256 bits take half the time.
    """

    triple: str
    cpu: str
    lanes: int
    registers: int
    bf16_dot: bool = False
    int8_dot: bool = False
    features: tuple[str, ...] = ()
    halved: bool = False

    def target(self) -> "Target":
        """The TVM target; its LLVM code uses whole registers (`prefer-vector-width` follows the lanes)."""
        import tvm

        options: dict[str, object] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            options["mattr"] = list(self.features)
        return tvm.target.Target(options)


AVX512 = Isa("x86_64-linux-gnu", "x86-64-v4", lanes=16, registers=32)
ZEN4 = Isa("x86_64-linux-gnu", "znver4", lanes=16, registers=32, bf16_dot=True, int8_dot=True, halved=True)
AVX2 = Isa("x86_64-linux-gnu", "x86-64-v3", lanes=8, registers=16)
NEON = Isa("aarch64-linux-gnu", "neoverse-v2", lanes=4, registers=32)


def isa_of(triple: str, cpu: str, features: tuple[str, ...], vector_bits: int) -> Isa:
    """The instruction set of a CPU profile: LLVM's triple and cpu name, its features, and the widest vector."""
    arm = triple.startswith("aarch64")
    return Isa(
        triple=triple,
        cpu=cpu,
        lanes=vector_bits // 32,
        registers=32 if arm or vector_bits == 512 else 16,
        bf16_dot="avx512bf16" in features,
        int8_dot="avx512vnni" in features,
        features=tuple(f"+{name}" for name in features),
        halved=cpu == "znver4" and vector_bits == 512,
    )
