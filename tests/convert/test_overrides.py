"""``--override-kv``: every type, its limits, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconv.convert.overrides import parse_override
from qconv.errors import UsageError
from qconv.formats.gguf.serialize import serialize_field
from qconv.formats.metadata import Field, ValueType

INTEGERS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q"}


def limits(code: str) -> tuple[int, int]:
    """Smallest and largest value, by struct's sizes."""
    bits = 8 * struct.calcsize(code)
    return (0, 2**bits - 1) if code.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize(("kind", "code"), INTEGERS.items())
def test_integers_to_their_limits(kind: str, code: str) -> None:
    for value in limits(code):
        key, field = parse_override(f"a.b={kind}:{value}")
        assert (key, field.value) == ("a.b", value)
        assert serialize_field(key, field).endswith(struct.pack(f"<{code}", value))
    for value in (limits(code)[0] - 1, limits(code)[1] + 1):
        with pytest.raises(UsageError, match="cannot hold"):
            parse_override(f"a.b={kind}:{value}")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5, ValueType.UINT32),
        (-5, ValueType.INT32),
        (2**32, ValueType.UINT64),
        (-(2**40), ValueType.INT64),
    ],
)
def test_int_takes_the_sign_as_it_is(value: int, kind: ValueType) -> None:
    assert parse_override(f"k=int:{value}") == ("k", Field(kind, value))


def test_other_scalars() -> None:
    assert parse_override("k=float:0.1")[1] == Field(ValueType.FLOAT32, 0.1)
    assert parse_override("k=f64:1e300")[1] == Field(ValueType.FLOAT64, 1e300)
    assert parse_override("k=bool:true")[1] == Field(ValueType.BOOL, True)
    assert parse_override("k=bool:false")[1] == Field(ValueType.BOOL, False)
    text = "a=b:c" * 100
    assert parse_override(f"k=str:{text}")[1] == Field(ValueType.STRING, text)
    assert parse_override("k=str:")[1] == Field(ValueType.STRING, "")


def test_arrays() -> None:
    field = parse_override("k=i32[]:[1, -2]")[1]
    assert isinstance(field.value, np.ndarray)
    assert (field.value.tolist(), field.value.dtype.name) == ([1, -2], "int32")
    assert field.element is ValueType.INT32
    assert parse_override("k=int[]:[1, -2]")[1].element is ValueType.INT32
    assert parse_override("k=int[]:[1, 2]")[1].element is ValueType.UINT32
    words = parse_override('k=str[]:["a", "b, c"]')[1]
    assert (words.value, words.element) == (("a", "b, c"), ValueType.STRING)
    flags = parse_override("k=bool[]:[true, false]")[1]
    assert isinstance(flags.value, np.ndarray)
    assert (flags.value.tolist(), flags.element) == ([True, False], ValueType.BOOL)
    assert serialize_field("k", parse_override("k=f32[]:[]")[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key",
        "key=int",
        "=int:5",
        "k=int:five",
        "k=int:1.5",
        f"k=int:{2**64}",
        f"k=int:{-(2**63) - 1}",
        "k=u7:1",
        "k=f32:1e39",
        "k=f32:nan",
        "k=f64:inf",
        "k=bool:1",
        "k=i32[]:5",
        "k=i32[]:[1.5]",
        "k=i32[]:[true]",
        "k=int[]:[true, null]",
        "k=u8[]:[256]",
        "k=str[]:[5]",
        "k=str[]:[",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="KEY=TYPE:VALUE"):
        parse_override(text)


@given(st.text())
def test_any_text_is_a_field_or_an_error(text: str) -> None:
    try:
        key, field = parse_override(text)
    except UsageError:
        return
    assert text.startswith(f"{key}=")
    assert field.type in ValueType
