"""Sizes as an architecture's JSON writes them: integer arithmetic over named hyper-parameters.

``heads * head_dim``, ``hidden // heads``, ``2 * feed_forward`` and ``a if layers == 46 else b`` is all there is: sums, differences, products,
floored quotients and a choice by equality.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ModelError, PluginError

__all__ = ["Expression", "parse_expression"]

_OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}
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
        return _evaluate(ast.parse(self.text, mode="eval").body, values, self.text)


def parse_expression(source: str | int) -> Expression:
    """Return the expression that ``source`` writes; raises PluginError for anything but the arithmetic above.

    >>> parse_expression("heads * head_dim").evaluate({"heads": 4, "head_dim": 16})
    64
    """
    text = str(source)
    try:
        if len(text) > _LONGEST:
            raise SyntaxError("too long")
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"{text[:_LONGEST]!r} is no expression: {error}") from error
    names: set[str] = set()
    _check(tree, names, text)
    return Expression(text, frozenset(names))


def _check(node: ast.expr, names: set[str], text: str) -> None:
    if isinstance(node, ast.Name):
        names.add(node.id)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        _check(node.left, names, text)
        _check(node.right, names, text)
    elif isinstance(node, ast.IfExp):
        test = node.test
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
            raise PluginError(f"{text!r}: a choice must test one equality", remedy="Write 'A if name == 1 else B'.")
        for part in (test.left, test.comparators[0], node.body, node.orelse):
            _check(part, names, text)
    elif not (isinstance(node, ast.Constant) and type(node.value) is int):
        raise PluginError(
            f"{text!r}: {ast.unparse(node)!r} is not allowed in an expression",
            remedy="Use names of hyper-parameters, integers, and + - * // only.",
        )


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
        assert isinstance(node.test, ast.Compare)
        equal = _evaluate(node.test.left, values, text) == _evaluate(node.test.comparators[0], values, text)
        return _evaluate(node.body if equal else node.orelse, values, text)
    assert isinstance(node, ast.BinOp)
    left, right = _evaluate(node.left, values, text), _evaluate(node.right, values, text)
    match _OPERATIONS[type(node.op)]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            if right == 0:
                raise ModelError(f"{text!r} divides by zero: {ast.unparse(node.right)} is 0")
            return left // right
