"""What an import keeps of a model besides its numbers: sizes, names, scopes, trees, ties; and what it refuses."""

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from planish.compiler import ops
from planish.compiler.importers import import_torch
from planish.compiler.ir import Program
from planish.compiler.types import Size
from planish.errors import ImportGraphError, InputError
from tests.compiler import models
from tests.compiler.test_import_torch_models import assert_same, run


class Pair(nn.Module):
    """A model of two arguments, given by a function."""

    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor, y: Tensor | None = None, *, flag: bool = True) -> object:
        return self.function(x, y) if flag else x


def double() -> Pair:
    return Pair(lambda x, y: x * 2)


def header(program: Program) -> str:
    return str(program.main).partition("\n")[0]


X = torch.linspace(-1, 1, 24).reshape(4, 6)


def test_sizes_reach_down_to_one_and_take_the_example_as_hint() -> None:
    program = import_torch(double(), (X,), dynamic={"x": {0: "batch"}}).program
    assert program.main.sizes == (Size("batch", 1, 2**31 - 1, 4),)


def test_an_example_of_size_one_still_makes_a_dynamic_size() -> None:
    imported = import_torch(double(), (X[:1],), dynamic={"x": {0: "batch"}})
    assert imported.program.main.sizes == (Size("batch", 1, 2**31 - 1, 1),)
    assert_same(run(imported, (X,), {}), X * 2)


@pytest.mark.parametrize(
    ("declared", "size"),
    [
        (("n", 3, 9), Size("n", 3, 9, 4)),
        (Size("n", 2, 9, 5), Size("n", 2, 9, 5)),
        (torch.export.Dim("n", min=3, max=9), Size("n", 3, 9, 4)),
        (torch.export.Dim.AUTO, Size("x_0", 1, 2**31 - 1, 2)),
    ],
)
def test_takes_every_way_to_declare_a_size(declared: object, size: Size) -> None:
    assert import_torch(double(), (X,), dynamic={"x": {0: declared}}).program.main.sizes == (size,)


def test_takes_the_structure_of_torch_export_for_dynamic_shapes() -> None:
    imported = import_torch(double(), (X,), dynamic=({0: torch.export.Dim("n")},))
    assert header(imported.program) == "graph main<n: 1..2147483647 = 4>(%x: f32[n, 6]) {"


def test_one_size_can_be_twice_another() -> None:
    half = torch.export.Dim("half")
    program = import_torch(Pair(lambda x, y: x.sum() + y), (X, X), dynamic={"y": {0: 2 * half}}).program
    assert [str(v.type) for v in program.main.inputs] == ["f32[4, 6]", "f32[2*half, 6]"]


def test_hints_set_the_usual_size() -> None:
    program = import_torch(double(), (X,), dynamic={"x": {0: "n"}}, hints={"n": 16}).program
    assert program.main.hints() == {"n": 16}


def test_takes_over_the_range_that_the_model_implies() -> None:
    case = models.bert()
    dynamic = {name: {0: "batch", 1: "sequence"} for name in case.kwargs}
    program = import_torch(case.model, (), case.kwargs, dynamic=dynamic).program
    assert program.main.sizes[1] == Size("sequence", 1, 64, 8)


def test_raises_the_least_size_where_strides_ask_for_it() -> None:
    model = nn.Conv2d(3, 4, 3, stride=2, padding=1).eval()
    imported = import_torch(model, (torch.ones(1, 3, 9, 12),), dynamic={"input": {2: "height", 3: "width"}})
    assert [size.low for size in imported.program.main.sizes] == [4, 4]
    other = torch.ones(1, 3, 21, 34)
    assert_same(run(imported, (other,), {}), model(other).detach())


def test_derived_sizes_are_expressions_of_the_declared_ones() -> None:
    def function(x: Tensor, y: Tensor) -> object:
        return torch.cat([x, y]), x.reshape(-1, 2), x[1:], x[:, None, ::2], x.shape[0] * 2

    dynamic = {"x": {0: "a"}, "y": {0: "b"}}
    imported = import_torch(Pair(function), (X, X[:3]), dynamic=dynamic)
    shapes = [str(v.type) for v in imported.program.main.outputs]
    assert shapes == ["f32[a + b, 6]", "f32[3*a, 2]", "f32[a - 1, 6]", "f32[a, 1, 3]", "i64[]"]
    other = (torch.ones(7, 6), torch.ones(5, 6))
    assert_same(run(imported, other, {}), function(*other))


def test_fractions_of_sizes_are_computed_at_run_time() -> None:
    imported = import_torch(Pair(lambda x, y: x * (1 / x.shape[0]) ** 0.5), (X,), dynamic={"x": {0: "n"}})
    other = torch.ones(9, 6)
    assert_same(run(imported, (other,), {}), other / 3)


def test_opaque_ops_take_sizes_at_run_time() -> None:
    def function(x: Tensor, y: Tensor) -> object:
        return x.topk(x.shape[0] - 1, 0).values

    imported = import_torch(Pair(function), (X,), dynamic={"x": {0: ("n", 3, 64)}})
    assert imported.program.notes["opaque"] == ("aten.topk.default",)
    other = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    assert_same(run(imported, (other,), {}), function(other, other))


def test_scopes_are_module_paths_and_weights_their_own_names() -> None:
    program = import_torch((case := models.bert()).model, (), case.kwargs).program
    scopes = {node.scope for node in program.main.nodes() if node.op is ops.linear}
    assert "encoder.layer.0.attention.self.query" in scopes
    assert set(program.weights) <= {*case.model.state_dict(), *dict(case.model.named_buffers())}


def test_weights_are_the_tensors_of_the_model_and_tied_ones_are_one() -> None:
    case = models.gpt2()
    program = import_torch(case.model, (), case.kwargs).program
    table = "transformer.wte.weight"
    assert "lm_head.weight" not in program.weights
    assert program.weights[table].data_ptr() == case.model.get_parameter(table).data_ptr()


class Remembers(nn.Module):
    """A model with a buffer that is not saved, a literal vector and a literal number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((6,), 3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + torch.tensor([1.0, 2, 3, 4, 5, 6]) + torch.tensor(2.0)


def test_buffers_and_literals_become_weights_and_scalars() -> None:
    program = import_torch(Remembers().eval(), (X,)).program
    assert list(program.weights) == ["scale", "constant.0"]
    assert [n.attrs["value"] for n in program.main.nodes() if n.op is ops.full] == [2.0]


def test_nested_and_keyword_inputs_keep_their_form() -> None:
    class Nested(nn.Module):
        def forward(self, data: Mapping[str, object], *, y: Tensor, mode: str, none: None = None) -> object:
            return data["a"] + data["b"][0] * y if mode == "scale" else y

    kwargs = {"y": X + 1, "mode": "scale", "none": None}
    sizes = {"data": {"a": {0: "n"}, "b": [{0: "n"}, None]}, "y": {0: "n"}}
    imported = import_torch(Nested().eval(), ({"a": X, "b": [X, X]},), kwargs, dynamic=sizes)
    assert [str(v.type) for v in imported.program.main.inputs] == ["f32[n, 6]"] * 2 + ["f32[4, 6]", "f32[n, 6]"]
    other = torch.ones(9, 6)
    got = run(imported, ({"a": other, "b": [other, X]},), {"y": other, "mode": "scale"})
    assert_same(got, other * 2)
    with pytest.raises(InputError, match=r"'mode'.* was 'scale' when the model was compiled, was given 'other'"):
        imported.leaves(({"a": other, "b": [other, X]},), {"y": other, "mode": "other"})


def test_star_arguments_are_inputs_too() -> None:
    class Sums(nn.Module):
        def forward(self, *xs: Tensor) -> Tensor:
            return xs[0] + xs[1]

    imported = import_torch(Sums().eval(), (X, X), dynamic={"xs": ({0: "n"}, {0: "n"})})
    other = torch.ones(9, 6)
    assert_same(run(imported, (other, other), {}), other * 2)


def test_keywords_by_star_arguments_may_have_dynamic_sizes() -> None:
    class Hands(nn.Module):
        def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
            scaled = x * rest["y"]
            return scaled if rest["flag"] else x

    model, other = Hands().eval(), torch.ones(9, 6)
    imported = import_torch(model, (X,), {"y": X, "flag": True}, dynamic={"x": {0: "n"}, "y": {0: "n"}})
    assert_same(run(imported, (other,), {"y": other * 3, "flag": True}), other * 3)
    assert "forward" not in vars(model)


def test_one_tensor_given_twice_is_two_inputs() -> None:
    imported = import_torch(Pair(lambda x, y: x[:1] - y), (X, X), dynamic={"x": {0: "n"}})
    assert_same(run(imported, (X[:2], X * 2), {}), X[:1] - X * 2)


def test_keyword_order_is_the_callers() -> None:
    imported = import_torch(Pair(lambda x, y: x - y), (), {"y": X, "x": X * 3})
    assert_same(run(imported, (), {"x": X, "y": X * 5}), X * -4)


def test_results_keep_their_type_with_constants_and_inputs_in_them() -> None:
    def function(x: Tensor, y: Tensor) -> object:
        return {"sum": (x + 1, [x]), "size": x.shape[0], "none": None, "name": "n", "number": 3.5}

    imported = import_torch(Pair(function), (X,), dynamic={"x": {0: "n"}})
    other = torch.ones(9, 6)
    assert_same(run(imported, (other,), {}), function(other, other))
    assert imported.output_tree.count == 3


def test_result_leaves_are_the_outputs_in_order() -> None:
    case = models.bert()
    imported = import_torch(case.model, (), case.kwargs)
    with torch.no_grad():
        result = case.model(**case.kwargs)
    assert [tuple(leaf.shape) for leaf in imported.result_leaves(result)] == [(2, 8, 32), (2, 32)]
    assert imported.output_tree.type_name == type(result).__name__


def test_a_weight_may_be_the_result() -> None:
    layer = nn.Linear(2, 2, bias=False).eval()
    layer.forward = lambda x: layer.weight  # type: ignore[method-assign]
    assert_same(run(import_torch(layer, (X,)), (X,), {}), layer.weight.detach())


def test_does_not_change_the_model() -> None:
    case = models.llama()
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    import_torch(case.model, (), case.kwargs)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.model.state_dict().items())
    assert all(p.requires_grad for p in case.model.parameters())


class Counts(nn.Module):
    """A model that writes its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@dataclasses.dataclass
class Box:
    """A type that torch does not know as a container."""

    x: Tensor


SAME = {"x": {0: "n"}, "y": {0: "n"}}
REFUSED: dict[str, tuple[Pair | nn.Module, tuple[object, ...], object, str]] = {
    "training": (nn.Linear(2, 2), (X,), None, r"Linear is in training mode.* call model.eval\(\)"),
    "unknown input": (double(), (X,), {"z": {0: "n"}}, "dynamic names 'z', which is no given input"),
    "axis": (double(), (X,), {"x": {5: "n"}}, "dynamic of 'x' names axis 5; it has axes 0..1"),
    "size": (double(), (X,), {"x": {0: 3.5}}, "dynamic of 'x' holds 3.5; a size is a name"),
    "name": (double(), (X,), {"x": {0: "a b"}}, "names a size 'a b'; use an identifier"),
    "range": (double(), (X,), {"x": {0: ("n", 1, 3)}}, r"the example has n = 4, outside its declared range 1\.\.3"),
    "only one": (
        double(),
        (X[:1],),
        {"x": {0: ("n", 1, 1)}},
        "needs an example of at least 1 and a range that reaches 2",
    ),
    "unequal": (double(), (X, X[:3]), SAME, "size 'n' is 4 in one example input and 3 in another"),
    "specialised": (Pair(lambda x, y: x + y), (X, X), {"x": {0: "n"}}, r"specialized it to be a constant \(4\)"),
    "related": (Pair(lambda x, y: x.view(-1, 2, 6)), (X,), {"x": {0: "n"}}, "does not take the dynamic sizes: .* == 0"),
    "declared": (
        Pair(lambda x, y: x if x.shape[0] > 3 else -x),
        (X,),
        {"x": {0: ("n", 1, 9)}},
        "give the size the range that the model allows",
    ),
    "data": (Pair(lambda x, y: x[x > 0]), (X,), None, r"aten.index.Tensor gives a size that depends on the data"),
    "branch": (Pair(lambda x, y: x if x.sum() > 0 else -x), (X,), None, "cannot export Pair: .*torch.where or masks"),
    "complex": (Pair(lambda x, y: torch.fft.rfft(x).abs()), (X,), None, "has complex numbers, which planish lacks"),
    "buffer": (Counts(), (X,), None, "the model writes its buffer 'calls' while it runs"),
    "input": (Pair(lambda x, y: x.add_(1)), (X.clone(),), None, "the model writes its input 'x'; clone it first"),
    "output": (Pair(lambda x, y: object()), (X,), None, "cannot export Pair: Found <class 'object'> in output"),
    "argument": (double(), (Box(X),), None, "Unsupported input type.*registered dataclasses"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_the_reason(name: str) -> None:
    model, args, dynamic, message = REFUSED[name]
    with pytest.raises(ImportGraphError, match=message):
        import_torch(model if name == "training" else model.eval(), args, dynamic=dynamic)  # type: ignore[arg-type]


def test_refuses_hints_for_no_size() -> None:
    with pytest.raises(ImportGraphError, match="hints names 'm', which is no dynamic size"):
        import_torch(double(), (X,), dynamic={"x": {0: "n"}}, hints={"m": 3})


def test_refuses_too_many_arguments() -> None:
    with pytest.raises(InputError, match=r"the model takes 1 positional arguments \(input\), not 2"):
        import_torch(nn.Linear(2, 2).eval(), (X, X))


@pytest.mark.parametrize("word", ["input", "output"])
def test_refuses_f8_at_the_edge(word: str) -> None:
    f8 = torch.float8_e4m3fn
    net = Pair(lambda x, _: x.float() * 2) if word == "input" else Pair(lambda x, _: (x * 2).to(f8))
    with pytest.raises(
        ImportGraphError, match=f"an {word} is f8.*; callers pass and get no f8: cast it inside the model"
    ):
        import_torch(net, (X.to(f8) if word == "input" else X,), {})
