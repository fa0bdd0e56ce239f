"""The directory of a zip archive as torch writes it: members that are stored, described once and alike, one after another.

Format: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5. Anything that would make two programs see two archives in one file is an error: bytes before,
between directory and end or behind the end, a name twice, a local header that differs from the directory, members that overlap, encryption and
compression.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

from ...errors import FormatError, TruncatedError
from ..positional import PositionalFile

__all__ = ["Member", "read_archive"]

MEMBERS_MAX = 1 << 18
DIRECTORY_MAX = 64 << 20  # bytes

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_DESCRIPTOR, _UTF_8 = 1 << 3, 1 << 11  # sizes follow the data; names are UTF-8


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: where its bytes start, and their number."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the directory says of a member."""

    name: bytes
    flags: int
    size: int
    crc: int
    header: int


def read_archive(file: PositionalFile) -> dict[str, Member]:
    """Return the members of an archive by name; raises FormatError or TruncatedError."""
    start, size, count = _directory(file)
    entries = _entries(file, start, size, count)
    entries.sort(key=lambda entry: entry.header)
    if entries and entries[0].header:
        _refuse(file, f"{entries[0].header} bytes come before the first member", 0)
    members: dict[str, Member] = {}
    end = 0
    for entry in entries:
        if entry.header < end:
            _refuse(file, f"the member {_shown(entry.name)} overlaps the one before it", entry.header)
        name = _name(file, entry)
        if name in members:
            _refuse(file, f"the member {_shown(entry.name)} is there twice", entry.header)
        offset = _data_offset(file, entry, start)
        members[name] = Member(name, offset, entry.size)
        end = offset + entry.size
    return members


def _refuse(file: PositionalFile, problem: str, offset: int) -> NoReturn:
    raise FormatError(
        f"the zip archive is not one that torch writes: {problem}",
        path=file.path,
        offset=offset,
        remedy="Download it again; if it stays so, do not trust it.",
    )


def _shown(name: bytes) -> str:
    text = ascii(name)[1:]
    return text if len(text) <= 200 else f"{text[:200]}…"


def _directory(file: PositionalFile) -> tuple[int, int, int]:
    """Return start, length and number of entries of the central directory."""
    if file.size < _END.size:
        raise TruncatedError(
            "the file is too short for a zip archive", path=file.path, offset=0, remedy="Download it again."
        )
    end = file.size - _END.size
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack(file.read(end, _END.size))
    if magic != b"PK\5\6" or comment:
        raise TruncatedError(
            "the zip archive does not end with its directory, so the file is cut short or something was added to it",
            path=file.path,
            offset=end,
            remedy="Download it again.",
        )
    values, limits = (disk, first_disk, here, count, size, start), (*[_MAX_16] * 4, *[_MAX_32] * 2)
    locator = end - _LOCATOR_64.size
    if locator >= _END_64.size and file.read(locator, 4) == b"PK\6\7":
        end, found = _directory_64(file, locator)
        if any(short not in (limit, value) for short, limit, value in zip(values, limits, found, strict=True)):
            _refuse(file, "its two records of the directory differ", end)
        values = found
    elif any(value == limit for value, limit in zip(values, limits, strict=True)):
        _refuse(file, "the record of the directory's place is missing", end)
    disk, first_disk, here, count, size, start = values
    if disk or first_disk or here != count:
        _refuse(file, "it claims to be a part of several", end)
    if count > MEMBERS_MAX or size > DIRECTORY_MAX:
        _refuse(file, f"its directory has {count} entries in {size} bytes, more than any checkpoint needs", end)
    if start + size != end:
        _refuse(file, f"the directory is said to be at bytes {start} to {start + size}, but ends at {end}", end)
    return start, size, count


def _directory_64(file: PositionalFile, locator: int) -> tuple[int, tuple[int, int, int, int, int, int]]:
    """Return the position of the long end record, and its disk numbers, counts, size and start of the directory."""
    _, disk, position, disks = _LOCATOR_64.unpack(file.read(locator, _LOCATOR_64.size))
    if disk or disks != 1 or position != locator - _END_64.size:
        _refuse(file, "the long record of the directory is not where it should be", locator)
    magic, length, _, _, disk, first, here, count, size, start = _END_64.unpack(file.read(position, _END_64.size))
    if magic != b"PK\6\6" or length != _END_64.size - 12:
        _refuse(file, "the long record of the directory is malformed", position)
    return position, (disk, first, here, count, size, start)


def _entries(file: PositionalFile, start: int, size: int, count: int) -> list[_Entry]:
    if count * _ENTRY.size > size:
        _refuse(file, f"its directory claims {count} entries in {size} bytes", start)
    data = file.read(start, size)
    entries = []
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > size:
            _refuse(file, "its directory ends in the middle of an entry", start + position)
        fields = _ENTRY.unpack_from(data, position)
        magic, _, _, flags, method, _, _, crc, packed, plain, name, extra, comment, disk, _, _, header = fields
        where = start + position
        if magic != b"PK\1\2":
            _refuse(file, "an entry of its directory does not start as one", where)
        position += _ENTRY.size
        text = data[position : position + name]
        tail = data[position + name : position + name + extra]
        position += name + extra + comment
        if position > size:
            _refuse(file, "its directory ends in the middle of an entry", where)
        if comment or disk:
            _refuse(file, f"the member {_shown(text)} has a comment or lies on another disk", where)
        _check_flags(file, text, flags, method, where)
        plain, packed, header = _long_values(file, tail, (plain, packed, header), text, where)
        if plain != packed:
            _refuse(file, f"the member {_shown(text)} has two sizes, {plain} and {packed}", where)
        entries.append(_Entry(text, flags, plain, crc, header))
    if position != size:
        _refuse(file, f"{size - position} bytes follow the last entry of its directory", start + position)
    return entries


def _check_flags(file: PositionalFile, name: bytes, flags: int, method: int, where: int) -> None:
    if flags & 1:
        _refuse(file, f"the member {_shown(name)} is encrypted", where)
    if flags & ~(_DESCRIPTOR | _UTF_8):
        _refuse(file, f"the member {_shown(name)} has the flags 0x{flags:04x}", where)
    if method:
        _refuse(file, f"the member {_shown(name)} is compressed (method {method})", where)


def _long_values(
    file: PositionalFile, extra: bytes, values: tuple[int, int, int], name: bytes, where: int
) -> tuple[int, int, int]:
    """Return size, packed size and header position, those at their limit replaced by the numbers of the zip64 extra field."""
    found = list(values)
    wanted = [index for index, value in enumerate(values) if value == _MAX_32]
    field = _extra_field(file, extra, 1, name, where)
    if field is None:
        if wanted:
            _refuse(file, f"the member {_shown(name)} lacks its long sizes", where)
        return values
    if len(field) != 8 * len(wanted):
        _refuse(file, f"the long sizes of the member {_shown(name)} are malformed", where)
    for place, index in enumerate(wanted):
        found[index] = int.from_bytes(field[8 * place : 8 * place + 8], "little")
    return found[0], found[1], found[2]


def _extra_field(file: PositionalFile, extra: bytes, wanted: int, name: bytes, where: int) -> bytes | None:
    found = None
    position = 0
    while position < len(extra):
        kind = int.from_bytes(extra[position : position + 2], "little")
        length = int.from_bytes(extra[position + 2 : position + 4], "little")
        position += 4 + length
        if position > len(extra) or (kind == wanted and found is not None):
            _refuse(file, f"the extra fields of the member {_shown(name)} are malformed", where)
        if kind == wanted:
            found = extra[position - length : position]
    return found


def _name(file: PositionalFile, entry: _Entry) -> str:
    try:
        return entry.name.decode("utf-8" if entry.flags & _UTF_8 else "ascii")
    except UnicodeDecodeError:
        _refuse(file, f"the name {_shown(entry.name)} is no text", entry.header)


def _data_offset(file: PositionalFile, entry: _Entry, directory: int) -> int:
    """Compare a member's local header with the directory; return where its data start."""
    shown = _shown(entry.name)
    if entry.header + _LOCAL.size > directory:
        _refuse(file, f"the header of the member {shown} is said to be at byte {entry.header}", directory)
    fields = _LOCAL.unpack(file.read(entry.header, _LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, plain, name, extra = fields
    offset: int = entry.header + _LOCAL.size + name + extra
    if magic != b"PK\3\4" or offset > directory:
        _refuse(file, f"the member {shown} has no header where the directory says", entry.header)
    rest = file.read(entry.header + _LOCAL.size, name + extra)
    if rest[:name] != entry.name or flags != entry.flags or method:
        _refuse(file, f"the header of the member {shown} differs from the directory", entry.header)
    if not (flags & _DESCRIPTOR and (crc, packed, plain) == (0, 0, 0)):  # torch leaves them zero: they follow the data
        if _MAX_32 in (packed, plain):
            field = _extra_field(file, rest[name:], 1, entry.name, entry.header) or b""
            if len(field) != 16 or (packed, plain) != (_MAX_32, _MAX_32):
                _refuse(file, f"the long sizes of the member {shown} are malformed", entry.header)
            plain, packed = int.from_bytes(field[:8], "little"), int.from_bytes(field[8:], "little")
        if (crc, packed, plain) != (entry.crc, entry.size, entry.size):
            _refuse(file, f"the header of the member {shown} gives another size or checksum", entry.header)
    if offset + entry.size > directory:
        _refuse(file, f"the member {shown} of {entry.size} bytes reaches into the directory", entry.header)
    return offset
