"""The text form of graphs, and its parser: `str(parse(str(graph))) == str(graph)`. The grammar is in docs/text.md."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from planish.compiler.ir import Attr, Graph, Node, Op, Value
from planish.compiler.ops import BY_NAME
from planish.compiler.ops.structure import input_, weight
from planish.compiler.types import Dim, DType, Size, TensorType, dim_text, simplify, symbol
from planish.errors import ParseError, TypeRuleError, nearest


def graph_text(graph: Graph) -> str:
    """The graph as text: a header with sizes and inputs, one line a node, the outputs."""
    names = _value_names(graph)
    sizes = ", ".join(f"{s.name}: {s.low}..{s.high} = {s.hint}" for s in graph.sizes)
    inputs = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
    lines = [f"graph {graph.name}" + (f"<{sizes}>" if sizes else "") + f"({inputs}) {{"]
    for node in graph.nodes():
        if node.op not in (input_, weight):
            lines.append("  " + _node_text(node, names))
    lines.append(f"  return {', '.join(_operand(v, names) for v in graph.outputs)}")
    return "\n".join((*lines, "}"))


def _value_names(graph: Graph) -> Mapping[Value, str]:
    names: dict[Value, str] = {v: f"%{v.node.attrs['name']}" for v in graph.inputs}
    computed = [n for n in graph.nodes() if n.op not in (input_, weight)]
    for i, node in enumerate(computed):
        many = len(node.types) > 1
        names.update({v: f"%{i}.{v.index}" if many else f"%{i}" for v in node.values})
    return names


def _operand(value: Value | None, names: Mapping[Value, str]) -> str:
    if value is None:
        return "none"
    return f"@{value.node.attrs['name']}: {value.type}" if value.node.op is weight else names[value]


def _node_text(node: Node, names: Mapping[Value, str]) -> str:
    results = ", ".join(names[v] for v in node.values)
    operands = ", ".join(_operand(v, names) for v in node.inputs)
    kept = {k: v for k, v in node.attrs.items() if v != node.op.defaults[k] or type(v) is not type(node.op.defaults[k])}
    attrs = " {" + ", ".join(f"{k}={attr_text(v)}" for k, v in kept.items()) + "}" if kept else ""
    types = ", ".join(map(str, node.types))
    scope = f"  # {node.scope}" if node.scope else ""
    return f"{results} = {node.op.name}({operands}){attrs}: {types}{scope}"


def attr_text(value: Attr) -> str:
    """An attribute as text: numbers, names of dtypes, quoted strings, dimensions in backquotes, lists."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        case tuple():
            return "[" + ", ".join(attr_text(v) for v in value) + "]"
        case sympy.Expr():
            return f"`{dim_text(value)}`"
        case _:
            return str(value)


def parse_program(text: str) -> Mapping[str, Graph]:
    """Every graph of a text, by name; raises ParseError with the line."""
    parts = re.split(r"^(?=graph )", text, flags=re.MULTILINE)
    graphs = [parse(part) for part in parts if part.strip()]
    return {graph.name: graph for graph in graphs}


def parse(text: str) -> Graph:
    """The graph of a text; raises ParseError that names the line and what was expected."""
    lines = [(i, line.strip()) for i, line in enumerate(text.strip().splitlines(), 1) if line.strip()]
    parser = _Parser({})
    for number, line in lines:
        try:
            parser.line(line)
        except (ParseError, TypeRuleError) as error:
            raise ParseError(f"line {number}: {error}: {line}") from None
    if parser.graph is None:
        raise ParseError("the text has no `graph NAME(...) {` header with a `return` line")
    return parser.graph


_HEADER = re.compile(r"graph (\w+)(?:<(.*?)>)?\((.*)\) \{$")
_NODE = re.compile(r"(%[\w.]+(?:, %[\w.]+)*) = (\w+)\((.*?)\)(?: \{(.*)\})?: ([^{}]*?)(?:  # (\S.*))?$")
_SIZE = re.compile(r"(\w+): (\d+)\.\.(\d+) = (\d+)$")
_TYPE = re.compile(r"(\w+)\[(.*)\]$")


@dataclass
class _Parser:
    values: dict[str, Value]
    name: str = ""
    sizes: tuple[Size, ...] = ()
    inputs: tuple[Value, ...] = ()
    graph: Graph | None = None

    def line(self, line: str) -> None:
        if line.startswith("graph "):
            self._header(line)
        elif line.startswith("return"):
            outputs = tuple(self._value(word) for word in split(line.removeprefix("return")))
            self.graph = Graph(self.name, self.inputs, outputs, self.sizes)
        elif line != "}":
            self._node(line)

    def _header(self, line: str) -> None:
        if not (match := _HEADER.match(line)):
            raise ParseError("expected `graph NAME<sizes>(%input: type, ...) {`")
        self.name, sizes, inputs = match[1], match[2] or "", match[3]
        self.sizes = tuple(_parse_size(word) for word in split(sizes))
        for word in split(inputs):
            name, _, kind = word.partition(": ")
            of = parse_type(kind)
            self.values[name] = input_(name=name.removeprefix("%"), shape=of.shape, dtype=of.dtype)
            self.inputs = (*self.inputs, self.values[name])

    def _node(self, line: str) -> None:
        if not (match := _NODE.match(line)):
            raise ParseError("expected `%name = op(operands) {attributes}: type  # scope`")
        if match[2] not in BY_NAME:
            raise ParseError(f"no op is called '{match[2]}'{nearest(match[2], BY_NAME)}")
        operation: Op = BY_NAME[match[2]]
        inputs = tuple(None if word == "none" else self._value(word) for word in split(match[3]))
        attrs = dict(self._attr(word) for word in split(match[4] or ""))
        node = operation.node(inputs, attrs, match[6] or "")
        if (stated := ", ".join(split(match[5]))) != (inferred := ", ".join(map(str, node.types))):
            raise ParseError(f"the line states {stated} but {operation.name} gives {inferred}")
        self.values.update(zip(split(match[1]), node.values, strict=True))

    def _value(self, word: str) -> Value:
        if word.startswith("@"):
            name, _, kind = word.partition(": ")
            of = parse_type(kind)
            if word not in self.values:
                self.values[word] = weight(name=name.removeprefix("@"), shape=of.shape, dtype=of.dtype)
            return self.values[word]
        if word not in self.values:
            raise ParseError(f"{word or 'an empty operand'} is not defined above")
        return self.values[word]

    def _attr(self, word: str) -> tuple[str, Attr]:
        name, _, value = word.partition("=")
        return name, parse_attr(value)


def _parse_size(word: str) -> Size:
    if not (match := _SIZE.match(word)):
        raise ParseError(f"expected `NAME: low..high = hint`, not {word!r}")
    return Size(match[1], int(match[2]), int(match[3]), int(match[4]))


def parse_type(text: str) -> TensorType:
    """The type of `f32[B, 384]`."""
    match = _TYPE.match(text)
    if not match or match[1] not in DType.__members__:
        raise ParseError(f"expected a type such as f32[B, 384], not {text!r}")
    return TensorType(tuple(parse_dim(word) for word in split(match[2])), DType(match[1]))


def parse_attr(text: str) -> Attr:
    """The attribute that `attr_text` printed."""
    words = {"none": None, "true": True, "false": False, **DType.__members__}
    if text in words:
        return words[text]
    if text.startswith("`"):
        return parse_dim(text.strip("`"))
    if text.startswith("["):
        return tuple(parse_attr(word) for word in split(text[1:-1]))
    try:
        return ast.literal_eval(text) if text.lstrip("-") not in ("inf", "nan") else float(text)
    except (ValueError, SyntaxError):
        raise ParseError(f"{text!r} is no attribute value") from None


def split(text: str) -> list[str]:
    """`text` at commas outside brackets, quotes and backquotes."""
    words, depth, quote, word = [], 0, "", ""
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
        elif c in '"`':
            quote = c
        depth += 0 if quote else (c in "([{") - (c in ")]}")
        if c == "," and depth == 0 and not quote:
            words.append(word.strip())
            word = ""
        else:
            word += c
    return [*words, word.strip()] if word.strip() else words


def parse_dim(text: str) -> Dim:
    """The dimension that `dim_text` printed; raises ParseError on anything but + - * // % max min over names."""
    try:
        return simplify(sympy.sympify(_dim_of(ast.parse(text, mode="eval").body)))
    except SyntaxError:
        raise ParseError(f"{text!r} is no dimension") from None


def _dim_of(tree: ast.expr) -> sympy.Expr:
    match tree:
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_dim_of(operand)
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=args):
            return (sympy.Max if name == "max" else sympy.Min)(*map(_dim_of, args))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_dim_of(left), _dim_of(right))
    raise ParseError(f"{ast.unparse(tree)!r} is no dimension")


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: sympy.Mod,
}
