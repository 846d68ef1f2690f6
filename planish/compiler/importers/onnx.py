"""ONNX files become programs through torch-mlir's importer and the aten table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder
from planish.compiler.importers.contents import LIMIT, Contents
from planish.compiler.importers.dynamic import UNBOUNDED, Declared, declared_size
from planish.compiler.importers.mlir_walk import MlirWalk, NarrowerSizeError, weight_name
from planish.compiler.importers.onnx_constants import fold_constants
from planish.compiler.importers.trace import Fakes
from planish.compiler.importers.trees import Imported
from planish.compiler.importers.walk import Walk
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.ops.structure import FROM_TORCH
from planish.compiler.types import Dim, Size
from planish.errors import BackendMissing, ImportGraphError, InputError, nearest
from planish.runtime import tree
from planish.runtime.signature import Parameter, Signature

# torch-mlir covers some ops (BatchNormalization among them) from this version on alone.
_OPSET = 17
_PIPELINE = "builtin.module(func.func(convert-torch-onnx-to-torch),func.func(canonicalize),func.func(cse))"


def import_onnx(model: Any, inputs: Any = None, *, dynamic: Mapping[str, Mapping[int, Any]] | None = None) -> Imported:
    """The program of an ONNX model: a path, or an `onnx.ModelProto`.

    Axes that the file names are dynamic sizes of that name; `dynamic` gives them other names and ranges, as for
    PyTorch models. `inputs` (a tensor, a tuple in order or a dict by name; torch or numpy) sets the usual sizes. The
    result is a tensor, or a dict by output name where there are several. Raises ImportGraphError naming the op or input
    at fault, BackendMissing where torch-mlir or onnx is not installed.
    """
    try:
        import onnx
        import torch_mlir  # noqa: F401
    except ImportError as error:
        raise BackendMissing(f"ONNX files need the package {error.name}: pip install 'planish[onnx]'") from error
    proto = _upgraded(_loaded(model))
    weights = _hoist_weights(proto)
    fold_constants(proto)
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    examples = _examples(proto, weights, inputs)
    values, sizes = _inputs(proto, weights, examples, dynamic or {})
    while True:
        try:
            return _imported(proto, weights, values, sizes)
        except NarrowerSizeError as needed:
            sizes[needed.name] = _narrowed(sizes[needed.name], needed)


def _narrowed(size: Size, needed: NarrowerSizeError) -> Size:
    """The size with the limit that the model sets, such as the length of its table of positions."""
    if size.high != UNBOUNDED or size.hint > needed.high:
        raise ImportGraphError(
            f"{needed.where} of the ONNX model needs {size.name} <= {needed.high}, but it is declared as "
            f"{size.low}..{size.high} with {size.hint} as usual; declare it with max={needed.high}"
        )
    return replace(size, high=needed.high)


def _loaded(model: Any) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    # torch-mlir crashes on models that the checker rejects.
    try:
        proto = onnx.load(str(model)) if isinstance(model, str | Path) else model
        onnx.checker.check_model(proto)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name = f"'{model}'" if isinstance(model, str | Path) else "the given model"
        raise ImportGraphError(f"{name} is no ONNX model that can be read: {reason}") from error
    return proto


def _upgraded(proto: Any) -> Any:
    import onnx
    from onnx import version_converter

    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), _OPSET)
    if version >= _OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return copy
    try:
        return version_converter.convert_version(proto, _OPSET)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ImportGraphError(
            f"the ONNX model has opset {version} and cannot be converted to {_OPSET}: {reason}; export it again with "
            f"opset_version={_OPSET}"
        ) from error


def _hoist_weights(proto: Any) -> dict[str, torch.Tensor]:
    """Take the large tensors out of the model and leave inputs of their names; small ones stay as typed literals."""
    from onnx import helper, numpy_helper

    given = {i.name for i in proto.graph.input}
    tensors = list(proto.graph.initializer)
    for node in list(proto.graph.node):
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None and numpy.prod(list(value.dims), dtype=int) >= LIMIT:
            value.name = node.output[0]
            tensors.append(value)
            proto.graph.node.remove(node)
    del proto.graph.initializer[:]
    weights: dict[str, torch.Tensor] = {}
    for entry in tensors:
        array = numpy_helper.to_array(entry)
        if array.size < LIMIT and array.dtype != bool:
            proto.graph.initializer.append(helper.make_tensor(entry.name, entry.data_type, array.shape, array.ravel()))
            continue
        weights[entry.name] = _tensor(array)
        if entry.name not in given:
            proto.graph.input.append(helper.make_tensor_value_info(entry.name, entry.data_type, array.shape))
    return weights


def _tensor(array: Any) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(numpy.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(numpy.array(array))


def _examples(proto: Any, weights: Mapping[str, Any], inputs: Any) -> dict[str, Any]:
    names = _input_names(proto, weights)
    if inputs is None:
        return {}
    given = inputs if isinstance(inputs, Mapping) else dict(zip(names, _listed(inputs), strict=False))
    for name in given:
        if name not in names:
            raise InputError(f"the ONNX model has no input '{name}'{nearest(str(name), names)}")
    return dict(given)


def _listed(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, tuple | list) else (inputs,)


def _input_names(proto: Any, weights: Mapping[str, Any]) -> list[str]:
    known = {t.name for t in proto.graph.initializer} | set(weights)
    return [i.name for i in proto.graph.input if i.name not in known]


def _inputs(
    proto: Any, weights: Mapping[str, Any], examples: Mapping[str, Any], dynamic: Mapping[str, Mapping[int, Any]]
) -> tuple[dict[str, Value], dict[str, Size]]:
    """An input value for every true input, and the sizes in their types."""
    names = _input_names(proto, weights)
    for name in dynamic:
        if name not in names:
            raise ImportGraphError(f"dynamic names '{name}', which is no input of the ONNX model{nearest(name, names)}")
    sizes: dict[str, Size] = {}
    values: dict[str, Value] = {}
    for entry in proto.graph.input:
        if entry.name in names:
            shape = _shape(entry, examples.get(entry.name), dynamic.get(entry.name, {}), sizes)
            dtype = FROM_TORCH[_torch_dtype(entry)]
            values[entry.name] = ops.input_(name=_identifier(entry.name), shape=shape, dtype=dtype)
    return values, sizes


def _torch_dtype(entry: Any) -> torch.dtype:
    from onnx import helper

    try:
        array = numpy.zeros((), helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
        return _tensor(array).dtype
    except (TypeError, KeyError) as error:
        raise ImportGraphError(f"input '{entry.name}' of the ONNX model is no tensor of numbers") from error


def _shape(entry: Any, example: Any, dynamic: Mapping[int, Any], sizes: dict[str, Size]) -> tuple[Dim, ...]:
    shape: list[Dim] = []
    for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            if axis in dynamic:
                raise ImportGraphError(
                    f"axis {axis} of input '{entry.name}' is {dim.dim_value} in the ONNX file and cannot be dynamic; "
                    "export the model with dynamic axes"
                )
            shape.append(dim.dim_value)
            continue
        name = _identifier(dim.dim_param or f"{entry.name}_{axis}")
        declared = declared_size(dynamic[axis], name, entry.name) if axis in dynamic else Declared(name)
        actual = None if example is None else int(example.shape[axis])
        shape.append(_size(declared, actual, sizes).symbol)
    return tuple(shape)


def _size(declared: Declared, actual: int | None, sizes: dict[str, Size]) -> Size:
    known = sizes.get(declared.name)
    low = max(declared.low or 1, known.low if known else 1)
    high = min(declared.high or UNBOUNDED, known.high if known else UNBOUNDED)
    hint = actual or declared.hint or (known.hint if known else low)
    if not low <= hint <= high:
        raise ImportGraphError(f"the example has {declared.name} = {hint}, outside its declared range {low}..{high}")
    sizes[declared.name] = Size(declared.name, low, high, hint)
    return sizes[declared.name]


def _identifier(name: str) -> str:
    word = re.sub(r"\W+", "_", name).strip("_")
    return word if word.isidentifier() else f"x_{word}"


def _imported(
    proto: Any, weights: Mapping[str, torch.Tensor], values: Mapping[str, Value], sizes: Mapping[str, Size]
) -> Imported:
    module = _torch_dialect(proto)
    fakes, builder = Fakes(sizes), Builder(sizes)
    walk = Walk(builder, fakes.symbols)
    walker = MlirWalk(builder, fakes, Contents(builder.weights, sizes), walk)
    block = module.body.operations[0].regions[0].blocks[0]
    for entry, argument in zip(proto.graph.input, block.arguments, strict=True):
        walker.known[argument] = values.get(entry.name) or _weight(entry.name, weights[entry.name], builder)
    outputs = tuple(walker.run(block))
    graph = Graph("main", tuple(values.values()), outputs, tuple(sizes.values()))
    used = {n.attrs["name"] for n in graph.nodes() if n.op is ops.weight}
    program = Program(
        {"main": graph},
        {name: t for name, t in builder.weights.items() if name in used},
        {"opaque": tuple(walk.opaque)} if walk.opaque else {},
    )
    signature = Signature(tuple(Parameter(name, tree.tensor()) for name in values), len(values))
    return Imported(program, signature, _output_tree([o.name for o in proto.graph.output]))


def _output_tree(names: Sequence[str]) -> tree.Tree:
    return tree.tensor() if len(names) == 1 else tree.mapping({name: tree.tensor() for name in names})


def _weight(name: str, tensor: torch.Tensor, builder: Builder) -> Value:
    builder.target = f"weight '{name}'"
    own = weight_name(name)
    while own in builder.weights:
        own += "_"
    builder.weights[own] = tensor
    return ops.weight(name=own, shape=tuple(tensor.shape), dtype=builder.dtype(tensor.dtype))


_ILLEGAL = re.compile(r'error: "?([^":]*)"?: failed to legalize operation .*?name = "onnx\.(\w+)"', re.DOTALL)


def _torch_dialect(proto: Any) -> Any:
    """The model as a module of the torch dialect with one function."""
    from torch_mlir import ir
    from torch_mlir.dialects import torch as dialect
    from torch_mlir.extras import onnx_importer
    from torch_mlir.passmanager import PassManager

    _refuse_crashing(proto)
    context = ir.Context()
    dialect.register_dialect(context)
    try:
        info = onnx_importer.ModelInfo(proto)
        module = info.create_module(context=context)
        onnx_importer.NodeImporter.define_function(info.main_graph, module.operation).import_all()
        with context:
            PassManager.parse(_PIPELINE).run(module.operation)
    except (onnx_importer.OnnxImportError, ir.MLIRError) as error:
        raise ImportGraphError(_reason(str(error))) from error
    return module


def _refuse_crashing(proto: Any) -> None:
    """torch-mlir 20261001 ends the process on these ops instead of refusing them."""
    for node in proto.graph.node:
        if node.op_type == "Unique":
            raise ImportGraphError(
                f"op Unique in '{node.name}' of the ONNX model gives a size that depends on the data; compile the part "
                "around it"
            )


def _reason(message: str) -> str:
    found = _ILLEGAL.search(message)
    if found:
        return (
            f"op {found[2]} in '{found[1]}' of the ONNX model has no lowering in torch-mlir; replace it by simpler ops"
        )
    return f"torch-mlir cannot import the ONNX model: {message.strip().splitlines()[0]}"
