"""PyTorch modules become programs through torch.export, before its decompositions."""

import inspect
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument
from torch.utils import _pytree as pytree

from planish.compiler import ops
from planish.compiler.importers.aten_complex import Complex, constant, is_complex
from planish.compiler.importers.builder import Builder
from planish.compiler.importers.dynamic import (
    UNBOUNDED,
    Axes,
    Declared,
    declared_axes,
    enlarged,
    export_dims,
    merged,
    narrowed,
)
from planish.compiler.importers.experts import gathered_experts
from planish.compiler.importers.old_torch import resolved_minima
from planish.compiler.importers.trees import (
    Computed,
    Imported,
    named_keywords,
    positional,
    positional_names,
    signature_of,
)
from planish.compiler.importers.walk import Walk
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.types import DType, Size, symbol
from planish.errors import ImportGraphError, InputError, nearest
from planish.runtime.tree import describe

Dynamic = Mapping[str, Any] | Sequence[Any] | None


def import_torch(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    hints: Mapping[str, int] | None = None,
) -> Imported:
    """The program that `model(*args, **kwargs)` computes, in evaluation mode and without gradients.

    `dynamic` declares axes whose size may change: `{"input_ids": {0: "batch", 1: ("sequence", 1, 512)}}`; a size is a
    name, `(name, low, high)`, a `Size` or a `torch.export.Dim`, and everything else is static. Sizes reach down to 1
    unless a bound was given or the model needs more; an upper bound that the model implies (such as its position
    table) is taken over where none was given. `hints` sets the usual value of sizes, which otherwise is the example's.
    Weights are the model's own tensors, not copies. Raises ImportGraphError with the reason and what to try.
    """
    _check_model(model)
    names, rest = positional_names(model.forward)
    kwargs = _in_order(kwargs or {}, names)
    _check_names(model, kwargs)
    arguments = {**positional(names, rest, args), **kwargs}
    leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
    _check_leaves(leaves)
    axes = declared_axes(arguments, dynamic)
    sizes = merged(axes, leaves, hints or {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exported, sizes = _export(model, enlarged(leaves, axes, sizes), spec, list(arguments), axes, sizes)
        symbols, ranges = _sizes_of(exported, axes, sizes, hints or {})
        graph, notes, weights = _build(exported, symbols, ranges)
    program = Program({"main": graph}, weights, {**notes, **_warned(said)})
    return _described(program, exported, arguments, names, rest)


def _in_order(kwargs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments in the order of the parameters, so that calls may give them by place."""
    placed = {name: kwargs[name] for name in names if name in kwargs}
    return placed | {name: value for name, value in kwargs.items() if name not in placed}


def _described(
    program: Program, exported: ExportedProgram, arguments: Mapping[str, Any], names: tuple[str, ...], rest: str
) -> Imported:
    leaves, spec = _outputs(exported)
    signature = signature_of(arguments, _is_tensor, names, rest)
    output = describe(pytree.tree_unflatten(leaves, spec), lambda leaf: isinstance(leaf, Computed), "output")
    return Imported(program, signature, output, spec, tuple(leaves))


def _warned(said: Sequence[warnings.WarningMessage]) -> dict[str, tuple[str, ...]]:
    """What torch warned the user of while it exported, as a note of the program."""
    lines = (str(w.message).strip().partition("\n")[0] for w in said if issubclass(w.category, UserWarning))
    unique = tuple(dict.fromkeys(lines))
    return {"torch.export": unique} if unique else {}


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ImportGraphError(
            f"a model is a torch.nn.Module or the path of an ONNX file, not a {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ImportGraphError("a model of TorchScript cannot be exported; compile the module that it was made from")
    if model.training:
        raise ImportGraphError(
            f"{type(model).__name__} is in training mode, where dropout and batch norm act otherwise; call model.eval()"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ImportGraphError(f"weight '{name}' has no values (device meta); load the weights first")
        if tensor.device.type != "cpu":
            raise ImportGraphError(f"weight '{name}' lies on {tensor.device}; move the model to the CPU to compile")


def _check_names(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in kwargs:
        if name not in parameters:
            raise InputError(f"{type(model).__name__} has no input '{name}'{nearest(name, parameters)}")


def _check_leaves(leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        if isinstance(leaf, np.ndarray):
            raise InputError("an example input is a numpy array; give the model's own tensor: torch.from_numpy")
        if isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu":
            raise InputError(f"an example input lies on {leaf.device}; move it and the model to the CPU to compile")
        if isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided:
            raise InputError(f"an example input has the layout {leaf.layout}; give a dense tensor: .to_dense()")
        if isinstance(leaf, torch.Tensor) and leaf.numel() == 0:
            raise InputError(f"an example input has shape {list(leaf.shape)}; empty tensors are not computed")


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _export(
    model: nn.Module,
    leaves: Sequence[Any],
    spec: pytree.TreeSpec,
    names: Sequence[str],
    axes: Sequence[Axes],
    sizes: dict[str, Declared],
) -> tuple[ExportedProgram, dict[str, Declared]]:
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    while True:
        dims = _named_dims(model, export_dims(axes, sizes), spec, names)
        try:
            with torch.no_grad(), gathered_experts(model), named_keywords(model, names), resolved_minima():
                exported = torch.export.export(model, args, kwargs, dynamic_shapes=dims, strict=False)
                return (_functional(exported), sizes)
        except ImportGraphError:
            raise
        except Exception as error:
            tighter = narrowed(str(error), sizes)
            if tighter is None:
                raise ImportGraphError(_reason(model, error)) from error
            sizes = tighter


def _named_dims(
    model: nn.Module, dims: Sequence[Any], spec: pytree.TreeSpec, names: Sequence[str]
) -> dict[str, Any] | None:
    if not any(dims):
        return None
    args, kwargs = pytree.tree_unflatten(dims, spec)
    named = {**positional(*positional_names(model.forward), args), **kwargs}
    return {name: named[name] for name in names}


def _reason(model: nn.Module, error: Exception) -> str:
    lines = [line.strip(" -*").partition(" If you're using")[0] for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("For more information", "The error above"))]
    if "Constraints violated" in str(error):
        useful = [line for line in useful if "Constraints violated" not in line and "Suggested fixes" not in line]
        advice = "give the size the range that the model allows (x.shape[0] keeps it, len(x) not), or leave it static"
        return f"{type(model).__name__} does not take the dynamic sizes: {'; '.join(useful[:3])}. To go on, {advice}"
    what = useful[0].partition(". ")[0].rstrip(".") if useful else type(error).__name__
    return f"torch.export cannot export {type(model).__name__}: {what}. To go on, {_advice(str(error))}"


def _advice(message: str) -> str:
    if "data-dependent" in message or "control flow" in message:
        return "replace control flow on values by torch.where or masks, or compile the part around it"
    if "Cache'> in output" in message:
        return "compile the model without its own cache: give use_cache=False among inputs={'name': value}"
    if "input type" in message or "in output" in message:
        return "pass and return tensors, numbers and strings in tuples, lists, dicts and registered dataclasses"
    return "check that the model runs on these inputs, or compile the part around what is named"


_ALIASES = frozenset({torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default})


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """The program without writes through views and without autocasting.

    Raises ImportGraphError where the model changes its own buffers or its inputs.
    """
    if any(_needs_lowering(node) for module in _modules(exported) for node in module.graph.nodes):
        exported = exported.run_decompositions({})
    changed = list(exported.graph_signature.buffers_to_mutate.values())
    if changed:
        raise ImportGraphError(
            f"the model writes its buffer '{changed[0]}' while it runs; return the new state as a result instead, or "
            "call model.eval() where a batch norm does so in training mode"
        )
    if changed := list(exported.graph_signature.user_inputs_to_mutate.values()):
        raise ImportGraphError(f"the model writes its input '{changed[0]}'; clone it first")
    return exported


def _modules(exported: ExportedProgram) -> list[fx.GraphModule]:
    return [m for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)]


def _needs_lowering(node: fx.Node) -> bool:
    """Whether the node writes through a view, or opens a region that computes in another dtype than it says."""
    autocast = str(node.target) == "wrap_with_autocast" and bool(node.args[2])
    return autocast or _writes_elsewhere(node)


def _writes_elsewhere(node: fx.Node) -> bool:
    """Whether the node writes a tensor that another node may see under another name."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or written.op != "call_function" or _is_view(written):
        return True
    return any(_is_view(user) and user < node for user in written.users)


def _is_view(node: fx.Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, fx.Node):
        return _is_view(source) or sum(user.args == node.args for user in source.users) > 1
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    aliases = any(result.alias_info is not None for result in node.target._schema.returns)
    return node.target in _ALIASES or (aliases and not node.target._schema.is_mutable)


def _sizes_of(
    exported: ExportedProgram, axes: Sequence[Axes], sizes: Mapping[str, Declared], hints: Mapping[str, int]
) -> tuple[dict[str, sympy.Expr], dict[str, Size]]:
    """torch's symbols as ours, and our sizes with the ranges that hold."""
    found = [n for n in exported.graph.nodes if n.op == "placeholder"]
    users = [n.meta["val"] for n, s in zip(found, exported.graph_signature.input_specs, strict=True) if _is_user(s)]
    symbols: dict[str, sympy.Expr] = {}
    ranges: dict[str, Size] = {}
    for value, dynamic in zip(users, axes, strict=True):
        for axis, declared in dynamic.items():
            size = value.shape[axis]
            free = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else ()
            for expr in free:
                if expr.name in symbols:
                    continue
                name = getattr(getattr(declared.passed, "root", None), "__name__", declared.name)
                symbols[expr.name] = symbol(name)
                ranges[name] = _range(sizes.get(name, Declared(name)), exported.range_constraints[expr], hints)
    return symbols, ranges


def _is_user(spec: Any) -> bool:
    return bool(spec.kind is InputKind.USER_INPUT)


def _range(declared: Declared, bounds: Any, hints: Mapping[str, int]) -> Size:
    least = int(bounds.lower)
    low = (declared.low or 1) if least <= 2 else max(least, declared.low or 1)
    high = int(bounds.upper) if bounds.upper.is_Integer and int(bounds.upper) < UNBOUNDED else UNBOUNDED
    high = min(high, declared.high or high)
    hint = hints.get(declared.name, declared.hint or declared.example or max(2, low))
    if not low <= hint <= high:
        raise ImportGraphError(f"the hint {declared.name} = {hint} is outside its range {low}..{high}")
    return Size(declared.name, low, high, hint)


def _build(
    exported: ExportedProgram, symbols: Mapping[str, sympy.Expr], ranges: Mapping[str, Size]
) -> tuple[Graph, dict[str, tuple[str, ...]], dict[str, torch.Tensor]]:
    builder = Builder(ranges)
    walk = Walk(builder, symbols)
    bound, inputs = _bind(exported, walk)
    results = walk.run(exported.graph_module, bound)
    kept = [value for value, leaf in zip(results, _outputs(exported)[0], strict=True) if isinstance(leaf, Computed)]
    builder.scope = ""
    _check_real(kept)
    outputs = tuple(v if isinstance(v, Value) else builder.emit(ops.dim_value, value=v) for v in kept)
    _check_edges(inputs, outputs)
    graph = Graph("main", tuple(inputs), outputs, tuple(ranges.values()))
    used = {n.attrs["name"] for n in graph.nodes() if n.op is ops.weight}
    notes = {"opaque": tuple(walk.opaque)} if walk.opaque else {}
    return graph, notes, {name: t for name, t in builder.weights.items() if name in used}


def _check_real(results: Sequence[Any]) -> None:
    if is_complex(*results):
        raise ImportGraphError("an output has complex numbers, which planish lacks; return torch.view_as_real of it")


def _check_edges(inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    for word, values in (("input", inputs), ("output", outputs)):
        if narrow := [value for value in values if value.dtype is DType.f8]:
            raise ImportGraphError(
                f"an {word} is {narrow[0].type}; callers pass and get no f8: cast it inside the model"
            )


def _bind(exported: ExportedProgram, walk: Walk) -> tuple[list[Any], list[Value]]:
    """A value for every placeholder, and those that the caller passes."""
    tied: dict[Any, Value] = {}
    bound: list[Any] = []
    inputs: list[Value] = []
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            bound.append(_weight(exported, spec, walk.builder, tied))
        elif isinstance(spec.arg, ConstantArgument):
            bound.append(spec.arg.value)
        else:
            walk.builder.target = f"input '{node.name}'"
            type_ = walk.type_of(node.meta["val"])
            inputs.append(ops.input_(name=node.name, shape=type_.shape, dtype=type_.dtype))
            bound.append(inputs[-1])
    return bound, inputs


def _weight(exported: ExportedProgram, spec: Any, builder: Builder, tied: dict[Any, Value]) -> Value | Complex:
    name = str(spec.target)
    tensor = exported.constants[name] if name in exported.constants else exported.state_dict[name]
    builder.target = f"weight '{name}'"
    if spec.kind is InputKind.CONSTANT_TENSOR or tensor.is_complex():
        return constant(builder, tensor)
    key = (tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if key not in tied:
        builder.weights[name] = tensor.detach()
        tied[key] = ops.weight(name=name, shape=tuple(tensor.shape), dtype=builder.dtype(tensor.dtype))
    return tied[key]


def _outputs(exported: ExportedProgram) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of the result, computed ones marked, with their structure."""
    leaves: list[Any] = []
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        constant = isinstance(spec.arg, ConstantArgument)
        leaves.append(spec.arg.value if constant else Computed(isinstance(spec.arg, SymIntArgument)))
    return leaves, exported.module_call_graph[0].signature.out_spec
