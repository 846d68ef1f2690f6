"""The arguments of a torch step as JSON: literals, lists and tagged objects.

{"value": ["input", 0]}     a value of the function, as a tensor
{"dim": "2*S + 1"}          an integer computed from the sizes
{"dtype": "f32"}            a torch dtype
{"float": "inf"}            a float that JSON lacks: inf, -inf or nan
{"device": "cpu"}, {"layout": "strided"}, {"memory_format": "contiguous_format"}
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from planish.errors import ParseError
from planish.runtime.dims import Dimension
from planish.runtime.dtypes import ITEMSIZE, TORCH, DTypeName
from planish.runtime.fields import Field, Json

_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "float": ("inf", "-inf", "nan"),
    "dtype": tuple(ITEMSIZE),
    "device": ("cpu",),
    "layout": ("strided",),
    "memory_format": ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"),
}


def check_argument(field: Field) -> Json:
    """The JSON of one argument; raises ArtifactError with the path of what is outside the grammar."""
    if isinstance(field.value, list):
        for item in field.items():
            check_argument(item)
    if isinstance(field.value, dict):
        _check_tagged(field)
    return field.value


def references(arguments: Json) -> list[Json]:
    """The ids of all values that the arguments name, in order."""
    if isinstance(arguments, list):
        return [found for item in arguments for found in references(item)]
    if isinstance(arguments, dict) and "value" in arguments:
        return [arguments["value"]]
    return []


def evaluate(argument: Json, value: Callable[[Json], Any], sizes: Mapping[str, int], torch: Any) -> Any:
    """The Python object of an argument that `check_argument` accepted; `value` gives the tensor of an id."""
    if isinstance(argument, list):
        return [evaluate(item, value, sizes, torch) for item in argument]
    if not isinstance(argument, dict):
        return argument
    ((tag, word),) = argument.items()
    match tag:
        case "value":
            return value(word)
        case "dim":
            return Dimension.parse(str(word)).evaluate(sizes)
        case "float":
            return float(str(word))
        case "device":
            return torch.device("cpu")
        case "dtype":
            return torch_dtype(str(word), torch)  # type: ignore[arg-type]
    return getattr(torch, str(word))


def torch_dtype(name: DTypeName, torch: Any) -> Any:
    """The torch dtype of that name."""
    return getattr(torch, TORCH[name])


def _check_tagged(field: Field) -> None:
    members = field.members()
    tag = next(iter(members), "nothing")
    if len(members) != 1 or tag not in ("value", "dim", *_WORDS):
        raise field.error(f"an object with one of value, dim, {', '.join(_WORDS)}")
    if tag == "value":
        members[tag].each(lambda part: part.value)
    elif tag == "dim":
        try:
            Dimension.parse(members[tag].text())
        except ParseError as error:
            raise members[tag].error(f"a dimension ({error})") from error
    else:
        members[tag].text(*_WORDS[tag])
