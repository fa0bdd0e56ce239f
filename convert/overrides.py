"""``--override-kv KEY=TYPE:VALUE``: metadata that the user sets, of any type that GGUF has, nothing cut or wrapped around."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import numpy as np

from ..errors import UsageError
from ..formats.metadata import Field, Scalar, ValueType, numbers, strings

__all__ = ["TYPES", "parse_override", "type_name"]

TYPES: Final = MappingProxyType(
    {
        "u8": ValueType.UINT8,
        "i8": ValueType.INT8,
        "u16": ValueType.UINT16,
        "i16": ValueType.INT16,
        "u32": ValueType.UINT32,
        "i32": ValueType.INT32,
        "u64": ValueType.UINT64,
        "i64": ValueType.INT64,
        "f32": ValueType.FLOAT32,
        "f64": ValueType.FLOAT64,
        "bool": ValueType.BOOL,
        "str": ValueType.STRING,
        # llama.cpp's names; its int is no type but a choice
        "float": ValueType.FLOAT32,
    }
)
_RANGES: Final = MappingProxyType(
    {
        ValueType[f"{prefix}INT{bits}"]: (-(1 << bits - 1) if sign else 0, (1 << bits - sign) - 1)
        for bits in (8, 16, 32, 64)
        for prefix, sign in (("", 1), ("U", 0))
    }
)
_LARGEST: Final = MappingProxyType(
    {ValueType.FLOAT32: float(np.finfo(np.float32).max), ValueType.FLOAT64: float(np.finfo(np.float64).max)}
)
_USUAL_INTEGERS: Final = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
_REMEDY: Final = f"Write KEY=TYPE:VALUE, TYPE being int, {', '.join(TYPES)}, or one of them with [] and a JSON list."


def type_name(field: Field) -> str:
    """Return the name of a value's type, as ``--override-kv`` takes it.

    >>> type_name(strings(["a", "b"]))
    'str[]'
    """
    return _name(field.type) if field.element is None else f"{_name(field.element)}[]"


def _name(kind: ValueType) -> str:
    """Return the first name of a type, which is not llama.cpp's."""
    return next(name for name, each in TYPES.items() if each is kind)


def parse_override(text: str, option: str = "--override-kv ") -> tuple[str, Field]:
    """Return key and value of ``KEY=TYPE:VALUE``.

    ``int``, llama.cpp's, is the first of u32, i32, u64 and i64 that holds the value; arrays are ``TYPE[]`` with a JSON list.

    ``option`` is what stands before the text in messages. Raises UsageError for another form, a type that does not exist, or a value that the type cannot hold.

    >>> parse_override("llama.context_length=int:4096")
    ('llama.context_length', Field(type=<ValueType.UINT32: 4>, value=4096, element=None))
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not key or not equals or not colon:
        raise UsageError(f"{option}{text!r} has not the form KEY=TYPE:VALUE", remedy=_REMEDY)
    try:
        return key, _array(kind.removesuffix("[]"), value) if kind.endswith("[]") else _single(kind, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{option}{text!r}: {error}", remedy=_REMEDY) from error


def _single(kind: str, text: str) -> Field:
    """Return one value from its text."""
    found = _type(kind, [text])
    value: object = text
    if found in _RANGES or found in _LARGEST:
        with suppress(ValueError):  # the text itself is then what the type cannot hold
            value = int(text) if found in _RANGES else float(text)
    elif found is ValueType.BOOL:
        value = {"true": True, "false": False}.get(text, text)
    return Field(found, _checked(found, value))


def _array(kind: str, text: str) -> Field:
    """Return an array from a JSON list."""
    items = json.loads(text)
    if not isinstance(items, list):
        raise TypeError("the value of an array is a JSON list")
    element = _type(kind, items)
    values = [_checked(element, item) for item in items]
    if element is ValueType.STRING:
        return strings(str(value) for value in values)
    return numbers([value for value in values if not isinstance(value, str)], element)


def _type(kind: str, values: Sequence[object]) -> ValueType:
    """Return the type called ``kind``; ``int`` depends on the values."""
    if kind == "int":
        found = [int(value) for value in values if isinstance(value, int | str)] or [0]
        fitting = (each for each in _USUAL_INTEGERS if _holds(each, min(found)) and _holds(each, max(found)))
        return next(fitting, ValueType.INT64)
    if kind not in TYPES:
        raise ValueError(f"there is no type {kind!r}")
    return TYPES[kind]


def _holds(kind: ValueType, value: int) -> bool:
    """Whether an integer type holds a value."""
    low, high = _RANGES[kind]
    return low <= value <= high


def _checked(kind: ValueType, value: object) -> Scalar:
    """Return ``value`` as ``kind`` holds it; raises ValueError if it does not."""
    if kind is ValueType.STRING and isinstance(value, str):
        return value
    if kind is ValueType.BOOL and isinstance(value, bool):
        return value
    if kind in _RANGES and isinstance(value, int) and not isinstance(value, bool) and _holds(kind, value):
        return value
    # the comparison is false for NaN
    if (
        kind in _LARGEST
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= _LARGEST[kind]
    ):
        return float(value)
    raise ValueError(f"{_name(kind)} cannot hold {value!r}")
