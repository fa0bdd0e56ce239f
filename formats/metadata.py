"""Typed metadata values: GGUF's value types, the richest open standard, serve as every format's common tongue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "Scalar", "ValueType", "boolean", "float32", "int32", "numbers", "string", "strings", "uint32"]

Scalar = bool | int | float | str


class ValueType(IntEnum):
    """GGUF's value types by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True, slots=True)
class Field:
    """One metadata value and its type.

    Attributes:
        type: the value's type; ``ARRAY`` for arrays.
        value: a scalar, or for arrays a 1-D NumPy array (numbers, booleans) or a sequence of str, perhaps decoded lazily.
        element: the type of an array's elements, None for scalars.
    """

    type: ValueType
    value: Scalar | NDArray[np.generic] | Sequence[str]
    element: ValueType | None = None

    @property
    def is_array(self) -> bool:
        """Whether ``value`` holds several elements."""
        return self.type is ValueType.ARRAY


def uint32(value: int) -> Field:
    """An unsigned 32-bit integer."""
    return Field(ValueType.UINT32, value)


def int32(value: int) -> Field:
    """A signed 32-bit integer."""
    return Field(ValueType.INT32, value)


def float32(value: float) -> Field:
    """A 32-bit float."""
    return Field(ValueType.FLOAT32, value)


def boolean(value: bool) -> Field:
    """A truth value."""
    return Field(ValueType.BOOL, value)


def string(value: str) -> Field:
    """A UTF-8 string."""
    return Field(ValueType.STRING, value)


def strings(values: Iterable[str]) -> Field:
    """An array of UTF-8 strings."""
    return Field(ValueType.ARRAY, tuple(values), ValueType.STRING)


def numbers(values: Iterable[float] | NDArray[np.generic], element: ValueType) -> Field:
    """An array of numbers of type ``element`` (``BOOL`` included)."""
    dtype = {
        ValueType.UINT8: np.uint8,
        ValueType.INT8: np.int8,
        ValueType.UINT16: np.uint16,
        ValueType.INT16: np.int16,
        ValueType.UINT32: np.uint32,
        ValueType.INT32: np.int32,
        ValueType.FLOAT32: np.float32,
        ValueType.BOOL: np.bool_,
        ValueType.UINT64: np.uint64,
        ValueType.INT64: np.int64,
        ValueType.FLOAT64: np.float64,
    }[element]
    return Field(
        ValueType.ARRAY, np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype), element
    )
