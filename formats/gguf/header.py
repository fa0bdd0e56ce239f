"""Parse the header of one GGUF file: metadata, tensor records, and where the data start.

Versions 1 to 3, little- and big-endian. Every field is checked as it is read: lengths against the bytes that remain, counts against named
caps, keys and names for uniqueness, offsets for alignment, overlap and the end of the file. Nothing of the tensors' data is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...errors import FormatError, TruncatedError
from ...quantizers.base import Encoding
from ..metadata import Field, ValueType
from . import constants as c
from .cursor import Cursor, HeaderSource
from .strings import decode_text

__all__ = ["Header", "TensorRecord", "parse_header"]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor as the header describes it.

    Attributes:
        name: name in the file.
        shape: NumPy order, the last axis being the row.
        encoding: how its weights are held.
        offset: position of its first byte, from the start of the file.
        nbytes: bytes of all rows.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that a GGUF file says before its data.

    Attributes:
        path: the file.
        version: 1, 2 or 3.
        byte_order: ``<`` or ``>``, of numbers in the header and in the data.
        alignment: of the data section and of each tensor, in bytes.
        metadata: keys to values in file order.
        value_offsets: position of each key's value, in bytes from the start of the file.
        tensors: records in file order.
        data_start: where the data section starts; may lie behind the end of a file without tensors.
        size: bytes of the file.
    """

    path: Path
    version: int
    byte_order: str
    alignment: int
    metadata: Mapping[str, Field]
    value_offsets: Mapping[str, int]
    tensors: tuple[TensorRecord, ...]
    data_start: int
    size: int


def parse_header(file: HeaderSource, encodings: Mapping[str, Encoding]) -> Header:
    """Read the header of ``file``; ``encodings`` are those that its tensors may have.

    Raises FormatError, or TruncatedError where the file ends before what it announces.
    """
    cursor = Cursor(file)
    version, order = _read_version(cursor)
    cursor.set_layout(version, order)
    # The least that a tensor record (a name, no dimensions) and a key (one letter, one byte of value) take.
    width = 4 if version == 1 else 8
    tensor_count = cursor.length("the number of tensors", c.MAX_TENSORS, width + 17)
    key_count = cursor.length("the number of metadata keys", c.MAX_KEYS, width + 6)
    metadata: dict[str, Field] = {}
    value_offsets: dict[str, int] = {}
    for _ in range(key_count):
        start = cursor.position
        key = cursor.name("a metadata key", c.MAX_KEY_BYTES)
        if key in metadata:
            cursor.position = start
            raise cursor.fail(f"the key {key} occurs twice")
        kind = _value_type(cursor, f"the type of {key}")
        value_offsets[key] = cursor.position
        metadata[key] = _read_value(cursor, key, kind)
    alignment = _alignment(metadata, file.path)
    types = {encoding.type_id: encoding for encoding in encodings.values() if encoding.type_id is not None}
    unplaced = _read_records(cursor, tensor_count, types)
    data_start = c.padded(cursor.position, alignment)
    tensors = tuple(
        TensorRecord(name, shape, encoding, data_start + offset, encoding.nbytes(shape))
        for name, shape, encoding, offset in unplaced
    )
    _check_placement(tensors, file, alignment, data_start)
    return Header(file.path, version, order, alignment, metadata, value_offsets, tensors, data_start, file.size)


def _read_version(cursor: Cursor) -> tuple[int, str]:
    magic = cursor.take(min(len(c.MAGIC), cursor.remaining), "the magic number")
    if magic == c.MAGIC_DURING_EDIT:
        cursor.position = 0
        raise cursor.fail(
            "a change of its metadata was interrupted",
            remedy="Run qconv metadata show on it: that finishes the change, with what lies beside it.",
        )
    if magic != c.MAGIC:
        cursor.position = 0
        raise cursor.fail("this is no GGUF file: it does not start with the letters GGUF")
    version = cursor.integer("I", "the version")
    order = "<"
    if version & 0xFFFF == 0:  # a small number in the other byte order
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        order = ">"
    if not 1 <= version <= c.WRITTEN_VERSION or (order == ">" and version < 3):
        cursor.position = len(c.MAGIC)
        raise cursor.fail(
            f"{'big-endian ' if order == '>' else ''}GGUF version {version} is unknown; qconv reads 1, 2 and 3, and big-endian 3",
            remedy="A newer qconv may read it.",
        )
    return version, order


def _value_type(cursor: Cursor, what: str) -> ValueType:
    number = cursor.integer("I", what)
    try:
        return ValueType(number)
    except ValueError:
        cursor.position -= 4
        raise cursor.fail(f"{what} is {number}, which is no GGUF value type") from None


def _read_value(cursor: Cursor, key: str, kind: ValueType) -> Field:
    what = f"the value of {key}"
    if kind is ValueType.STRING:
        return Field(kind, decode_text(cursor.string(what, c.MAX_STRING_BYTES)))
    if kind is ValueType.BOOL:
        return Field(kind, bool(_truth(cursor, cursor.integer("B", what), what)))
    if kind is not ValueType.ARRAY:
        return Field(kind, cursor.number(c.SCALAR_CODES[kind], what))
    element = _value_type(cursor, f"the element type of {key}")
    if element is ValueType.ARRAY:
        raise cursor.fail(f"{key} is an array of arrays, which no model uses")
    counted = f"the length of the array {key}"
    if element is ValueType.STRING:
        count = cursor.length(counted, c.MAX_ARRAY_LENGTH, cursor.length_width)
        return Field(kind, cursor.strings(count, f"the array {key}", c.MAX_STRING_BYTES), element)
    dtype = c.DTYPES[element]
    count = cursor.length(counted, c.MAX_ARRAY_LENGTH, int(dtype[1:]))
    values = cursor.numbers(count, dtype, f"the array {key}")
    if element is ValueType.BOOL:
        if count:
            _truth(cursor, int(values.max()), what)
        values = values.astype(bool)
    return Field(kind, values, element)


def _truth(cursor: Cursor, number: int, what: str) -> int:
    if number > 1:
        raise cursor.fail(f"{what} should be true or false, but holds a byte {number}")
    return number


def _alignment(metadata: Mapping[str, Field], path: Path) -> int:
    found = metadata.get(c.ALIGNMENT_KEY)
    if found is None:
        return c.DEFAULT_ALIGNMENT
    value = found.value
    if found.type is not ValueType.UINT32 or not isinstance(value, int):
        raise FormatError(f"{c.ALIGNMENT_KEY} has type {found.type.name}, not UINT32", path=path)
    if not 0 < value <= c.MAX_ALIGNMENT or value & (value - 1):
        raise FormatError(f"{c.ALIGNMENT_KEY} is {value}, no power of two up to {c.MAX_ALIGNMENT}", path=path)
    return value


Unplaced = tuple[str, tuple[int, ...], Encoding, int]


def _read_records(cursor: Cursor, count: int, types: Mapping[int, Encoding]) -> list[Unplaced]:
    records: list[Unplaced] = []
    names: set[str] = set()
    for _ in range(count):
        name = cursor.name("a tensor name", c.MAX_NAME_BYTES)
        if name in names:
            raise cursor.fail("two tensors have this name", name)
        names.add(name)
        dimensions = cursor.integer("I", "the number of dimensions")
        if dimensions > c.MAX_DIMENSIONS:
            raise cursor.fail(f"it has {dimensions} dimensions, more than {c.MAX_DIMENSIONS}", name)
        extents = [cursor.integer(cursor.length_code, "a dimension") for _ in range(dimensions)]
        if 0 in extents:
            raise cursor.fail(f"a dimension is zero: {extents}", name)
        if prod(extents) > c.MAX_ELEMENTS:
            raise cursor.fail(f"the product of its dimensions {extents} overflows 63 bits", name)
        shape = tuple(reversed(extents))
        encoding = _encoding(cursor, cursor.integer("I", "the type of a tensor"), types, name)
        if not encoding.fits(shape[-1] if shape else 1):
            raise cursor.fail(
                f"{encoding.name} holds blocks of {encoding.block_size} weights, but rows of {extents[:1]}", name
            )
        records.append((name, shape, encoding, cursor.integer("Q", "the offset of a tensor")))
    return records


def _encoding(cursor: Cursor, number: int, types: Mapping[int, Encoding], name: str) -> Encoding:
    found = types.get(number)
    if found is None:
        removed = c.REMOVED_TYPES.get(number)
        raise cursor.fail(
            f"tensor type {number} is {'unknown' if removed is None else f'{removed}, which ggml has given up'}",
            name,
            "A newer qconv or a plugin may know it." if removed is None else "Convert the model again from its source.",
        )
    return found


def _check_placement(tensors: tuple[TensorRecord, ...], file: HeaderSource, alignment: int, data_start: int) -> None:
    """Refuse tensors that are misaligned, overlap, or reach beyond the end of the file."""
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        stop = tensor.offset + tensor.nbytes
        if tensor.offset % alignment:
            raise FormatError(
                f"its offset is no multiple of the alignment {alignment}",
                path=file.path,
                tensor=tensor.name,
                offset=tensor.offset,
            )
        if stop > file.size:
            raise TruncatedError(
                f"its {tensor.nbytes} bytes reach beyond the end of the file at byte {file.size}",
                path=file.path,
                tensor=tensor.name,
                offset=tensor.offset,
                remedy="Download or copy it again.",
            )
        if tensor.offset < end:
            raise FormatError(
                "it overlaps the tensor before it", path=file.path, tensor=tensor.name, offset=tensor.offset
            )
        end = stop
