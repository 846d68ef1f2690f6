"""What type rules ask of operands and attributes; each check raises TypeRuleError."""

from planish.compiler.types import Dim, DType, TensorType
from planish.errors import TypeRuleError


def check_float(*operands: TensorType | None) -> None:
    """Every operand that is present has a floating-point dtype."""
    for of in operands:
        if of is not None and not of.dtype.is_float:
            raise TypeRuleError(f"takes floating-point operands, not {of}; cast it")


def check_number(*operands: TensorType | None) -> None:
    """No operand that is present is bool or f8."""
    for of in operands:
        if of is not None and of.dtype is DType.bool:
            raise TypeRuleError(f"takes numbers, not {of}; cast it")
    check_computed(*operands)


def check_computed(*operands: TensorType | None) -> None:
    """No operand that is present is f8, which is stored, moved, cast and multiplied as codes."""
    for of in operands:
        if of is not None and of.dtype is DType.f8:
            raise TypeRuleError(f"does not compute in f8: cast {of}")


def check_same_dtype(*operands: TensorType | None) -> None:
    """The operands that are present have one dtype."""
    dtypes = list(dict.fromkeys(of.dtype for of in operands if of is not None))
    if len(dtypes) > 1:
        raise TypeRuleError(f"operands are {' and '.join(map(str, dtypes))}; cast one")


def check_index(index: TensorType) -> None:
    """The operand holds indices: i64 or i32."""
    if index.dtype not in (DType.i64, DType.i32):
        raise TypeRuleError(f"takes indices of i64 or i32, not {index}; cast it")


def check_axes(of: TensorType, axes: tuple[int, ...]) -> None:
    """The axes are distinct, non-negative and inside the operand's rank."""
    if len(set(axes)) != len(axes) or not all(0 <= axis < of.rank for axis in axes):
        raise TypeRuleError(f"axes {list(axes)} do not fit {of}; count from 0 and name each once")


def check_windows(of: TensorType, *settings: tuple[Dim, ...]) -> None:
    """The operand is [N, *spatial, C] with one to three spatial axes, and each setting has one entry an axis."""
    axes = of.rank - 2
    if axes not in (1, 2, 3) or any(len(setting) != axes for setting in settings):
        raise TypeRuleError(f"windows over {of} need one to three spatial axes and a setting for each")
