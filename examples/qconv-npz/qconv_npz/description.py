"""``qconv.json``: metadata with their types, and each tensor's shape and encoding, as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconv.errors import FormatError
from qconv.formats.base import OutputTensor
from qconv.formats.metadata import Field, ValueType

__all__ = ["DESCRIPTION", "Described", "from_json", "to_json"]

DESCRIPTION = "qconv.json"
_VERSION = 1
_DTYPES: dict[ValueType, str] = {
    ValueType.UINT8: "u1",
    ValueType.INT8: "i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT32: "<f4",
    ValueType.FLOAT64: "<f8",
    ValueType.BOOL: "?",
}


@dataclass(frozen=True)
class Described:
    """What ``qconv.json`` says: metadata, and shape and encoding name of each tensor."""

    metadata: dict[str, Field]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def to_json(metadata: Mapping[str, Field], tensors: Sequence[OutputTensor]) -> bytes:
    """Return the text for an archive."""
    described = {
        "qconv_npz": _VERSION,
        "metadata": {key: _field(value) for key, value in metadata.items()},
        "tensors": {it.name: {"shape": it.shape, "encoding": it.encoding.name} for it in tensors},
    }
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()


def _field(field: Field) -> list[Any]:
    if field.element is None:
        return [field.type.name, field.value]
    values = field.value.tolist() if isinstance(field.value, np.ndarray) else list(field.value)  # type: ignore[arg-type] # an array's value
    return [field.type.name, field.element.name, values]


def from_json(data: bytes) -> Described:
    """Return what the text of an archive says; raises FormatError (the caller knows the path)."""
    try:
        described = json.loads(data)
        if described["qconv_npz"] != _VERSION:
            raise ValueError(f"version {described['qconv_npz']}")
        return Described(
            {str(key): _parse_field(value) for key, value in described["metadata"].items()},
            {
                str(name): (tuple(int(length) for length in it["shape"]), str(it["encoding"]))
                for name, it in described["tensors"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{DESCRIPTION} cannot be understood ({error})") from error


def _parse_field(value: list[Any]) -> Field:
    kind = ValueType[value[0]]
    if kind is not ValueType.ARRAY:
        scalar = value[1]
        wanted = {ValueType.STRING: str, ValueType.BOOL: bool}.get(kind, (int, float))
        if not isinstance(scalar, str | bool | int | float) or not isinstance(scalar, wanted):
            raise TypeError(f"{scalar!r} is no {kind.name}")
        return Field(kind, scalar)
    element = ValueType[value[1]]
    if element is ValueType.STRING:
        return Field(kind, [str(item) for item in value[2]], element)
    return Field(kind, np.array(value[2], _DTYPES[element]), element)
