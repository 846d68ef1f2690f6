"""The shape of nested arguments and results, as JSON and without the classes that they were made of.

A tree has a leaf for every tensor; everything around the tensors (tuples, lists, dicts, dataclasses,
None, numbers, strings) is written down. `describe` builds one from an example, `Tree.leaves` takes the
tensors out of an object of that form, `Tree.build` puts tensors into it.
"""

import dataclasses
import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from planish.errors import InputError, nearest
from planish.runtime.fields import Field, Json

Constant: TypeAlias = bool | int | float | str | None
Key: TypeAlias = str | int
Kind: TypeAlias = Literal["tensor", "constant", "tuple", "list", "dict", "record", "namedtuple"]
_SPECIAL_FLOATS = ("inf", "-inf", "nan")


class Output(dict[str, Any]):
    """A result with named parts: `out.last_hidden_state`, `out["last_hidden_state"]` and `out[0]` are the same.

    Parts that the model left as None are attributes that are None, and neither keys nor numbered, as in the
    ModelOutput of transformers. A part named like a method of dict is reached by `out["..."]`.
    """

    __slots__ = ("_absent", "type_name")

    def __init__(self, type_name: str, parts: Mapping[str, Any]) -> None:
        super().__init__((name, part) for name, part in parts.items() if part is not None)
        self.type_name = type_name
        self._absent = frozenset(name for name, part in parts.items() if part is None)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice):
            return self.to_tuple()[key]
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        if not name.startswith("_") and name in self._absent:
            return None
        raise AttributeError(f"{self.type_name} has no part '{name}'{nearest(name, self)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Output, (self.type_name, {**self, **dict.fromkeys(sorted(self._absent))})

    def to_tuple(self) -> tuple[Any, ...]:
        """The parts that are not None, in order."""
        return tuple(self.values())

    def __repr__(self) -> str:
        return f"{self.type_name}({', '.join(f'{name}={part!r}' for name, part in self.items())})"


@dataclass(frozen=True, slots=True)
class Tree:
    """One node: a tensor, a constant, or a container with `items` (and `keys` where its items are named).

    Build one with `tensor()`, `constant(x)`, `sequence("tuple", ...)`, `mapping({...})`, `record(...)`.
    """

    kind: Kind
    items: tuple["Tree", ...] = ()
    keys: tuple[Key, ...] = ()
    type_name: str = ""
    value: Constant = None

    def __post_init__(self) -> None:
        if self.kind in ("dict", "record", "namedtuple") and len(self.keys) != len(self.items):
            raise ValueError(f"a {self.kind} of {len(self.items)} items needs as many keys, not {len(self.keys)}")
        if self.kind in ("tensor", "constant") and self.items:
            raise ValueError(f"a {self.kind} has no items")

    @property
    def count(self) -> int:
        """The number of tensors."""
        return 1 if self.kind == "tensor" else sum(item.count for item in self.items)

    def paths(self, name: str) -> Iterator[str]:
        """A readable name for every tensor, in order: `name`, `name[0]`, `name['key']` or `name.field`."""
        if self.kind == "tensor":
            yield name
        for part, item in zip(self._parts(), self.items, strict=True):
            yield from item.paths(name + part)

    def leaves(self, given: Any, name: str) -> Iterator[Any]:
        """The tensors of `given`, which must have this form; `name` is what errors call it.

        Raises InputError with the part, what was expected there and what was given. Whether a leaf is a
        tensor at all is left to whoever takes it.
        """
        if self.kind == "tensor":
            yield given
        elif self.kind == "constant":
            self._check_constant(given, name)
        else:
            parts = self._take_apart(given, name)
            for part, item, inner in zip(self._parts(), self.items, parts, strict=True):
                yield from item.leaves(inner, name + part)

    def build(self, tensors: Iterator[Any]) -> Any:
        """The object of this form whose tensors are taken from `tensors` in order; records become `Output`."""
        if self.kind == "tensor":
            return next(tensors)
        if self.kind == "constant":
            return self.value
        items = [item.build(tensors) for item in self.items]
        match self.kind:
            case "tuple":
                return tuple(items)
            case "list":
                return items
            case "dict":
                return dict(zip(self.keys, items, strict=True))
            case "namedtuple":
                return namedtuple(self.type_name, [str(key) for key in self.keys])(*items)
        return Output(self.type_name, dict(zip(map(str, self.keys), items, strict=True)))

    def to_json(self) -> Json:
        match self.kind:
            case "tensor":
                return "tensor"
            case "constant":
                return {"constant": _float_text(self.value)}
            case "tuple" | "list":
                return {self.kind: [item.to_json() for item in self.items]}
        body: dict[str, Json] = {self.kind: [[k, i.to_json()] for k, i in zip(self.keys, self.items, strict=True)]}
        return body if self.kind == "dict" else {**body, "type": self.type_name}

    @classmethod
    def from_json(cls, field: Field) -> "Tree":
        """The tree that `to_json` wrote; raises ArtifactError with the path of what is wrong."""
        if field.value == "tensor":
            return tensor()
        members = field.members() if isinstance(field.value, dict) else {}
        kind = next(iter(members), "nothing")
        if kind not in ("constant", "tuple", "list", "dict", "record", "namedtuple"):
            raise field.error("a tree of tensor, constant, tuple, list, dict, record or namedtuple")
        field.object(kind, *(("type",) if kind in ("record", "namedtuple") else ()))
        if kind == "constant":
            return cls("constant", value=_read_constant(members[kind]))
        if kind in ("tuple", "list"):
            return cls(cast(Kind, kind), members[kind].each(cls.from_json))
        pairs = members[kind].each(_read_pair)
        type_name = _read_name(members["type"]) if "type" in members else ""
        keys = tuple(_read_key(key, kind) for key, _ in pairs)
        if len(set(keys)) != len(keys):
            raise members[kind].error("pairs with distinct keys")
        return cls(cast(Kind, kind), tuple(cls.from_json(item) for _, item in pairs), keys, type_name)

    def _parts(self) -> tuple[str, ...]:
        if self.kind in ("record", "namedtuple"):
            return tuple(f".{key}" for key in self.keys)
        return tuple(f"[{key!r}]" for key in (self.keys if self.kind == "dict" else range(len(self.items))))

    def _check_constant(self, given: Any, name: str) -> None:
        same = given is None if self.value is None else type(given) is type(self.value)
        if same and (given == self.value or given != given):
            return
        raise InputError(f"'{name}' was {self.value!r} when the model was compiled, was given {_short(given)}")

    def _take_apart(self, given: Any, name: str) -> Sequence[Any]:
        if self.kind in ("tuple", "list", "namedtuple"):
            if not isinstance(given, tuple | list) or len(given) != len(self.items):
                raise InputError(f"'{name}' needs a {self.kind} of {len(self.items)}, was given {_short(given)}")
            return given
        found = _mapping_of(given)
        if found is None:
            raise InputError(f"'{name}' needs a {self.type_name or 'dict'}, was given {_short(given)}")
        for key in found:
            if key not in self.keys and found[key] is not None:
                raise InputError(f"'{name}' has no entry {key!r}{nearest(str(key), map(str, self.keys))}")
        if missing := [k for k, i in zip(self.keys, self.items, strict=True) if k not in found and i.count]:
            raise InputError(f"'{name}' lacks the entry {missing[0]!r}")
        return [found.get(k, i.value) for k, i in zip(self.keys, self.items, strict=True)]


def tensor() -> Tree:
    """A leaf."""
    return Tree("tensor")


def constant(value: Constant) -> Tree:
    """A value that the compiled code has built in."""
    return Tree("constant", value=value)


def sequence(kind: Literal["tuple", "list"], items: Sequence[Tree]) -> Tree:
    """A tuple or a list."""
    return Tree(kind, tuple(items))


def mapping(items: Mapping[Key, Tree]) -> Tree:
    """A dict with string or integer keys, in their order."""
    return Tree("dict", tuple(items.values()), tuple(items))


def record(type_name: str, items: Mapping[str, Tree], kind: Literal["record", "namedtuple"] = "record") -> Tree:
    """A dataclass, a ModelOutput of transformers or a namedtuple."""
    return Tree(kind, tuple(items.values()), tuple(items), type_name)


def describe(example: Any, is_tensor: Callable[[Any], bool], name: str = "value") -> Tree:
    """The tree of an example object; raises InputError, with the place by `name`, on what has no tree."""
    if is_tensor(example):
        return tensor()
    if example is None or type(example) in (bool, int, float, str):
        return constant(example)
    if isinstance(example, tuple) and hasattr(example, "_fields"):
        parts = {field: describe(getattr(example, field), is_tensor, f"{name}.{field}") for field in example._fields}
        return record(type(example).__name__, parts, "namedtuple")
    if isinstance(example, tuple | list):
        items = [describe(item, is_tensor, f"{name}[{i}]") for i, item in enumerate(example)]
        return sequence("tuple" if isinstance(example, tuple) else "list", items)
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        fields = [field.name for field in dataclasses.fields(example)]
        parts = {field: describe(getattr(example, field), is_tensor, f"{name}.{field}") for field in fields}
        return record(type(example).__name__, parts)
    if isinstance(example, Mapping) and all(type(key) in (str, int) for key in example):
        return mapping({key: describe(item, is_tensor, f"{name}[{key!r}]") for key, item in example.items()})
    raise InputError(
        f"'{name}' is a {type(example).__name__}; arguments and results are tensors, None, numbers, strings, and "
        "tuples, lists, dicts with string or integer keys, namedtuples and dataclasses of those"
    )


def _mapping_of(given: Any) -> Mapping[Key, Any] | None:
    if isinstance(given, Mapping):
        return given
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return None


def _float_text(value: Constant) -> Json:
    # JSON has no infinities: they are written as {"float": "inf"}.
    if isinstance(value, float) and str(value) in _SPECIAL_FLOATS:
        return {"float": str(value)}
    return value


def _read_constant(field: Field) -> Constant:
    if isinstance(field.value, dict):
        return float(field.object("float")["float"].text(*_SPECIAL_FLOATS))
    if isinstance(field.value, list):
        raise field.error("None, a number or a string")
    return field.value


def _read_pair(field: Field) -> tuple[Field, Field]:
    pair = tuple(field.items())
    if len(pair) != 2:
        raise field.error("a pair of key and tree")
    return pair[0], pair[1]


def _read_key(field: Field, kind: str) -> Key:
    if kind == "dict" and type(field.value) is int:
        return field.value
    return field.text() if kind == "dict" else _read_name(field)


def _read_name(field: Field) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", field.text()):
        raise field.error("an identifier")
    return field.text()


def _short(given: Any) -> str:
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}"
    text = repr(given) if isinstance(given, None | bool | int | float | str) else ""
    return text if text and len(text) <= 40 else f"a {type(given).__name__}"
