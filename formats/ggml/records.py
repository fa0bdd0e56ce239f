"""Walk the tensor records, which nothing counts or indexes: each follows the data of the one before, up to the end of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from struct import Struct

from ...errors import FormatError, QconvError, TruncatedError
from ..gguf.constants import padded
from ..positional import PositionalFile
from . import constants as c
from .header import Header
from .layouts import TYPE_NAMES, Reading, StoredType, readings

__all__ = ["Record", "Walk", "walk_records"]

_HEAD = Struct("<3I")
_LONGEST_RECORD = _HEAD.size + 2 * 4 + c.MAX_NAME_BYTES
_MOST_OUTSIDE, _MOST_PER_LAYER = 4, 10  # those of a Llama, and tables of rotary frequencies
_AGAIN = "Download or copy it again."
_NAME = re.compile(rb"[!-~]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor of a file.

    Attributes:
        name: as the file spells it.
        number: of its type.
        kind: how its rows are stored.
        shape: in NumPy order.
        offset: of its data in the file.
    """

    name: str
    number: int
    kind: StoredType
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Walk:
    """All records of a file, and the reading under which they end where the file does."""

    reading: Reading
    records: dict[str, Record]

    @classmethod
    def empty(cls, header: Header) -> Walk:
        """No records, for those who do not ask for tensors."""
        return cls(readings(header.container, header.version)[0], {})


def walk_records(file: PositionalFile, header: Header) -> Walk:
    """Return the records of ``file``.

    Where a version leaves the size of a type open, the reading that reaches the end of the file counts. Raises FormatError or
    TruncatedError, under the reading that got furthest.
    """
    furthest: QconvError | None = None
    for reading in readings(header.container, header.version):
        try:
            return Walk(reading, _walk(file, header, reading))
        except FormatError as error:
            if furthest is None or (error.offset or 0) > (furthest.offset or 0):
                furthest = error
    assert furthest is not None
    raise furthest


def _walk(file: PositionalFile, header: Header, reading: Reading) -> dict[str, Record]:
    records: dict[str, Record] = {}
    position = header.end
    most = _MOST_OUTSIDE + _MOST_PER_LAYER * header.numbers.layers
    while position < file.size:
        record = _read_record(file, header, reading, position)
        if record.name in records:
            raise FormatError("the file holds it twice", path=file.path, tensor=record.name, offset=position)
        if len(records) == most:
            raise FormatError(
                f"{header.numbers.layers} layers have no more than {most} tensors", path=file.path, offset=position
            )
        records[record.name] = record
        position = record.offset + _nbytes(record.kind, record.shape)
    return records


def _read_record(file: PositionalFile, header: Header, reading: Reading, position: int) -> Record:
    left = file.size - position
    if left < _HEAD.size:
        raise TruncatedError(
            f"{left} bytes follow the last tensor, too few for another", path=file.path, offset=position, remedy=_AGAIN
        )
    head = file.read(position, min(_LONGEST_RECORD, left))
    dimensions, length, number = _HEAD.unpack_from(head)
    if not 1 <= dimensions <= 2:
        raise FormatError(f"a tensor has {dimensions} dimensions, not 1 or 2", path=file.path, offset=position)
    if not 1 <= length <= c.MAX_NAME_BYTES:
        raise FormatError(
            f"a tensor's name has {length} bytes, not 1 to {c.MAX_NAME_BYTES}", path=file.path, offset=position + 4
        )
    start = _HEAD.size + 4 * dimensions
    if start + length > left:
        raise TruncatedError("the file ends inside a tensor's name", path=file.path, offset=file.size, remedy=_AGAIN)
    raw = head[start : start + length]
    if not _NAME.fullmatch(raw):
        raise FormatError(f"a tensor's name reads {raw[:40]!r}", path=file.path, offset=position + start)
    name = raw.decode("ascii")
    kind = _kind(header, reading, number, name, position + 8)
    shape = Struct(f"<{dimensions}I").unpack_from(head, _HEAD.size)[::-1]
    if min(shape) < 1 or shape[-1] % kind.weights:
        raise FormatError(
            f"its shape is {shape}; {kind.name} needs rows of whole blocks of {kind.weights}",
            path=file.path,
            tensor=name,
            offset=position + _HEAD.size,
        )
    if dimensions == 1 and kind.name != "F32":
        raise FormatError(
            f"a vector is stored as {kind.name}, not as F32", path=file.path, tensor=name, offset=position
        )
    offset = position + start + length
    if header.container == "ggjt":
        offset = padded(offset, c.ALIGNMENT)
    nbytes = _nbytes(kind, shape)
    if nbytes > file.size - offset:
        raise TruncatedError(
            f"its {nbytes} bytes from byte {offset} on reach beyond the file's {file.size}",
            path=file.path,
            tensor=name,
            offset=position,
            remedy=_AGAIN,
        )
    return Record(name, number, kind, shape, offset)


def _kind(header: Header, reading: Reading, number: int, name: str, offset: int) -> StoredType:
    kind = reading.types.get(number)
    if kind is None:
        known = f"{number} ({TYPE_NAMES[number]})" if number < len(TYPE_NAMES) else str(number)
        edition = f"{header.container} version {header.version}" if header.version else header.container
        raise FormatError(f"{edition} has no tensors of type {known}", path=header.path, tensor=name, offset=offset)
    return kind


def _nbytes(kind: StoredType, shape: tuple[int, ...]) -> int:
    return prod(shape[:-1]) * kind.row_bytes(shape[-1])
