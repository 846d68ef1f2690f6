"""The aten table against PyTorch: one case a group of neighbouring ops, results equal in value, shape and dtype."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree as pytree

from planish.compiler.importers import import_torch
from planish.compiler.verify import verify
from tests.compiler.test_import_torch_models import run

Function = Callable[..., object]


class Calls(nn.Module):
    """A model that calls a function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: Tensor) -> object:
        return self.function(*xs)


def reals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def integers(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _assigned(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[:, 1] = y
    z[0] += 1
    z[1:, 2:] = 7
    z[z > 1] = 0
    return z


SMOOTH = ("bilinear", "bicubic")


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.T


ARITHMETIC: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "mixed_dtypes": (
        lambda x, i: (x + i * 2.5 + 3, i + 1, i * 0.5, i.int() + i, i > 1.5),
        (reals(4, 3), integers(4, 3)),
    ),
    "bool": (lambda x, y: ((x > 0) & (y > 0) | (x < -1) ^ (y > 1), (x > 0) * (y > 0) + (x > 1)), (reals(4, 3),) * 2),
    "division": (
        lambda i: (i / 3, i // 3, -i // 3, torch.div(-i, 3, rounding_mode="trunc"), i % 3, -i % 3, (i / 3) // 1),
        (integers(4, 3) * 7,),
    ),
    "powers": (
        lambda x: (x**2, x**3, x.abs() ** 0.5, (x.abs() + 1) ** -0.5, x.abs() ** 1.3, 2**x, (x.abs() + 1) ** -1),
        (reals(4, 3),),
    ),
    "clamps": (
        lambda x, i: (
            x.clamp(-0.5, 0.5),
            x.clamp(min=0),
            i.clamp(1, 2),
            x.clamp(max=torch.tensor(0.1)),
            i.clamp(min=0.5),
        ),
        (reals(4, 3), integers(4, 3)),
    ),
    "activations": (
        lambda x: tuple(
            f(x)
            for f in (
                *(F.gelu, F.silu, F.relu6, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.selu, F.softplus),
                *(F.mish, F.logsigmoid, F.glu, F.celu, F.tanhshrink, F.hardtanh, F.softsign),
                lambda y: F.gelu(y, approximate="tanh"),
            )
        ),
        (reals(4, 6) * 3,),
    ),
    "prelu": (F.prelu, (reals(2, 3, 4, 4), reals(3))),
    "unary": (
        lambda x: (
            *(x.sign(), x.square(), x.abs().log2(), x.exp2(), (x * 3).trunc(), (x * 3).round(), x.floor(), x.ceil()),
            *(x.frac(), (x / 0).isinf(), (x / 0).nan_to_num(), x.isfinite(), x.erf(), x.tan(), x.rsqrt().isnan()),
            *(x.expm1(), x.abs().log1p()),
        ),
        (reals(4, 3),),
    ),
    "unary_of_integers": (lambda i: (i.sin(), i.exp(), i.sqrt(), i.sigmoid(), -i, i.abs()), (integers(4, 3),)),
    "where": (
        lambda x: (torch.where(x > 0, x, 0.0), torch.where(x > 0, 1, 2), x.masked_fill(x > 0, float("-inf"))),
        (reals(4, 3),),
    ),
    "fused": (
        lambda x, y, z: (
            *(torch.addcmul(x, y, z, value=0.5), torch.addcdiv(x, y, z, value=0.5), torch.lerp(x, y, 0.3)),
            *(torch.lerp(x, y, z), torch.add(x, y, alpha=2), torch.sub(x, y, alpha=3), torch.rsub(x, y, alpha=2)),
        ),
        (reals(4, 3), reals(4, 3) + 1, reals(4, 3) + 2),
    ),
    "dtypes": (lambda x: (x.bfloat16() * 2).softmax(-1).float() + x.half().float().to(x), (reals(3, 4),)),
    "autocast": (_autocast, (reals(3, 4),)),
    "numbers_from_tensors": (lambda x: x * x.sum().item() + x.shape[0], (reals(3, 4),)),
}
CONTRACTIONS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "products": (
        lambda x, y, v: (x @ y, v @ y, x @ v, torch.dot(v, v), torch.outer(v, v), torch.einsum("ij,jk->ki", x, y)),
        (reals(4, 3), reals(3, 5), reals(3)),
    ),
    "batched_products": (
        lambda x, y, z: (
            *(torch.bmm(x, y), torch.baddbmm(z, x, y, beta=0.5, alpha=2), torch.addmm(z[0], x[0], y[0], beta=2)),
            *(x @ y[0], x[:, 0] @ y, F.linear(x, y[0].T, z[0, 0])),
        ),
        (reals(2, 4, 3), reals(2, 3, 5), reals(2, 4, 5)),
    ),
    "convolutions": (
        lambda x, w, b: (F.conv2d(x, w, b, stride=2, padding=1), F.conv2d(x, w, padding="same"), F.conv2d(x[0], w)),
        (reals(2, 4, 9, 9), reals(6, 4, 3, 3), reals(6)),
    ),
    "grouped_convolutions": (lambda x, w: F.conv2d(x, w, groups=2, dilation=2), (reals(2, 4, 9, 9), reals(6, 2, 3, 3))),
    "convolutions_over_one_axis": (
        lambda x, w, b: (F.conv1d(x, w, b, stride=2, padding=1), F.conv1d(x, w, padding="same")),
        (reals(2, 4, 9), reals(6, 4, 4), reals(6)),
    ),
    "convolutions_over_volumes": (
        lambda x, w, b: (F.conv3d(x, w, b, stride=2, padding=1), F.conv3d(x, w, padding="same"), F.conv3d(x[0], w)),
        (reals(2, 4, 5, 6, 7), reals(6, 4, 3, 3, 3), reals(6)),
    ),
    "transposed_convolutions": (
        lambda x, w, b: (
            F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
            F.conv_transpose2d(x, w[:, :3], stride=3, groups=2, dilation=2),
            F.conv_transpose2d(x[0], w, b, stride=(4, 1), padding=(0, 1)),
            F.conv_transpose2d(x, w, stride=2, padding=4, output_padding=1),
            F.conv_transpose2d(x, w[:, :1], b[:4], stride=2, groups=4, padding=1),
        ),
        (reals(2, 4, 5, 6), reals(4, 6, 3, 3), reals(6)),
    ),
    "transposed_convolutions_over_other_axes": (
        lambda x, w, b: (
            F.conv_transpose1d(x[:, :, 0, 0], w[..., 0, 0], b, stride=2, padding=1),
            F.conv_transpose3d(x, w, b, stride=2, padding=1, output_padding=(1, 0, 1)),
        ),
        (reals(2, 4, 3, 4, 5), reals(4, 6, 3, 2, 3), reals(6)),
    ),
    "attention": (
        lambda q, k, v: (
            *(F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)),
            *(
                F.scaled_dot_product_attention(q[0], k[0], v[0]),
                F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]),
            ),
        ),
        (reals(2, 3, 4, 8), reals(2, 3, 6, 8), reals(2, 3, 6, 5)),
    ),
    "masked_attention": (
        lambda q, k, m: (
            *(F.scaled_dot_product_attention(q, k, k, m), F.scaled_dot_product_attention(q, k, k, m[0, 0])),
            F.scaled_dot_product_attention(q[:, 0], k[:, 0], k[:, 0], m[:, 0] > -1),
            F.scaled_dot_product_attention(q[None], k[None], k[None], m),
        ),
        (reals(2, 3, 4, 8), reals(2, 3, 6, 8), reals(2, 1, 4, 6)),
    ),
    "grouped_attention": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        (reals(2, 6, 4, 8), reals(2, 3, 4, 8)),
    ),
    "norms": (
        lambda x, w: (
            *(F.layer_norm(x, (5, 6), w, w), F.layer_norm(x, (6,)), F.rms_norm(x, (6,), w[0]), F.rms_norm(x, (5, 6))),
            *(F.group_norm(x, 2), F.instance_norm(x)),
        ),
        (reals(2, 4, 5, 6), reals(5, 6)),
    ),
    "batch_norm": (
        lambda x, m: (F.batch_norm(x, m, m.abs() + 1, m, m), F.batch_norm(x[:, :, 0, 0], m, m.abs() + 1)),
        (reals(2, 4, 5, 6), reals(4)),
    ),
    "softmax": (
        lambda x, i: (
            *(F.softmax(x, -1), F.log_softmax(x, 0), F.softmax(i, -1, dtype=torch.float32), x.logsumexp(1)),
            *(F.normalize(x), F.cosine_similarity(x, x + 1)),
        ),
        (reals(4, 3), integers(4, 3)),
    ),
}
SHAPES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "views": (
        lambda x: (
            *(x.flatten(1), x.view(-1, 3), x.unflatten(1, (2, -1)), x.permute(2, 0, 1), x.transpose(0, 1), x.mT),
            *(x.movedim(0, -1), x[None].squeeze(0), x.unsqueeze(-1).squeeze(), x.expand(2, -1, -1, -1)),
            *(x.repeat(2, 1, 3), x.tile(2), x.repeat_interleave(2, 1), x.repeat_interleave(2)),
        ),
        (reals(2, 4, 3),),
    ),
    "slices": (
        lambda x: (
            *(x[:, 1], x[:, -1], x[:, 1:], x[:, :-1], x[:, ::2], x[:, 1::2], x[:, -2:], x[..., -1:], x[:, 5:]),
            *(x[:, :100], x.narrow(1, 1, 2), x[0, 1, 2], x[:, None, 1:3]),
        ),
        (reals(2, 4, 3),),
    ),
    "parts": (
        lambda x: (x.split(3, 1), x.chunk(3, 1), x.unbind(0), x.split([1, 3], 1), x.tensor_split(2, 1)),
        (reals(2, 4, 3),),
    ),
    "joins": (
        lambda x, i: (
            *(torch.cat([x, i], 1), torch.stack([x, x], -1), torch.hstack([x, x])),
            *(torch.cat([i, x[:, 4:]], 1), torch.cat([x[:, :0], x[:, 4:]], 1).sum()),
        ),
        (reals(2, 4), integers(2, 4)),
    ),
    "padding": (
        lambda x: (
            *(F.pad(x, (1, 2)), F.pad(x, (1, 2, 0, 1), value=3.0), F.pad(x, (-1, 1))),
            *(F.pad(x, (1, 2, 2, 1), mode=mode) for mode in ("reflect", "replicate", "circular")),
        ),
        (reals(2, 2, 4, 5),),
    ),
    "rolls": (lambda x: (x.roll(1, 0), x.roll((1, -2), (0, 1)), x.roll(2), x.flip(0, 1), x.rot90()), (reals(4, 5),)),
    "indexing": (
        lambda x, i: (
            *(x[i], x[:, i], x[i, i], x[i[:, None], i[None]], x[:, i, i], x[-1 - i], x.index_select(1, i), x.take(i)),
            *(torch.take_along_dim(x, i[None, None], 2), x[:, i[:, None], i[None]], x[torch.arange(4)[:, None], i]),
        ),
        (reals(4, 4, 5), torch.tensor([0, 3, 1, 2])),
    ),
    "lookups": (lambda x, i: (x.gather(1, i), F.embedding(i, x)), (reals(4, 4), integers(4, 4))),
    "scattered": (
        lambda x, i: (
            *(x.scatter(1, i[:, :2], 7.0), x.scatter(0, i[:3], x[:3] * 2), torch.zeros_like(x).scatter_(1, i, x)),
            *(x.scatter(-1, i[:, 1:2], 0), (x > 0).scatter(1, i[:, :1], True)),
        ),
        (reals(4, 4), torch.stack([torch.tensor([0, 3, 1, 2]).roll(n) for n in range(4)])),
    ),
    "writes": (_assigned, (reals(3, 4), reals(3))),
    "constructors": (
        lambda x: (
            *(torch.arange(5), torch.arange(1, 7, 2), torch.arange(5, 0, -2), torch.arange(0.0, 1.0, 0.25)),
            *(torch.arange(3, dtype=torch.float32), torch.zeros(2, 3), torch.ones_like(x), torch.full((2,), 3)),
            *(x.new_zeros(2), x.new_full((2, 2), 1.5), torch.eye(3), torch.eye(3, 4), x.triu(1), x.tril(-1)),
            *(torch.linspace(0, 1, 5), torch.tensor([1.0, 2.0]), torch.tensor(3), torch.tril_indices(3, 3)),
            *(torch.meshgrid(torch.arange(2), torch.arange(3), indexing=order) for order in ("ij", "xy")),
        ),
        (reals(4, 4),),
    ),
}
REDUCTIONS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "sums": (
        lambda x, i: (
            *(
                x.sum(),
                x.sum(1),
                i.sum(),
                (i > 0).sum(1),
                x.mean((0, 1)),
                x.prod(),
                x.prod(1),
                x.cumsum(1),
                i.cumsum(0),
            ),
            *(x.diff(), i.diff(dim=0), torch.count_nonzero(x > 0)),
        ),
        (reals(4, 5), integers(4, 5)),
    ),
    "extremes": (
        lambda x, i: (
            *(x.amax(1), x.max(), x.max(1), x.min(1), i.min(0).values, (x > 0).any(), (x > 0).all(1), i.any(1)),
            *(x.argmax(), x.argmax(1), x.argmin(1, keepdim=True), torch.aminmax(x)),
        ),
        (reals(4, 5), integers(4, 5)),
    ),
    "largest": (lambda x: (x.topk(3), x.topk(2, largest=False), x[:, :1].topk(1)), (reals(4, 5),)),
    "deviations": (
        lambda x: (x.var(1), x.var(1, unbiased=False), x.std(), x.std(1, correction=0), torch.var_mean(x, 1)),
        (reals(4, 5),),
    ),
    "lengths": (
        lambda x: (
            x.norm(),
            x.norm(dim=1),
            x.norm(p=1, dim=1),
            x.norm(p=3, dim=1),
            torch.linalg.vector_norm(x, torch.inf),
        ),
        (reals(4, 5),),
    ),
    "pooling": (
        lambda x: (
            *(
                F.max_pool2d(x, 2),
                F.max_pool2d(x, 3, 2, 1),
                F.max_pool2d(x, 3, 2, ceil_mode=True),
                F.max_pool2d(x[0], 2),
            ),
            *(F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.max_pool1d(x[0], 2)),
            *(F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (4, 2)), F.adaptive_avg_pool2d(x, 3)),
            *(F.avg_pool1d(x[0], 3, padding=1), F.adaptive_avg_pool1d(x[0], 1), F.adaptive_max_pool2d(x, 1)),
            *(F.max_pool3d(x, 2), F.avg_pool3d(x, (1, 3, 3), 2, (0, 1, 1)), F.adaptive_avg_pool3d(x, (1, 4, 2))),
            *(F.adaptive_avg_pool2d(x, (None, 3)), F.adaptive_avg_pool1d(x[0], 5), F.adaptive_max_pool2d(x, (4, 3))),
        ),
        (reals(2, 3, 8, 8),),
    ),
    "resizing": (
        lambda x: (
            *(F.interpolate(x, scale_factor=2), F.interpolate(x, size=(7, 9)), F.pixel_unshuffle(x, 2)),
            *(F.interpolate(x, scale_factor=2, mode="bilinear"), F.pixel_shuffle(x.reshape(2, 4, 6, 2), 2)),
            F.interpolate(x, size=(5, 5), mode="bicubic", align_corners=True),
        ),
        (reals(2, 3, 4, 4),),
    ),
    "resizing_by_kinds": (
        lambda x: (
            *(F.interpolate(x, (7, 3), mode=mode, align_corners=c) for mode in SMOOTH for c in (False, True)),
            *(F.interpolate(x, (3, 9), mode=mode, antialias=True) for mode in SMOOTH),
            *(F.interpolate(x, scale_factor=(1.7, 0.6), mode=mode) for mode in (*SMOOTH, "nearest", "nearest-exact")),
            *(F.interpolate(x[0], 9, mode="linear"), F.interpolate(x[None], (2, 9, 7), mode="trilinear")),
            *(F.interpolate(x, (1, 1), mode="bilinear", align_corners=True), F.interpolate(x[0], 9)),
            *(F.interpolate(x.bfloat16(), (7, 3), mode="bilinear"), F.interpolate(x[None], scale_factor=2)),
        ),
        (reals(2, 9, 6, 5),),
    ),
}
CASES = {**ARITHMETIC, **CONTRACTIONS, **SHAPES, **REDUCTIONS}
LAYERS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "lstm": (nn.LSTM(4, 5, batch_first=True, bidirectional=True), (reals(2, 3, 4),)),
    "gru": (nn.GRU(4, 5), (reals(2, 3, 4),)),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (reals(2, 3, 8),)),
    "decoder": (nn.TransformerDecoderLayer(8, 2, 16), (reals(3, 2, 8), reals(4, 2, 8))),
}


def assert_imports(model: nn.Module, inputs: tuple[Tensor, ...], opaque: tuple[str, ...] = ()) -> None:
    """The import computes what the model does, in value, shape and dtype, with just these ops left opaque."""
    with torch.no_grad():
        wanted = model(*inputs)
    imported = import_torch(model.eval(), inputs)
    verify(imported.program)
    assert imported.program.notes.get("opaque", ()) == opaque
    found = pytree.tree_leaves(run(imported, inputs, {}))
    for mine, theirs in zip(found, pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CASES)
def test_covers_the_ops(name: str) -> None:
    function, inputs = CASES[name]
    assert_imports(Calls(function).eval(), inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_covers_the_layers_of_torch(name: str) -> None:
    layer, inputs = LAYERS[name]
    assert_imports(layer.eval(), inputs)


@pytest.mark.parametrize("function", [torch.expm1, torch.log1p])
def test_functions_of_numbers_near_zero_lose_no_digits(function: Callable[[Tensor], Tensor]) -> None:
    near = torch.logspace(-12, -0.01, 500)
    x = torch.cat([near, -near, torch.tensor([0.0, 3.0, 80.0, float("inf")])])
    (got,) = pytree.tree_leaves(run(import_torch(Calls(function).eval(), (x,)), (x,), {}))
    torch.testing.assert_close(got.double(), function(x.double()), rtol=1e-6, atol=0)


def test_leaves_unknown_ops_to_torch_and_names_them() -> None:
    def function(x: Tensor, i: Tensor) -> object:
        many = (i.repeat(1, 5), x.repeat(1, 5))
        found = (x.topk(2, 0), torch.zeros(3, 4).scatter(1, *many), x.atan())
        return *found, torch.searchsorted(x[0].sort().values, x)

    unknown = ("topk.default", "scatter.src", "atan.default", "sort.default", "searchsorted.Tensor")
    assert_imports(Calls(function).eval(), (reals(3, 4), integers(3, 4)), tuple(f"aten.{name}" for name in unknown))
