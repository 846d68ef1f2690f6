"""What strangers bring to `compile`: unusual calls, names, sizes, weights and models, each right or refused by name."""

import copy
import pickle
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.errors import ArtifactError, ImportGraphError, InputError, PassError
from planish.passes.fold_constants import FoldConstants
from planish.runtime.storage import staging


class Computes(nn.Module):
    """A model whose forward is a function of x and y."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3).eval()


def test_star_arguments_are_given_by_place_after_compile_and_after_load(tmp_path: Path) -> None:
    class Sums(nn.Module):
        def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
            return first * 2 + rest[0] * rest[1]

    x, y, z = random(3), random(3) + 1, random(3) + 2
    fast = planish.compile(Sums().eval(), inputs=(x, y, z))
    fast.save(tmp_path / "sums.planish")
    for call in (fast, planish.load(tmp_path / "sums.planish")):
        torch.testing.assert_close(call(x, y, z), x * 2 + y * z)
        with pytest.raises(InputError, match="'rest' needs a tuple of 2, was given a tuple of 1"):
            call(x, y)


def test_keyword_examples_in_any_order_may_be_called_by_place() -> None:
    x, y = random(3), random(3) + 1
    fast = planish.compile(Computes(torch.sub).eval(), inputs={"y": y, "x": x})
    torch.testing.assert_close(fast(x, y), x - y)
    torch.testing.assert_close(fast(y=y, x=x), x - y)


@pytest.mark.parametrize("names", [("int", "w"), ("f", "sizes"), ("double", "task"), ("max", "s77"), ("offsets", "a")])
def test_sizes_may_be_called_what_c_or_torch_call_something_else(names: tuple[str, str]) -> None:
    rows, columns = names
    fast = planish.compile(
        Computes(lambda x, y: (x @ y).relu()).eval(),
        inputs=(random(3, 4), random(4, 5)),
        dynamic={"x": {0: rows}, "y": {1: columns}},
    )
    x, y = random(7, 4), random(4, 2)
    torch.testing.assert_close(fast(x, y), (x @ y).relu())


def test_the_hint_of_a_size_is_its_usual_value() -> None:
    size = planish.Size("batch", 1, 64, hint=32)
    fast = planish.compile(linear(), inputs=random(2, 4), dynamic={"input": {0: size}})
    assert fast.executable.main.plan.sizes[0].hint == 32


def test_weights_that_are_not_finite_compile_and_pass_their_recorded_result(tmp_path: Path) -> None:
    model = linear()
    model.weight.data[0, 0], model.weight.data[1, 1] = float("nan"), float("inf")
    planish.compile(model, inputs=random(2, 4)).save(tmp_path / "nan.planish")
    ours = planish.load(tmp_path / "nan.planish")(random(2, 4))
    torch.testing.assert_close(ours, model(random(2, 4)).detach(), equal_nan=True)


def test_named_tuples_strided_inputs_and_gradients_are_taken() -> None:
    pair = namedtuple("pair", "a b")

    class Swaps(nn.Module):
        def forward(self, given: Any) -> Any:
            return pair(given.b * 2, given.a + 1)

    a, b = random(4, 6).t()[::2], random(3).requires_grad_()
    ours = planish.compile(Swaps().eval(), inputs=(pair(a, b),))(pair(a, b))
    torch.testing.assert_close(ours.a, b.detach() * 2)
    torch.testing.assert_close(ours.b, a + 1)


def test_a_recurrent_cell_with_a_dynamic_batch_is_the_model() -> None:
    torch.manual_seed(0)
    cell = nn.GRUCell(4, 8).eval()
    sizes = {"input": {0: "batch"}, "hx": {0: "batch"}}
    fast = planish.compile(cell, inputs=(random(2, 4), random(2, 8)), dynamic=sizes)
    torch.testing.assert_close(fast(random(5, 4), random(5, 8)), cell(random(5, 4), random(5, 8)).detach())


def test_an_encoder_computes_padded_positions_too() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    model = Computes(lambda x, y: encoder(x, src_key_padding_mask=y)).eval()
    padded = torch.arange(5) >= torch.tensor([[3], [4]])
    ours = planish.compile(model, inputs=(random(2, 5, 8), padded))(random(2, 5, 8), padded)
    wanted = model(random(2, 5, 8), padded)  # with gradients torch takes its plain path
    torch.testing.assert_close(ours, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_an_op_without_results_is_left_out() -> None:
    x = torch.eye(4) + 0.1
    torch.testing.assert_close(planish.compile(Computes(torch.linalg.inv).eval(), inputs=x)(x), torch.linalg.inv(x))


SIZES = {
    "a low of 0": ({"input": {0: ("b", 0, 8)}}, "size 'b' of 'input' starts at 0; .* start at 1"),
    "a Size of 0": ({"input": {0: planish.Size("b", 0, 8, 4)}}, "size 'b' of 'input' starts at 0"),
    "a negative low": ({"input": {0: ("b", -3, 8)}}, "size 'b' of 'input' starts at -3"),
    "an empty range": ({"input": {0: ("b", 8, 1)}}, r"has the empty range 8\.\.1"),
    "a text": ({"input": {0: ("b", "1", 8)}}, "has the bound '1'; bounds are integers"),
    "a keyword": ({"input": {0: "for"}}, "names a size 'for'; use an identifier that is no keyword"),
    "no dict": ("batch", "dynamic is a dict such as .*, not 'batch'"),
    "a truth": ({"input": {0: True}}, "dynamic of 'input' holds True; a size is a name"),
    "too many": (({0: "b"}, {0: "b"}), "dynamic has 2 entries for the 1 given inputs"),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_size_that_cannot_be_is_refused_where_it_is_declared(case: str) -> None:
    dynamic, words = SIZES[case]
    with pytest.raises(ImportGraphError, match=words):
        planish.compile(linear(), inputs=random(2, 4), dynamic=dynamic)


def test_dynamic_of_nested_inputs_names_what_they_lack() -> None:
    model = Computes(lambda x: x["a"] + 1).eval()
    with pytest.raises(ImportGraphError, match=r"dynamic of 'x' names 'b', which is not in it; known: a"):
        planish.compile(model, inputs=({"a": random(2)},), dynamic={"x": {"b": {0: "n"}}})
    with pytest.raises(ImportGraphError, match=r"dynamic of 'x' follows the dict given there, not 'n'"):
        planish.compile(model, inputs=({"a": random(2)},), dynamic={"x": "n"})


def half_weights() -> tuple[nn.Module, Tensor]:
    return linear().half(), random(2, 4)


def dropout_in_training() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(linear(), nn.Dropout()).eval()
    model[1].train()
    return model, random(2, 4)


def batch_norm_in_training() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    model[0].train()
    return model, random(2, 4)


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any]], type[Exception], str]] = {
    "meta weights": (lambda: (nn.Linear(4, 3, device="meta").eval(), random(2, 4)), ImportGraphError, "device meta"),
    "TorchScript": (
        lambda: (torch.jit.trace(linear(), random(2, 4)), random(2, 4)),  # type: ignore[no-untyped-call]
        ImportGraphError,
        "a model of TorchScript cannot be exported",
    ),
    "a sparse input": (lambda: (linear(), torch.eye(4).to_sparse()), InputError, r"give a dense tensor: \.to_dense"),
    "a numpy array": (lambda: (linear(), random(2, 4).numpy()), InputError, "torch.from_numpy"),
    "an unknown name": (lambda: (linear(), {"inputs": random(2, 4)}), InputError, "no input 'inputs'; .* 'input'"),
    "an empty input": (lambda: (linear(), random(0, 4)), InputError, r"shape \[0, 4\]; empty tensors"),
    "a model that fails": (half_weights, InputError, "Linear itself fails on the example inputs: .*dtype"),
    "dropout": (dropout_in_training, ImportGraphError, r"dropout.* in '1' draws random numbers.*model\.eval\(\)"),
    "batch norm": (batch_norm_in_training, ImportGraphError, r"writes its buffer '0\.running_mean'.*model\.eval\(\)"),
    "noise": (lambda: (Computes(torch.rand_like).eval(), random(2)), ImportGraphError, "draws random numbers"),
    "a branch": (
        lambda: (Computes(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))).eval(), random(3)),
        ImportGraphError,
        r"chooses between computations at run time.*torch\.where",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_no_program_can_be_is_refused_with_the_remedy(case: str) -> None:
    make, kind, words = REFUSED[case]
    model, inputs = make()
    with pytest.raises(kind, match=words):
        planish.compile(model, inputs=inputs)


def test_options_of_the_wrong_kind_are_refused_by_name() -> None:
    model, x, sizes = linear(), random(2, 4), {"input": {0: "batch"}}
    with pytest.raises(PassError, match=r"passes holds <class .*FoldConstants'>; a pass is a text"):
        planish.compile(model, inputs=x, passes=[FoldConstants])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"workload is a dict of sizes such as .*, not \[1\]"):
        planish.compile(model, inputs=x, workload=[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="workload: batch = '8'; a size is an integer"):
        planish.compile(model, inputs=x, dynamic=sizes, workload={"batch": "8"})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"threads is 1\.5; a call needs at least one, as an integer"):
        planish.compile(model, inputs=x, threads=1.5)  # type: ignore[arg-type]


def test_a_compiled_model_says_what_it_is_not_made_for(tmp_path: Path) -> None:
    fast = planish.compile(linear(), inputs=random(2, 4))
    for duplicate in (pickle.dumps, copy.deepcopy):
        with pytest.raises(InputError, match="cannot be pickled or copied; save it and load the artifact"):
            duplicate(fast)
    with pytest.raises(InputError, match=r"input 'input' is missing; it takes f32\[2, 4\]"):
        fast()
    fast.save(tmp_path / "a.planish")
    with pytest.raises(ArtifactError, match="lies inside the artifact that is saved"):
        planish.load(tmp_path / "a.planish").save(tmp_path / "a.planish" / "b")


def test_bf16_inputs_of_numpy_are_told_how_to_convert() -> None:
    fast = planish.compile(linear().bfloat16(), inputs=random(2, 4).bfloat16())
    with pytest.raises(InputError, match=r"takes bf16\[2, 4\], was given f32.*\.astype\(ml_dtypes\.bfloat16\)"):
        fast(random(2, 4).numpy())


def test_a_full_temporary_disk_is_said_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(2 << 20, 1 << 20, 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match=r"has 1 MiB free, compiling takes 32; set TMPDIR to another disk"):
        planish.compile(linear(), inputs=random(2, 4))


def test_a_copy_that_fails_names_one_file_and_its_reason(tmp_path: Path) -> None:
    listed = [("from", "to", "[Errno 28] No space left on device: 'to'"), ("from", "other", "[Errno 28] again")]
    words = f"cannot save '{tmp_path / 'a'}': [Errno 28] No space left on device: 'to'; nothing was changed there"
    with pytest.raises(ArtifactError, match=re.escape(words)), staging(tmp_path / "a"):
        raise shutil.Error(listed)
