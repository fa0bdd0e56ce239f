from __future__ import annotations

import pytest

from qconv.errors import ModelError, PluginError
from qconv.formats.architectures import parse_expression

VALUES = {"heads": 4, "head_dim": 16, "hidden": 100, "layers": 46, "tied": True, "epsilon": 1e-5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("heads", 4),
        (7, 7),
        ("heads * head_dim + 2 * heads", 72),
        ("hidden // heads - 1", 24),
        ("hidden // heads if layers == 46 else head_dim", 25),
        ("hidden if layers == 47 else head_dim", 16),
    ],
)
def test_arithmetic(text: str | int, value: int) -> None:
    assert parse_expression(text).evaluate(VALUES) == value


def test_names_are_those_mentioned() -> None:
    assert parse_expression("a * b if c == 1 else 2").names == {"a", "b", "c"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "heads *",
        "__import__('os')",
        "heads.real",
        "heads ** 9",
        "1.5",
        "True",
        "[1]",
        "a if b else c",
        "a if b < c else d",
        "a if 1 == 1 == 1 else b",
        "lambda: 1",
        "-1",
        "a" * 201,
        "\0",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(PluginError):
        parse_expression(text)


@pytest.mark.parametrize("text", ["heads // (layers - 46)", "absent", "tied", "epsilon"])
def test_values_that_make_no_size_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match=text.split()[0]):
        parse_expression(text).evaluate(VALUES)
