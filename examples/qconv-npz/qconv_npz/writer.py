"""Lay out an archive: local headers and array headers between the tensors, the directory at the end.

ZIP wants a CRC-32 of every member in front of it and again in the directory. No row has been read when a layout is made, so both are left to
the part's ``finish``, which is given what was written.
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from qconv.errors import UsageError
from qconv.formats.base import Layout, OutputTensor, Part, Placement, WriteOptions
from qconv.formats.metadata import Field

from .description import DESCRIPTION, to_json

__all__ = ["lay_out"]

# The 64-bit form throughout, whatever the size: one form is easier to check than two.
_LOCAL = struct.Struct("<4sHHHHHIIIHH" + "HHQQ")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII" + "HHQQQ")
_END = struct.Struct("<4sQHHIIQQQQ" + "4sIQI" + "4sHHHHIIH")
_NEEDED = 45  # version 4.5 of the specification brought the 64-bit form
_ANY, _MANY = 0xFFFFFFFF, 0xFFFF  # "look into the 64-bit field"
_DATE = 1 << 5 | 1  # the first of January 1980: an archive is a function of its contents
_PIECE = 1 << 22
_FLOATS = {"F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class _Member:
    """A member of the archive: its local header at ``start``, its ``size`` bytes at ``data``."""

    name: bytes
    start: int
    size: int

    @property
    def data(self) -> int:
        return self.start + _LOCAL.size + len(self.name)

    def local(self, crc: int) -> bytes:
        fields = (b"PK\3\4", _NEEDED, 0, 0, 0, _DATE, crc, _ANY, _ANY, len(self.name), 20)
        # the name stands between the fixed fields and the 64-bit extra field
        packed = _LOCAL.pack(*fields, 1, 16, self.size, self.size)
        return packed[:30] + self.name + packed[30:]

    def central(self, crc: int) -> bytes:
        fields = (b"PK\1\2", _NEEDED, _NEEDED, 0, 0, 0, _DATE, crc, _ANY, _ANY, len(self.name), 28, 0, 0, 0, 0, _ANY)
        packed = _CENTRAL.pack(*fields, 1, 24, self.size, self.size, self.start)
        return packed[:46] + self.name + packed[46:]


def lay_out(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Return the layout of an archive; raises UsageError for parts, which an archive does not have."""
    if options.split_max_size or options.split_max_tensors or any((options.part_of or {}).values()):
        raise UsageError("an archive cannot be split", path=path)
    text = to_json(metadata, tensors)
    members = [_Member(DESCRIPTION.encode(), 0, len(text))]
    records: list[tuple[int, bytes]] = []
    placements: list[Placement] = []
    for tensor in tensors:
        header = _array_header(tensor)
        previous = members[-1]
        member = _Member(f"{tensor.name}.npy".encode(), previous.data + previous.size, len(header) + tensor.nbytes)
        members.append(member)
        records.append((member.data, header))
        placements.append(Placement(tensor, member.data + len(header)))
    directory = members[-1].data + members[-1].size
    size = directory + len(_directory(members, [0] * len(members), directory))

    def finish(read: Callable[[int, int], bytes]) -> list[tuple[int, bytes]]:
        crcs = [zlib.crc32(text), *(_crc(read, member) for member in members[1:])]
        locals_ = [(member.start, member.local(crc)) for member, crc in zip(members, crcs, strict=True)]
        return [*locals_, (directory, _directory(members, crcs, directory))]

    blank = members[0].local(0) + text
    return Layout((Part(path, size, tuple(placements), lambda digests: blank, tuple(records), finish),))


def _array_header(tensor: OutputTensor) -> bytes:
    """Return the header of the ``.npy`` file that a member is."""
    name = tensor.encoding.name
    columns = tensor.shape[-1] if tensor.shape else 1
    width = tensor.encoding.row_bytes(columns)
    shape = tensor.shape if name in _FLOATS else (tensor.nbytes // width if width else 0, width)
    out = BytesIO()
    description = {"descr": _FLOATS.get(name, "|u1"), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, description)
    return out.getvalue()


def _crc(read: Callable[[int, int], bytes], member: _Member) -> int:
    crc = 0
    for start in range(0, member.size, _PIECE):
        crc = zlib.crc32(read(member.data + start, min(_PIECE, member.size - start)), crc)
    return crc


def _directory(members: Sequence[_Member], crcs: Sequence[int], start: int) -> bytes:
    entries = b"".join(member.central(crc) for member, crc in zip(members, crcs, strict=True))
    count, end = len(members), start + len(entries)
    return entries + _END.pack(
        *(b"PK\6\6", 44, _NEEDED, _NEEDED, 0, 0, count, count, len(entries), start),
        *(b"PK\6\7", 0, end, 1),
        *(b"PK\5\6", 0, 0, _MANY, _MANY, _ANY, _ANY, 0),
    )
