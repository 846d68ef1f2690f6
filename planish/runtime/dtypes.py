"""Element types as the runtime names them, with their names in numpy, torch and safetensors."""

from typing import Final, Literal, TypeAlias, cast

from planish.runtime.fields import Field

DTypeName: TypeAlias = Literal["f64", "f32", "f16", "bf16", "f8", "i64", "i32", "i16", "i8", "u8", "bool"]

ITEMSIZE: Final[dict[DTypeName, int]] = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8": 1, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1,
    "bool": 1,
}  # fmt: skip
# numpy has no bf16: its bits travel as u16 and widen to f32 on the way out. Nor has it f8, whose bits travel as u8.
NUMPY: Final[dict[DTypeName, str]] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "uint16", "f8": "uint8", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
TORCH: Final[dict[DTypeName, str]] = {**NUMPY, "bf16": "bfloat16", "f8": "float8_e4m3fn"}
SAFETENSORS: Final[dict[DTypeName, str]] = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8": "F8_E4M3", "i64": "I64", "i32": "I32", "i16": "I16",
    "i8": "I8", "u8": "U8", "bool": "BOOL",
}  # fmt: skip


def read_dtype(field: Field) -> DTypeName:
    """A dtype by its name in the plan."""
    return cast(DTypeName, field.text(*ITEMSIZE))
