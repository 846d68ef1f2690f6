"""Walks a function of torch-mlir's torch dialect and builds our nodes through the aten table, op by op."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import sympy
import torch

from planish.compiler.importers.builder import Builder
from planish.compiler.importers.contents import Contents
from planish.compiler.importers.trace import Fakes, decomposed, traced
from planish.compiler.importers.walk import Walk
from planish.compiler.ir import Value
from planish.compiler.ops import BY_NAME
from planish.compiler.types import Dim, DType, simplify
from planish.errors import ImportGraphError

# The numbers of torch's ScalarType enumeration (c10/core/ScalarType.h).
_SCALAR_TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}
_INTEGERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "aten.add.int": operator.add,
    "aten.sub.int": operator.sub,
    "aten.mul.int": operator.mul,
    "aten.floordiv.int": lambda a, b: a // b if isinstance(a, int) else sympy.floor(a / sympy.sympify(b)),
    "aten.remainder.int": lambda a, b: a % b if isinstance(a, int) else sympy.Mod(a, b),
    "prim.max.int": sympy.Max,
    "prim.min.int": sympy.Min,
}
# The prims that torch-mlir writes, as the ops of aten with the same arguments.
_PRIMS = {
    "prims.collapse": torch.ops.aten.flatten.using_ints,
    "prims.convert_element_type": torch.ops.aten.to.dtype,
    "prims.squeeze": torch.ops.aten.squeeze.dims,
}
_TO_NUMBER = ("aten.item", "aten.Int.Tensor", "aten.Float.Tensor", "aten.Bool.Tensor", "aten.IntImplicit")
_SAME_NUMBER = ("aten.Int.bool", "aten.Int.Scalar", "aten.Float.Scalar", "aten.Bool.int", "prim.NumToTensor")


@dataclass(frozen=True, slots=True)
class _Undecided:
    """A comparison of sizes whose answer depends on them."""

    name: str
    left: Any
    right: Any


class NarrowerSizeError(Exception):
    """The model holds only while the size `name` is at most `high`, because of the op `where`."""

    def __init__(self, name: str, high: int, where: str) -> None:
        super().__init__(f"{where} needs {name} <= {high}")
        self.name, self.high, self.where = name, high, where


@dataclass(slots=True)
class MlirWalk:
    """The state of one import from the torch dialect."""

    builder: Builder
    fakes: Fakes
    contents: Contents
    walk: Walk
    known: dict[Any, Any] = field(default_factory=dict)

    def run(self, block: Any) -> list[Any]:
        """The values that the block returns, with its arguments already in `known`."""
        for each in block.operations:
            operation = each.operation
            args = [self.known[operand] for operand in operation.operands]
            if operation.name in ("func.return", "torch.prim.If.yield", "torch.operator_terminator"):
                return args
            self._enter(operation)
            results = self._call(operation, args)
            self.known.update(zip(operation.results, results, strict=False))
        return []

    def _enter(self, operation: Any) -> None:
        self.builder.target = operation.name.removeprefix("torch.")
        scope = scope_of_location(str(operation.location))
        self.builder.scope = self.builder.scope if scope is None else scope

    def _call(self, operation: Any, args: Sequence[Any]) -> Sequence[Any]:
        name = operation.name.removeprefix("torch.")
        if name.startswith("constant."):
            return [_attribute(operation)]
        if name == "vtensor.literal":
            return [self._literal(operation)]
        if name == "prim.ListConstruct" or name == "prim.TupleConstruct":
            return [list(args)]
        if name in ("prim.ListUnpack", "prim.TupleUnpack"):
            return list(args[0])
        if name == "runtime.assert":
            return []
        if name == "prim.If":
            return self._branch(operation, args[0])
        number = self._number(name, args)
        if number is not None:
            return [number]
        results = self._tensor(name, args, _dtypes(operation))
        return [self._typed(value, dtype) for value, dtype in zip(results, _dtypes(operation), strict=False)]

    def _typed(self, value: Any, dtype: DType | None) -> Any:
        """ONNX keeps the dtype of operands where torch would promote them; the dialect states what holds."""
        return self.builder.cast(value, dtype) if isinstance(value, Value) else value

    def _branch(self, operation: Any, condition: Any) -> Sequence[Any]:
        if isinstance(condition, _Undecided):
            raise ImportGraphError(
                f"{self.builder.where} asks whether {condition.left} {condition.name} {condition.right}, which depends "
                "on the sizes; make the range of the size narrower or static"
            )
        if not isinstance(condition, bool | int):
            raise ImportGraphError(
                f"{self.builder.where} chooses a branch by data; a program has one: decide it before"
            )
        return self.run(operation.regions[0 if condition else 1].blocks[0])

    def _literal(self, operation: Any) -> Value:
        array = numpy.array(operation.attributes["value"])
        if "vtensor<" in str(operation.results[0].type) and ",i1>" in str(operation.results[0].type):
            array = array.astype(bool)
        return self.builder.constant(torch.from_numpy(array))

    def _number(self, name: str, args: Sequence[Any]) -> Any:
        """The result of an op on Python numbers and sizes; None for ops on tensors."""
        if name == "aten.size.int":
            return args[0].shape[args[1]]
        if name == "aten.size":
            return list(args[0].shape)
        if name == "aten.dim":
            return args[0].type.rank
        if name == "aten.len.t":
            return len(args[0])
        if name in _TO_NUMBER:
            return self._element(args[0])
        if name == "prim.NumToTensor.Scalar":
            return self._scalar_tensor(args[0])
        if name in _SAME_NUMBER:
            return args[0]
        if name in _INTEGERS:
            value = _INTEGERS[name](*args)
            return simplify(value) if isinstance(value, sympy.Expr) else value
        return self._comparison(name, args)

    def _comparison(self, name: str, args: Sequence[Any]) -> Any:
        match = re.fullmatch(r"aten\.(eq|ne|lt|le|gt|ge)\.(int|float|bool)", name)
        if match is None:
            return (not args[0]) if name == "aten.__not__" else None
        left, right = args
        answers = {
            "eq": lambda: self.contents.equal(left, right),
            "ne": lambda: _negated(self.contents.equal(left, right)),
            "lt": lambda: self.contents.below(left, right),
            "le": lambda: _negated(self.contents.below(right, left)),
            "gt": lambda: self.contents.below(right, left),
            "ge": lambda: _negated(self.contents.below(left, right)),
        }
        answer = answers[match[1]]()
        return _Undecided(match[1], left, right) if answer is None else answer

    def _element(self, value: Value) -> Any:
        held = self.contents.of(value)
        if held is None or held.size != 1:
            raise ImportGraphError(
                f"{self.builder.where} takes a number out of a computed tensor, so that a shape or a choice depends on "
                "the data; a program needs sizes that follow from the input shapes"
            )
        return held.item()

    def _scalar_tensor(self, number: Any) -> Value:
        if isinstance(number, _Undecided):
            sides = [self.builder.scalar(side, DType.i64) for side in (number.left, number.right)]
            return self.builder.emit(BY_NAME[number.name], *sides)
        natural = DType.bool if isinstance(number, bool) else DType.f32 if isinstance(number, float) else DType.i64
        return self.builder.scalar(number, natural)

    def _tensor(self, name: str, args: Sequence[Any], dtypes: Sequence[DType | None]) -> Sequence[Any]:
        if name == "aten._shape_as_tensor":
            return [self._shape(args[0].shape)]
        if name == "aten.div.Tensor" and dtypes[0] is not None and dtypes[0].is_integer:
            target, args = torch.ops.aten.div.Tensor_mode, [*args, "trunc"]
        elif name.startswith("aten.__interpolate"):
            target, args = _interpolation(args)
        else:
            target = self._overload(name)
        args = [self._number_for(target, i, arg) for i, arg in enumerate(args)]
        result = self._apply(target, args)
        several = isinstance(result, tuple | list) and len(target._schema.returns) > 1
        return result if several else [result]

    def _apply(self, target: torch._ops.OpOverload, args: Sequence[Any]) -> Any:
        result = self.walk.by_table(target, args, {})
        if result is not None:
            return result
        stand_ins: Any = (_mapped(self.fakes.of, list(args)), {})
        try:
            steps = decomposed(target, stand_ins)
            like = None if steps else traced(target, stand_ins).graph.output_node().args[0]
        except (RuntimeError, TypeError, ValueError) as error:
            self._narrow(args)
            reason = self._fixed_size(target, args) or str(error).partition("\n")[0]
            raise ImportGraphError(f"{self.builder.where} of the ONNX model cannot run in torch: {reason}") from error
        if steps:
            return self.walk.by_decomposition(steps, args, {})
        return self.walk.by_torch(target, args, {}, _mapped(_traced_value, like))

    def _narrow(self, args: Sequence[Any]) -> None:
        """Raise NarrowerSizeError where operands fit together for small sizes alone, as s and min(512, s) do."""
        dims = [d for a in args if isinstance(a, Value) for d in a.shape]
        for dim in dims:
            limits: tuple[Any, ...] = dim.args if isinstance(dim, sympy.Min) else ()
            names = [d.name for d in limits if d.is_Symbol and d in dims]
            if names and len(limits) == 2 and limits[0].is_Integer:
                raise NarrowerSizeError(names[0], int(limits[0]), self.builder.where)

    def _fixed_size(self, target: torch._ops.OpOverload, args: Sequence[Any]) -> str | None:
        """What is wrong with a reshape to a shape that only one size fits."""
        if "reshape" not in str(target) and "view" not in str(target):
            return None
        wanted = ", ".join(str(dim) for dim in args[1])
        return (
            f"{args[0].type} does not reshape to [{wanted}] at every size; the exporter has written a size of its "
            "example into the file: export with dynamo=True, or without this dynamic axis"
        )

    def _shape(self, shape: Sequence[Dim]) -> Value:
        """A shape as a vector of i64."""
        if all(isinstance(d, int) for d in shape):
            return self.builder.constant(torch.tensor(shape, dtype=torch.int64))
        parts = [self.builder.reshape(self.builder.scalar(d, DType.i64), (1,)) for d in shape]
        return self.builder.concat(parts, 0)

    def _overload(self, name: str) -> torch._ops.OpOverload:
        if name in _PRIMS:
            return _PRIMS[name]
        parts = name.split(".")
        packet = getattr(torch.ops.aten, parts[1], None) if parts[0] == "aten" else None
        overload = getattr(packet, parts[2] if len(parts) > 2 else "default", None) if packet is not None else None
        if overload is None:
            raise ImportGraphError(f"{self.builder.where} of the ONNX model has no meaning in torch that planish knows")
        assert isinstance(overload, torch._ops.OpOverload)
        return overload

    def _number_for(self, target: torch._ops.OpOverload, place: int, arg: Any) -> Any:
        """Numbers of dtypes as dtypes, and scalar tensors where the schema wants numbers as numbers."""
        kind = str(target._schema.arguments[place].type)
        if "ScalarType" in str(target._schema.arguments[place].real_type) and isinstance(arg, int):
            return _SCALAR_TYPES[arg]
        if isinstance(arg, Value) and kind in ("int", "SymInt", "float", "number"):
            return self._element(arg)
        return arg


_DTYPES = {
    "f64": DType.f64,
    "f32": DType.f32,
    "f16": DType.f16,
    "bf16": DType.bf16,
    "i1": DType.bool,
    "si64": DType.i64,
    "si32": DType.i32,
    "si16": DType.i16,
    "si8": DType.i8,
    "ui8": DType.u8,
}


def _dtypes(operation: Any) -> list[DType | None]:
    """The dtypes that the dialect states for the results; None for those that are no tensors."""
    found = [re.fullmatch(r"!torch\.vtensor<\[.*\],(\w+)>", str(result.type)) for result in operation.results]
    return [_DTYPES.get(match[1]) if match else None for match in found]


def _negated(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    return [_mapped(function, item) for item in tree] if isinstance(tree, list | tuple) else function(tree)


def _traced_value(node: Any) -> Any:
    return node.meta["val"]


def _attribute(operation: Any) -> Any:
    return operation.attributes["value"].value if "value" in operation.attributes else None


def _interpolation(args: Sequence[Any]) -> tuple[torch._ops.OpOverload, list[Any]]:
    """torch-mlir's spelling of ONNX Resize as torch's upsampling ops."""
    x, size, scale, mode, align = args[0], args[1], args[2], args[3] or "nearest", args[4]
    spatial = x.type.rank - 2
    if spatial not in (1, 2) or mode not in ("nearest", "linear", "bilinear", "cubic", "bicubic"):
        raise ImportGraphError(
            f"Resize with mode {mode} over {spatial} axes is not covered; use nearest, linear or cubic"
        )
    if mode == "nearest":
        return getattr(torch.ops.aten, f"upsample_nearest{spatial}d").vec, [x, size, scale]
    if spatial == 1:
        return torch.ops.aten.upsample_linear1d.vec, [x, size, bool(align), scale]
    kind = torch.ops.aten.upsample_bicubic2d if "cubic" in mode else torch.ops.aten.upsample_bilinear2d
    return kind.vec, [x, size, bool(align), scale]


_NAME = re.compile(r'loc\("([^"]*)"')


def scope_of_location(location: str) -> str | None:
    """The module path in the name of an ONNX node, `encoder.layer` of `/encoder/layer/Add`, if it has one."""
    match = _NAME.search(location)
    if match is None or "/" not in match[1]:
        return None
    return ".".join(part for part in match[1].split("/")[:-1] if part)


def weight_name(name: str) -> str:
    """An ONNX name as the name of a weight: letters, digits, points and underscores."""
    return re.sub(r"[^\w.]+", "_", name).strip("._") or "weight"
