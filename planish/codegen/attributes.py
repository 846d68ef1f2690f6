"""Attributes of nodes as numbers of known type."""

from planish.compiler.ir import Node


def integer_of(node: Node, name: str) -> int:
    """An attribute that is an integer."""
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


def integers_of(node: Node, name: str) -> tuple[int, ...]:
    """An attribute that is a tuple of integers."""
    values = node.attrs[name]
    assert isinstance(values, tuple)
    return tuple(value for value in values if isinstance(value, int))
