"""Spellings of attention, norms and channels-first nets outside transformers: torch's numbers, and one op each."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from planish.compiler.evaluate import evaluate
from planish.compiler.importers import import_torch
from planish.compiler.pass_ import Context
from planish.compiler.pipeline import Pipeline
from planish.passes import EXACT

_SEQUENCE = {0: "batch", 1: ("sequence", 1, 31)}


class _Heads(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, width), nn.Linear(16, 16)


class Einsum(_Heads):
    """einsum for both products, pre-scaled scores."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(*x.shape[:2], 4, 4).permute(0, 2, 1, 3) for t in self.qkv(x).chunk(3, -1))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5
        joined = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v).permute(0, 2, 1, 3)
        return self.out(joined.reshape(x.shape))


class Unbound(_Heads):
    """One projection, heads unbound from a tensor of rank 5, scaled queries."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Triangle(_Heads):
    """A stored lower triangle, masked_fill with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, 4, 4).transpose(1, 2) for t in self.qkv(x).split(16, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(4))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, -math.inf)
        return self.out((functional.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(x.shape))


class Repeated(_Heads):
    """Keys and values repeated with repeat_interleave, a mask from triu."""

    def __init__(self) -> None:
        super().__init__(width=32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).split((16, 8, 8), dim=-1)
        q = q.view(batch, length, 4, 4).transpose(1, 2)
        k, v = (t.view(batch, length, 2, 4).transpose(1, 2).repeat_interleave(2, dim=1) for t in (k, v))
        mask = torch.full((length, length), -math.inf).triu(1)
        return self.out((torch.softmax(q @ k.transpose(2, 3) / 2 + mask, -1) @ v).transpose(1, 2).reshape(x.shape))


class Batched(_Heads):
    """Heads merged into the batch, baddbmm with a bias, a finite fill."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, 4, 4)
        q, k, v = (t.reshape(heads).transpose(1, 2).reshape(-1, length, 4) for t in self.qkv(x).chunk(3, -1))
        bias = torch.arange(4.0).view(4, 1, 1) * torch.arange(length) * 0.1
        scores = torch.baddbmm(bias.repeat(batch, 1, 1), q, k.transpose(1, 2), alpha=0.5).view(batch, 4, length, length)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
        joined = torch.bmm(scores.view(-1, length, length), v).view(batch, 4, length, 4)
        return self.out(joined.transpose(1, 2).reshape(x.shape))


class Multihead(nn.Module):
    """torch's own module, which returns probabilities that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.attention(x, x, x)[0]
        return joined


class ChannelNorm(nn.Module):
    """A layer norm over channels, spelled out channels first between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        centre = x - x.mean(1, keepdim=True)
        x = centre / torch.sqrt(centre.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.second(self.w[:, None, None] * x + self.b[:, None, None])


class Excited(nn.Module):
    """Batch norm, hard swish, squeeze and excitation, a join and a flip, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.down, self.up, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.norm(self.conv(x)))
        x = x * torch.sigmoid(self.up(functional.silu(self.down(functional.adaptive_avg_pool2d(x, 1)))))
        return self.head(functional.avg_pool2d(torch.cat((x, x.flip(3)), 1), 2).mean((2, 3)))


_CAUSAL = {"causal": True, "scale": 0.5}
CASES: Mapping[str, tuple[Callable[[], nn.Module], Mapping[str, int], Mapping[str, object]]] = {
    "einsum": (Einsum, {"attention": 1, "linear": 2}, {"causal": False, "scale": 0.5}),
    "unbound": (Unbound, {"attention": 1, "linear": 2}, {"scale": 0.5}),
    "triangle": (Triangle, {"attention": 1, "slice": 3, "where": 0}, _CAUSAL),
    "repeated": (Repeated, {"attention": 1, "expand": 0, "where": 0}, _CAUSAL),
    "batched": (Batched, {"attention": 1, "softmax": 0}, {"scale": 0.5}),
    "multihead": (Multihead, {"attention": 1, "linear": 2, "mul": 0}, {"causal": False}),
    "channel norm": (ChannelNorm, {"layer_norm": 1, "conv": 2, "transpose": 2, "mul": 0}, {}),
    "excited": (Excited, {"conv": 3, "silu": 1, "transpose": 1, "batch_norm": 0}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_spelling_keeps_its_numbers_and_becomes_one_op(name: str) -> None:
    kind, counts, attrs = CASES[name]
    torch.manual_seed(0)
    model = kind().eval()
    images = name in ("channel norm", "excited")
    shape, other = ((2, 3, 8, 8), (3, 3, 8, 8)) if images else ((2, 6, 16), (3, 9, 16))
    imported = import_torch(model, (torch.randn(shape),), dynamic=({0: "batch"} if images else _SEQUENCE,))
    program, _ = Pipeline(EXACT).run(imported.program, Context())
    for size in (shape, other):
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(evaluate(program.main, [x], program.weights)[0], model(x), rtol=0, atol=1e-6)
    found = Counter(node.op.name for node in program.main.nodes())
    assert {op: found[op] for op in counts} == dict(counts)
    for node in program.main.nodes():
        if node.op.name == "attention":
            assert {key: node.attrs[key] for key in attrs} == dict(attrs)
