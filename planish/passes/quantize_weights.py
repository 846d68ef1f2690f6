"""quantize-weights: linear(x, @w) -> linear(x, dequantize(@w.codes, @w.scale)), experts and embeddings alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor

from planish.compiler.analysis import weight_names
from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import dequantize, embedding, grouped_linear, linear, quantization_scale, quantize, weight
from planish.compiler.ops.structure import FROM_TORCH
from planish.compiler.pass_ import Change, Context, Contract, Lossy
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.types import DType
from planish.compiler.weights import Weights
from planish.errors import PassError
from planish.hardware_profiles import Profile
from planish.passes.routers import routers
from planish.passes.weight_codes import FP4, NF4, Codes, Format

_RULE = "quantize"
_LEAST_WIDTH = 32
# bits of a code, and what activations may be rounded to
_FORMATS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "int": (4, ("int8",)),
    "nf4": (4, ()),
    "fp4": (4, ()),
    "f8": (8, ("f8",)),
}
_CODEBOOKS = {"nf4": NF4, "fp4": FP4}
_ACTIVATIONS = ("float", "int8", "f8")
_MAPS = (linear, grouped_linear)


@dataclass(frozen=True, slots=True)
class QuantizeWeights:
    """Stores the weights of linear maps in 8 or 4 bits, rounded to nearest, and computes with them as they are.

    bits: 4 or 8; as the format has it if not given, 4 of integers.
    format: "int"; "nf4" (arXiv 2305.14314) and "fp4" (e2m1, arXiv 2310.16836), which have 4 bits; "f8" (e4m3, arXiv
        2209.05433), which has 8 bits, one scale a row, and GPUs alone compute.
    group: columns that share a scale; 0 for a whole row. By default 128 at 4 bits and whole rows at 8. Where it does
        not divide the width, the last group of a row is shorter.
    symmetric: without zero points; with `false` every group has one (4 bits).
    activations: "float" keeps the inputs of the maps as they are, "int8" and "f8" also round those to 8 bits, with one
        scale a group and token, so that products are of integers or, with the format "f8", of f8. Inputs of experts
        stay as they are.
    embeddings: whether tables that embeddings look up are quantized too.
    routers: whether maps that choose experts are quantized too: they are small, and a choice is right or wrong.
    skip: patterns of scopes to leave alone, such as `["lm_head", "layers.0.*"]`.
    """

    bits: int | None = None
    format: str = "int"
    group: int | None = None
    symmetric: bool = True
    activations: str = "float"
    embeddings: bool = True
    routers: bool = False
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "quantize-weights"
    contract: ClassVar[Contract] = Lossy("perplexity or the task's metric")

    def __post_init__(self) -> None:
        for option, allowed in (("bits", (None, 4, 8)), ("format", tuple(_FORMATS)), ("activations", _ACTIVATIONS)):
            if (value := getattr(self, option)) not in allowed:
                words = " or ".join(str(each) for each in allowed if each is not None)
                raise PassError(f"quantize-weights: {option} is {words}, not {value}")
        if self.format != "int":
            self._check_format()
        elif self.activations == "f8":
            raise PassError('quantize-weights: activations of f8 go with weights of f8: format="f8"')
        if self.code_bits == 8 and not self.symmetric:
            raise PassError("quantize-weights: 8-bit weights are symmetric")
        if self.group is not None and self.group != 0 and (self.group < 16 or self.group % 16):
            raise PassError(f"quantize-weights: a group is a multiple of 16 columns, or 0 for rows, not {self.group}")

    def _check_format(self) -> None:
        bits, others = _FORMATS[self.format]
        if self.bits not in (None, bits) or not self.symmetric or self.activations not in ("float", *others):
            words = " or ".join(("float", *others))
            raise PassError(f"quantize-weights: {self.format} has {bits} bits, no zero points and {words} activations")
        if self.format == "f8" and self.group:
            raise PassError("quantize-weights: f8 has one scale a row, which its own exponents refine; leave group out")

    def _check_profile(self, profile: Profile) -> None:
        if profile.backend != "triton":
            raise PassError(f"quantize-weights: {profile.name} computes no f8; bits=8 takes as much memory")
        if self.activations == "f8" and profile.rates.f8 is None:
            raise PassError(f'quantize-weights: {profile.name} has no f8 matrix units; take activations="float"')

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return _FORMATS[self.format][0] if self.bits is None else self.bits

    def apply(self, program: Program, context: Context) -> Change:
        if self.format == "f8" and context.profile is not None:
            self._check_profile(context.profile)
        work = _Quantizer(self, program.weights, _router_weights(program))
        hits: tuple[Hit, ...] = ()
        for graph in program.functions.values():
            after, found = work.rewrite(graph)
            program, hits = program.with_function(after), hits + found
        kept = Weights(program.weights).joined(work.made).kept(weight_names(program))
        notes = {**program.notes, "quantized weights": work.summary()} if work.codes else program.notes
        return Change(replace(program, weights=kept, notes=notes), hits)

    def format_of(self, width: int) -> Format:
        """The format of a weight with `width` columns."""
        group = (0 if self.code_bits == 8 else 128) if self.group is None else self.group
        codebook = _CODEBOOKS.get(self.format, ())
        return Format(self.code_bits, min(group, width) or width, self.symmetric, codebook, self.format == "f8")


@dataclass(slots=True)
class _Quantizer:
    """Codes of the weights seen so far, shared by all functions of a program."""

    options: QuantizeWeights
    weights: Mapping[str, Tensor]
    routers: frozenset[str]
    codes: dict[str, Codes] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)

    def rewrite(self, graph: Graph) -> tuple[Graph, tuple[Hit, ...]]:
        hits: list[Hit] = []
        values: dict[str, Value] = {}

        def visit(node: Node) -> tuple[Value, ...] | None:
            if node.op not in _MAPS and not (node.op is embedding and self.options.embeddings):
                return None
            at = 1 if node.op in _MAPS else 0
            of = node.operands[at]
            if of.node.op is dequantize:
                return None
            why = self._refusal(node, of)
            hits.append(Hit(_RULE, node.scope, why))
            if why is not None:
                return None
            name = str(of.node.attrs["name"])
            stored = values[name] if name in values else values.setdefault(name, self._stored(name, of))
            inputs = [*node.inputs[:at], stored, *node.inputs[at + 1 :]]
            if self.options.activations != "float" and node.op is grouped_linear:
                hits.append(Hit("round inputs", node.scope, "inputs of experts are multiplied as floats"))
            elif self.options.activations != "float" and node.op is linear:
                dtype = DType.f8 if self.options.activations == "f8" else DType.i8
                inputs[0] = _rounded(node.operands[0], int(str(stored.node.attrs["group"])), dtype)
            return node.op.node(tuple(inputs), node.attrs, node.scope).values

        return substitute(graph, visit), tuple(hits)

    def _refusal(self, node: Node, of: Value) -> str | None:
        if of.node.op is not weight:
            return f"its weight is computed by {of.node.op.name}"
        if any(fnmatch(node.scope, pattern) for pattern in self.options.skip):
            return "skipped by its scope"
        if str(of.node.attrs["name"]) in self.routers and not self.options.routers:
            return "it chooses experts; routers=true quantizes it too"
        if not of.dtype.is_float:
            return f"its weight {of.type} is no float matrix"
        if int(str(of.shape[-1])) < _LEAST_WIDTH:
            return f"its weight has {of.shape[-1]} columns; below {_LEAST_WIDTH} nothing is gained"
        return self._unfit(str(of.node.attrs["name"]))

    def _unfit(self, name: str) -> str | None:
        if name in self.codes:
            return None
        tensor = self.weights[name]
        ends = torch.stack(tensor.aminmax()) if tensor.numel() else torch.zeros(2)
        largest = float(ends.abs().max())
        if not largest < float("inf"):
            return f"its weight {name} holds infinite or undefined numbers"
        return "its scale would exceed f16" if largest > torch.finfo(torch.float16).max else None

    def _stored(self, name: str, of: Value) -> Value:
        """The weight as `dequantize` of stored codes."""
        layout = self.options.format_of(int(str(of.shape[-1])))
        if name not in self.codes:
            codes = self.codes[name] = layout.encode(self.weights[name].detach())
            parts = {"codes": codes.codes, "scale": codes.scale, "zero": codes.zero}
            self.made.update({f"{name}.{part}": t for part, t in parts.items() if t is not None})
        names = (f"{name}.{part}" for part in ("codes", "scale", "zero"))
        leaves = [_leaf(part, self.made[part]) for part in names if part in self.made]
        attrs = {"group": layout.group, "bits": layout.bits, "codebook": layout.codebook, "dtype": of.dtype}
        return dequantize(*leaves, scope=of.node.scope, **attrs)

    def summary(self) -> tuple[str, ...]:
        """One line on size and error."""
        before = sum(Weights(self.weights).like(name).nbytes for name in self.codes)
        after = sum(self._bytes(codes) for codes in self.codes.values())
        worst = max(self.codes, key=lambda name: self.codes[name].error)
        mean = sum(codes.error for codes in self.codes.values()) / len(self.codes)
        return (
            f"{len(self.codes)} weights: {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB; relative RMS error "
            f"{mean:.4f} on average, {self.codes[worst].error:.4f} at most ({worst})",
        )

    def _bytes(self, codes: Codes) -> int:
        zeros = 0 if codes.zero is None else codes.zero.nbytes
        return codes.codes.nbytes * self.options.code_bits // 8 + codes.scale.nbytes + zeros


def _router_weights(program: Program) -> frozenset[str]:
    """Names of the weights of maps that choose experts in any function."""
    weights = [node.operands[1].node for graph in program.functions.values() for node in routers(graph)]
    return frozenset(str(node.attrs["name"]) for node in weights if node.op is weight)


def _leaf(name: str, tensor: Tensor) -> Value:
    return weight(name=name, shape=tuple(tensor.shape), dtype=FROM_TORCH[tensor.dtype])


def _rounded(x: Value, group: int, dtype: DType) -> Value:
    """x as codes of 8 bits, i8 or f8, and back: one scale a group of its last axis."""
    scope = x.node.scope
    scale = quantization_scale(x, group=group, dtype=dtype, scope=scope)
    codes = quantize(x, scale, group=group, dtype=dtype, scope=scope)
    return dequantize(codes, scale, group=group, dtype=x.dtype, scope=scope)
