"""Turns what pydantic found wrong with a profile into lines of path, what was expected, and what to do."""

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from planish.errors import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_type": "a text in quotes",
    "tuple_type": "a list",
}


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line a problem, in the order of the schema, e.g. `dram.bandwidth_gbs: expected a number, given 'fast'`."""
    details = error.errors(include_url=False)
    blind = any(detail["loc"] == ("backend",) for detail in details)
    shown = [detail for detail in details if not (blind and detail["loc"][:1] == ("processor",))]
    return [_line(_path(detail["loc"]), _problem(detail, root)) for detail in shown]


def _line(path: str, problem: str) -> str:
    return f"{path}: {problem}" if path else problem


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _problem(detail: "ErrorDetails", root: type[BaseModel]) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "extra_forbidden":
        return f"no such key{nearest(key, _keys(root, detail['loc'][:-1]))}"
    if kind == "missing":
        return _missing(key)
    if kind == "literal_error":
        return f"expected {context['expected']}, given {given!r}{_meant(given, context['expected'])}"
    if kind == "value_error":
        return str(context["error"])
    return f"expected {_expected(kind, context)}, given {given!r}"


def _meant(given: object, expected: str) -> str:
    known = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = nearest(given, known) if isinstance(given, str) else ""
    return hint if hint.startswith("; did you mean") else ""


def _missing(key: str) -> str:
    if key == "source":
        return "missing; name the data sheet, manual or measurement that the numbers of this table are from"
    if key == "backend":
        return "missing; give 'tvm', 'triton' or 'fpga', which tells what [processor] holds"
    return "missing"


def _expected(kind: str, context: dict[str, Any]) -> str:
    match kind:
        case "greater_than":
            return f"a number over {context['gt']:g}"
        case "greater_than_equal":
            return f"a number of at least {context['ge']:g}"
        case "string_too_short":
            return f"a text of at least {context['min_length']} characters"
        case "string_pattern_mismatch":
            return f"a text that matches {context['pattern']}"
    return _EXPECTED.get(kind, kind.replace("_", " "))


def _keys(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    model = root
    for step in location:
        if isinstance(step, str):
            model = _model(model.model_fields[step].annotation) or model
    return list(model.model_fields)


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model(part))), None)
