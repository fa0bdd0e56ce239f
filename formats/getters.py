"""Typed access to metadata: a value of another type than asked for is an error that names the key, never a crash later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError
from .metadata import Field, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["get_flag", "get_integer", "get_number", "get_numbers", "get_string", "get_strings"]

Metadata = Mapping[str, Field]


def _fail(key: str, field: Field, wanted: str, path: Path | None) -> FormatError:
    element = "" if field.element is None else f" of {field.element.name}"
    return FormatError(f"the metadata key {key} should be {wanted}, but is {field.type.name}{element}", path=path)


def get_string(metadata: Metadata, key: str, path: Path | None = None) -> str | None:
    """Return the string at ``key``, None where it is absent; raises FormatError for any other type."""
    field = metadata.get(key)
    if field is None:
        return None
    if not isinstance(field.value, str):
        raise _fail(key, field, "a string", path)
    return field.value


def get_integer(metadata: Metadata, key: str, path: Path | None = None) -> int | None:
    """Return the integer (of any width) at ``key``, None where it is absent; raises FormatError for any other type."""
    field = metadata.get(key)
    if field is None:
        return None
    if isinstance(field.value, bool) or not isinstance(field.value, int):
        raise _fail(key, field, "an integer", path)
    return field.value


def get_number(metadata: Metadata, key: str, path: Path | None = None) -> float | None:
    """Return the integer or float at ``key``, None where it is absent; raises FormatError for any other type."""
    field = metadata.get(key)
    if field is None:
        return None
    if isinstance(field.value, bool) or not isinstance(field.value, int | float):
        raise _fail(key, field, "a number", path)
    return field.value


def get_flag(metadata: Metadata, key: str, path: Path | None = None) -> bool | None:
    """Return the truth value at ``key``, None where it is absent; raises FormatError for any other type."""
    field = metadata.get(key)
    if field is None:
        return None
    if not isinstance(field.value, bool):
        raise _fail(key, field, "true or false", path)
    return field.value


def get_strings(metadata: Metadata, key: str, path: Path | None = None) -> Sequence[str] | None:
    """Return the string array at ``key``, None where it is absent; raises FormatError for any other type."""
    field = metadata.get(key)
    if field is None:
        return None
    if field.element is not ValueType.STRING or isinstance(field.value, str | int | float | np.ndarray):
        raise _fail(key, field, "an array of strings", path)
    return field.value


def get_numbers(
    metadata: Metadata, key: str, elements: Sequence[ValueType], path: Path | None = None
) -> NDArray[np.generic] | None:
    """Return the 1-D array at ``key`` if its elements have one of the types ``elements``, None where it is absent.

    Raises FormatError for any other type.
    """
    field = metadata.get(key)
    if field is None:
        return None
    if field.element not in elements or not isinstance(field.value, np.ndarray):
        raise _fail(key, field, f"an array of {' or '.join(element.name for element in elements)}", path)
    return field.value
