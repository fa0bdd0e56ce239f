"""GGUF version 3, little-endian: metadata and tensor records to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from struct import error as StructError

import numpy as np

from ...errors import OutputError
from ..base import Placement
from ..metadata import Field, ValueType
from . import constants as c
from .strings import LazyStrings, encode_text

__all__ = ["serialize_field", "serialize_preamble", "serialize_record"]

_U32 = Struct("<I")
_U64 = Struct("<Q")


def _text(text: str) -> bytes:
    data = encode_text(text)
    return _U64.pack(len(data)) + data


def serialize_preamble(tensors: int, keys: int) -> bytes:
    """Return magic, version and the two counts."""
    return c.MAGIC + _U32.pack(c.WRITTEN_VERSION) + _U64.pack(tensors) + _U64.pack(keys)


def serialize_field(key: str, field: Field) -> bytes:
    """Return one key with its type and value; raises OutputError for a value that its type cannot hold."""
    try:
        return _text(key) + _U32.pack(field.type) + _value(field)
    except (StructError, TypeError, ValueError, OverflowError) as error:
        kind = field.type.name if field.element is None else f"an array of {field.element.name}"
        raise OutputError(f"the value of the metadata key {key} cannot be stored as {kind}: {error}") from error


def serialize_record(placement: Placement, data_start: int) -> bytes:
    """Return one tensor record; its offset counts from ``data_start``. Raises OutputError for what GGUF cannot hold."""
    tensor = placement.tensor
    name = encode_text(tensor.name)
    if not name or len(name) > c.LONGEST_WRITTEN_NAME:
        raise OutputError(
            f"its name has {len(name)} bytes; llama.cpp accepts 1 to {c.LONGEST_WRITTEN_NAME}", tensor=tensor.name
        )
    shape = tensor.shape or (1,)
    if len(shape) > c.MAX_DIMENSIONS or min(shape) < 1:
        raise OutputError(f"GGUF cannot hold the shape {shape}", tensor=tensor.name)
    if tensor.encoding.type_id is None:
        raise OutputError(f"GGUF has no type for {tensor.encoding.name}", tensor=tensor.name)
    return b"".join(
        (
            _U64.pack(len(name)),
            name,
            _U32.pack(len(shape)),
            *(_U64.pack(extent) for extent in reversed(shape)),
            _U32.pack(tensor.encoding.type_id),
            _U64.pack(placement.offset - data_start),
        )
    )


def _value(field: Field) -> bytes:
    value = field.value
    if field.type is not ValueType.ARRAY:
        return _scalar(field.type, value)
    if field.element is None or field.element is ValueType.ARRAY or isinstance(value, str | int | float):
        raise ValueError("an array needs an element type and a sequence")
    return _U32.pack(field.element) + _U64.pack(len(value)) + _elements(field.element, value)


def _scalar(kind: ValueType, value: object) -> bytes:
    if kind is ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no string")
        return _text(value)
    if kind is ValueType.BOOL and not isinstance(value, bool):
        raise TypeError(f"{value!r} is no truth value")
    return Struct("<" + c.SCALAR_CODES[kind]).pack(value)


def _elements(kind: ValueType, values: Sequence[str] | np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    if kind is ValueType.STRING:
        stored = values.version_3_bytes() if isinstance(values, LazyStrings) else None
        return b"".join(_texts(values)) if stored is None else stored
    numbers = np.asarray(values)
    stored_type = np.dtype("<" + c.DTYPES[kind])
    if numbers.ndim != 1 or not (len(numbers) == 0 or np.can_cast(numbers.dtype, stored_type, "same_kind")):
        raise TypeError(f"{numbers.dtype} {numbers.shape} is no 1-D array of such numbers")
    converted = numbers.astype(stored_type)
    if stored_type.kind != "f" and not np.array_equal(converted, numbers):
        raise OverflowError("a number is out of range")
    return converted.tobytes()


def _texts(values: Iterable[object]) -> Iterable[bytes]:
    pack = _U64.pack
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no string")
        data = encode_text(value)
        yield pack(len(data))
        yield data
