"""The text form of graphs, and its parser: `str(parse(str(graph))) == str(graph)`. The grammar is in docs/text.md."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy

from planish.compiler.ir import Attr, Graph, Node, Value, same_type
from planish.compiler.ops import BY_NAME
from planish.compiler.ops.structure import input_, weight
from planish.compiler.types import Dim, DType, Size, TensorType, dim_text, simplify, symbol
from planish.errors import ParseError, TypeRuleError, nearest


def graph_text(graph: Graph) -> str:
    """The graph as text: a header with sizes and inputs, one line a node, the outputs."""
    names = _value_names(graph)
    sizes = ", ".join(f"{s.name}: {s.low}..{s.high} = {s.hint}" for s in graph.sizes)
    inputs = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
    lines = [f"graph {_quoted(graph.name, _WORD)}" + (f"<{sizes}>" if sizes else "") + f"({inputs}) {{"]
    for node in graph.nodes():
        if node.op not in (input_, weight):
            lines.append("  " + _node_text(node, names))
    outputs = ", ".join(_operand(v, names) for v in graph.outputs)
    return "\n".join((*lines, f"  return {outputs}".rstrip(), "}"))


def _value_names(graph: Graph) -> Mapping[Value, str]:
    names: dict[Value, str] = {v: f"%{_quoted(str(v.node.attrs['name']), _INPUT)}" for v in graph.inputs}
    computed = [n for n in graph.nodes() if n.op not in (input_, weight)]
    for i, node in enumerate(computed):
        many = len(node.types) > 1
        names.update({v: f"%{i}.{v.index}" if many else f"%{i}" for v in node.values})
    return names


_WORD = re.compile(r"[\w.]+")
_INPUT = re.compile(r"[^\W\d][\w.]*")
_SCOPE = re.compile(r'[^\s"](.*\S)?')


def _quoted(name: str, bare: re.Pattern[str]) -> str:
    """The name as it is where it is of the `bare` kind and printable, else as a JSON string."""
    return name if bare.fullmatch(name) and name.isprintable() else json.dumps(name)


def _operand(value: Value | None, names: Mapping[Value, str]) -> str:
    if value is None:
        return "none"
    if value.node.op is weight:
        return f"@{_quoted(str(value.node.attrs['name']), _WORD)}: {value.type}"
    return names[value]


def _node_text(node: Node, names: Mapping[Value, str]) -> str:
    results = ", ".join(names[v] for v in node.values)
    operands = ", ".join(_operand(v, names) for v in node.inputs)
    attrs = ", ".join(f"{k}={attr_text(v)}" for k, v in node.attrs.items() if not _is_default(v, node.op.defaults[k]))
    types = ", ".join(map(str, node.types))
    scope = f"  # {_quoted(node.scope, _SCOPE)}" if node.scope else ""
    return f"{results} = {node.op.name}({operands}){f' {{{attrs}}}' if attrs else ''}: {types}{scope}"


def _is_default(value: Attr, default: Attr) -> bool:
    return type(value) is type(default) and attr_text(value) == attr_text(default)


def attr_text(value: Attr) -> str:
    """An attribute as text: numbers, names of dtypes, quoted strings, dimensions in backquotes, lists."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case tuple():
            return "[" + ", ".join(attr_text(v) for v in value) + "]"
        case sympy.Expr():
            return f"`{dim_text(value)}`"
        case _:
            return str(value)


def parse_program(text: str) -> Mapping[str, Graph]:
    """Every graph of a text, by name; raises ParseError with the line."""
    graphs: dict[str, Graph] = {}
    number = 1
    for part in re.split(r"^(?=graph )", text, flags=re.MULTILINE):
        if part.strip():
            graph = _parse_from(number, part)
            if graph.name in graphs:
                raise ParseError(f"line {number}: two graphs are called '{graph.name}'")
            graphs[graph.name] = graph
        number += part.count("\n")
    return graphs


def parse(text: str) -> Graph:
    """The graph of a text; raises ParseError that names the line and what was expected."""
    return _parse_from(1, text)


def _parse_from(first: int, text: str) -> Graph:
    parser = _Parser()
    for number, line in enumerate(text.split("\n"), first):
        try:
            if line.strip():
                parser.line(line.strip())
        except (ParseError, TypeRuleError) as error:
            raise ParseError(f"line {number}: {error}: {line.strip()}") from None
    if parser.graph is None:
        raise ParseError("the text has no `graph NAME(...) {` header with a `return` line")
    if not parser.closed:
        raise ParseError("the text ends before the `}` of its graph")
    return parser.graph


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|.', re.DOTALL)
_NAME = r'("(?:[^"\\]|\\.)*"|[\w.]+)'
_HEADER = re.compile(rf"graph {_NAME}(?:<([^>]*)>)?(?=\()")
_TYPED = re.compile(rf"[%@]{_NAME}: (.*)$")
_OP = re.compile(r"(\w+)(?=\()")
_RESULT = re.compile(r"%[\w.]+")
_SIZE = re.compile(r"(\w+): (\d+)\.\.(\d+) = (\d+)$")
_TYPE = re.compile(r"(\w+)\[(.*)\]$")
_NUMBER = re.compile(r"-?(\d+(\.\d*)?(e[+-]?\d+)?|inf|nan)")


@dataclass
class _Parser:
    values: dict[str, Value] = field(default_factory=dict)
    name: str | None = None
    sizes: tuple[Size, ...] = ()
    inputs: tuple[Value, ...] = ()
    graph: Graph | None = None
    closed: bool = False

    def line(self, line: str) -> None:
        if self.closed:
            raise ParseError("expected nothing after the `}` of the graph")
        if self.name is None:
            self._header(line)
        elif line == "}" and self.graph:
            self.closed = True
        elif line == "}" or self.graph:
            raise ParseError("expected `return` and then `}` at the end of the graph")
        elif line.split(" ")[0] == "return":
            outputs = tuple(self._value(word) for word in split(line.removeprefix("return")))
            self.graph = Graph(self.name, self.inputs, outputs, self.sizes)
        else:
            self._node(line)

    def _header(self, line: str) -> None:
        match = _HEADER.match(line)
        inputs, end = _bracket(line[match.end() :]) if match else ("", "")
        if not match or end != " {":
            raise ParseError("expected `graph NAME<sizes>(%input: type, ...) {`")
        self.name = _unquoted(match[1])
        self.sizes = tuple(_parse_size(word) for word in split(match[2] or ""))
        for word in split(inputs):
            name, of = _typed(word)
            value = input_(name=name, shape=of.shape, dtype=of.dtype)
            self._define([word[: word.rindex(": ")]], (value,))
            self.inputs = (*self.inputs, value)

    def _node(self, line: str) -> None:
        results, _, right = line.partition(" = ")
        match = _OP.match(right)
        if not match or not all(_RESULT.fullmatch(word) for word in split(results)):
            raise ParseError("expected `%name = op(operands) {attributes}: type  # scope`")
        if match[1] not in BY_NAME:
            raise ParseError(f"no op is called '{match[1]}'{nearest(match[1], BY_NAME)}")
        operands, rest = _bracket(right[match.end() :])
        attrs, rest = _bracket(rest[1:]) if rest.startswith(" {") else ("", rest)
        if not rest.startswith(": "):
            raise ParseError("expected `: type  # scope` after the operands and attributes")
        types, _, scope = rest[2:].partition("  # ")
        inputs = tuple(None if word == "none" else self._value(word) for word in split(operands))
        node = BY_NAME[match[1]].node(inputs, _parse_attrs(attrs), _unquoted(scope))
        _check_types(types, node)
        self._define(split(results), node.values)

    def _define(self, names: list[str], values: tuple[Value, ...]) -> None:
        if len(names) != len(values):
            raise ParseError(f"expected {len(values)} results, not {len(names)}")
        for name, value in zip(names, values, strict=True):
            if name in self.values:
                raise ParseError(f"{name} is defined twice")
            self.values[name] = value

    def _value(self, word: str) -> Value:
        if word.startswith("@"):
            name, of = _typed(word)
            return self.values.setdefault(f"@{name}: {of}", weight(name=name, shape=of.shape, dtype=of.dtype))
        if word not in self.values:
            raise ParseError(f"{word or 'an empty operand'} is not defined above")
        return self.values[word]


def _bracket(text: str) -> tuple[str, str]:
    """What stands in the bracket that opens `text`, and what follows it."""
    depth = end = 0
    for token in _TOKEN.findall(text):
        depth += _opened(token)
        end += len(token)
        if depth == 0:
            return text[1 : end - 1], text[end:]
    raise ParseError(f"the bracket {text[0]} is not closed")


def _opened(token: str) -> int:
    return (token in "([{") - (token in ")]}")


def split(text: str) -> list[str]:
    """`text` at commas outside brackets and quotes; no words of a blank text."""
    words, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += _opened(token)
        if token == "," and depth == 0:
            words.append("")
        else:
            words[-1] += token
    return [word.strip() for word in words] if text.strip() else []


def _unquoted(name: str) -> str:
    return _parse_string(name) if name.startswith('"') else name


def _parse_string(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise ParseError(f"{text} is no string in double quotes") from None


def _typed(word: str) -> tuple[str, TensorType]:
    if not (match := _TYPED.match(word)):
        raise ParseError(f"expected a name and a type such as %x: f32[B, 384], not {word!r}")
    return _unquoted(match[1]), parse_type(match[2])


def _parse_size(word: str) -> Size:
    if not (match := _SIZE.match(word)):
        raise ParseError(f"expected `NAME: low..high = hint`, not {word!r}")
    try:
        return Size(match[1], int(match[2]), int(match[3]), int(match[4]))
    except ValueError as error:
        raise ParseError(str(error)) from None


def _check_types(stated: str, node: Node) -> None:
    types = [parse_type(word) for word in split(stated)]
    if len(types) != len(node.types) or not all(map(same_type, types, node.types)):
        raise ParseError(f"the line states {stated} but {node.op.name} gives {', '.join(map(str, node.types))}")


def parse_type(text: str) -> TensorType:
    """The type of `f32[B, 384]`."""
    match = _TYPE.match(text)
    if not match or match[1] not in DType.__members__:
        raise ParseError(f"expected a type such as f32[B, 384], not {text!r}")
    return TensorType(tuple(parse_dim(word) for word in split(match[2])), DType(match[1]))


def _parse_attrs(text: str) -> Mapping[str, Attr]:
    attrs: dict[str, Attr] = {}
    for word in split(text):
        name, _, value = word.partition("=")
        if name in attrs:
            raise ParseError(f"the attribute '{name}' is given twice")
        attrs[name] = parse_attr(value)
    return attrs


def parse_attr(text: str) -> Attr:
    """The attribute that `attr_text` printed."""
    words = {"none": None, "true": True, "false": False, **DType.__members__}
    if text in words:
        return words[text]
    if text[:1] == '"':
        return _parse_string(text)
    if len(text) > 1 and text[0] == text[-1] == "`":
        return parse_dim(text[1:-1])
    if text[:1] == "[" and text[-1] == "]":
        return tuple(parse_attr(word) for word in split(text[1:-1]))
    if not _NUMBER.fullmatch(text):
        raise ParseError(f"{text!r} is no attribute value")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def parse_dim(text: str) -> Dim:
    """The dimension that `dim_text` printed; raises ParseError on anything but + - * // % max min over names."""
    try:
        return simplify(sympy.sympify(_dim_of(ast.parse(text, mode="eval").body)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ParseError(f"{text!r} is no dimension") from None


def _dim_of(tree: ast.expr) -> sympy.Expr:
    match tree:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_dim_of(operand)
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[_, _, *_] as args, keywords=[]):
            return (sympy.Max if name == "max" else sympy.Min)(*map(_dim_of, args))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_dim_of(left), _dim_of(right))
    raise ParseError(f"{ast.unparse(tree)!r} is no dimension")


def _divisor(dim: sympy.Expr) -> sympy.Expr:
    if dim == 0:
        raise ParseError("a dimension divides by zero")
    return dim


_OPERATORS: Mapping[type[ast.operator], Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / _divisor(b)),
    ast.Mod: lambda a, b: sympy.Mod(a, _divisor(b)),
}
