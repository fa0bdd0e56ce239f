from __future__ import annotations

import pytest

from qconv.errors import ModelError, PluginError
from qconv.formats.architectures import parse_condition, parse_expression

VALUES = {
    "heads": 4,
    "head_dim": 16,
    "hidden": 100,
    "layers": 46,
    "tied": True,
    "parallel": False,
    "rank": None,
    "epsilon": 1e-5,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("heads", 4),
        (7, 7),
        ("heads * head_dim + 2 * heads", 72),
        ("hidden // heads - 1", 24),
        ("hidden // heads if layers == 46 else head_dim", 25),
        ("hidden if layers == 47 else head_dim", 16),
        ("hidden % 7", 2),
        ("heads if tied else 1", 4),
        ("heads if not tied else 1", 1),
        ("heads if rank else 1", 1),
        ("heads if layers < 47 else 1", 4),
        ("heads if layers >= 47 else 1", 1),
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
        "a if b and c else d",
        "a if b > c else d",
        "a if 1 == 1 == 1 else b",
        "a == b",
        "not a",
        "lambda: 1",
        "-1",
        "a" * 201,
        "\0",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(PluginError):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("tied", True),
        ("not tied", False),
        ("parallel", False),
        ("not parallel", True),
        ("rank", False),
        ("absent", False),
        ("heads", True),
        ("heads == 4", True),
        ("heads < 4", False),
        ("heads >= 4", True),
        ("not heads >= 5", True),
        ("hidden // heads < head_dim + 10", True),
        ("layers % 2 == 0", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse_condition(text).holds(VALUES) is holds


def test_names_of_a_condition_are_those_mentioned() -> None:
    assert parse_condition("not a * b < c").names == {"a", "b", "c"}


@pytest.mark.parametrize(
    "text", ["", "1", "a + b", "a and b", "a < b < c", "a != b", "a <= b", "a in b", "not", "f(a)", "a" * 201]
)
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(PluginError):
        parse_condition(text)


def test_a_condition_on_an_absent_number_is_refused() -> None:
    with pytest.raises(ModelError, match="rank"):
        parse_condition("rank < 4").holds(VALUES)


@pytest.mark.parametrize("text", ["heads % (layers - 46)", "heads // (layers - 46)", "absent", "tied", "epsilon"])
def test_values_that_make_no_size_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match=text.split()[0]):
        parse_expression(text).evaluate(VALUES)
