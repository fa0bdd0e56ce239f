"""Sizes and conditions as an architecture's JSON writes them: integer arithmetic over named hyper-parameters.

``heads * head_dim``, ``hidden // heads``, ``2 * feed_forward`` and ``a if layers == 46 else b`` is all there is: sums, differences, products,
floored quotients, remainders and a choice by a condition. A condition compares two numbers by ``==``, ``<`` or ``>=``, or is a name (true
where it is set, and neither false nor 0), or ``not`` before one of these.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ...errors import ModelError, PluginError

__all__ = ["Condition", "Expression", "parse_condition", "parse_expression"]

_OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
_COMPARISONS = {ast.Eq: "==", ast.Lt: "<", ast.GtE: ">="}
_LONGEST = 200  # characters; a longer one is a mistake


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression; equal texts are equal expressions.

    Attributes:
        text: as written.
        names: the hyper-parameters that it mentions.
    """

    text: str
    names: frozenset[str]

    def evaluate(self, values: Mapping[str, object]) -> int:
        """Return the value for these hyper-parameters; raises ModelError where one is absent, no integer, or a divisor of 0."""
        return _evaluate(_parsed(self.text), values, self.text)


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition; equal texts are equal conditions.

    Attributes:
        text: as written.
        names: the hyper-parameters that it mentions.
    """

    text: str
    names: frozenset[str]

    def holds(self, values: Mapping[str, object]) -> bool:
        """Return whether it holds for these hyper-parameters; raises ModelError where a number that it compares is absent."""
        return _holds(_parsed(self.text), values, self.text)


@cache
def parse_condition(text: str) -> Condition:
    """Return the condition that ``text`` writes; raises PluginError for anything but those above.

    >>> parse_condition("layer >= dense_layers").holds({"layer": 3, "dense_layers": 3})
    True
    """
    names: set[str] = set()
    _check_condition(_tree(text), names, text)
    return Condition(text, frozenset(names))


@cache
def parse_expression(source: str | int) -> Expression:
    """Return the expression that ``source`` writes; raises PluginError for anything but the arithmetic above.

    >>> parse_expression("heads * head_dim").evaluate({"heads": 4, "head_dim": 16})
    64
    """
    text = str(source)
    names: set[str] = set()
    _check(_tree(text), names, text)
    return Expression(text, frozenset(names))


@cache
def _parsed(text: str) -> ast.expr:
    """Return the tree of a text that has been checked."""
    return ast.parse(text, mode="eval").body


def _tree(text: str) -> ast.expr:
    try:
        if len(text) > _LONGEST:
            raise SyntaxError("too long")
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"{text[:_LONGEST]!r} is no expression: {error}") from error


def _check(node: ast.expr, names: set[str], text: str) -> None:
    if isinstance(node, ast.Name):
        names.add(node.id)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        _check(node.left, names, text)
        _check(node.right, names, text)
    elif isinstance(node, ast.IfExp):
        _check_condition(node.test, names, text)
        _check(node.body, names, text)
        _check(node.orelse, names, text)
    elif not (isinstance(node, ast.Constant) and type(node.value) is int):
        raise PluginError(
            f"{text!r}: {ast.unparse(node)!r} is not allowed in an expression",
            remedy="Use names of hyper-parameters, integers, and + - * // % only.",
        )


def _check_condition(node: ast.expr, names: set[str], text: str) -> None:
    if isinstance(node, ast.Name):
        names.add(node.id)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_condition(node.operand, names, text)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        _check(node.left, names, text)
        _check(node.comparators[0], names, text)
    else:
        raise PluginError(
            f"{text!r}: {ast.unparse(node)!r} is no condition",
            remedy="Write a name, 'a == b', 'a < b' or 'a >= b', perhaps with 'not' before it.",
        )


def _holds(node: ast.expr, values: Mapping[str, object], text: str) -> bool:
    if isinstance(node, ast.Name):
        return bool(values.get(node.id))
    if isinstance(node, ast.UnaryOp):
        return not _holds(node.operand, values, text)
    assert isinstance(node, ast.Compare)
    left, right = _evaluate(node.left, values, text), _evaluate(node.comparators[0], values, text)
    match _COMPARISONS[type(node.ops[0])]:
        case "==":
            return left == right
        case "<":
            return left < right
        case _:
            return left >= right


def _evaluate(node: ast.expr, values: Mapping[str, object], text: str) -> int:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value
    if isinstance(node, ast.Name):
        value = values.get(node.id)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{text!r} needs the hyper-parameter {node.id!r}, which is {value!r}")
        return value
    if isinstance(node, ast.IfExp):
        return _evaluate(node.body if _holds(node.test, values, text) else node.orelse, values, text)
    assert isinstance(node, ast.BinOp)
    left, right = _evaluate(node.left, values, text), _evaluate(node.right, values, text)
    match _OPERATIONS[type(node.op)]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    if right == 0:
        raise ModelError(f"{text!r} divides by zero: {ast.unparse(node.right)} is 0")
    return left // right if isinstance(node.op, ast.FloorDiv) else left % right
