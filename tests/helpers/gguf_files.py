"""GGUF files put together by hand, sound or hostile, without qconv's own writer.

Every count, length and offset can be overridden, so that a file can lie about any of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from qconv_encodings import ENCODINGS

from qconv.formats.base import Layout, Model, OpenContext
from qconv.formats.getters import get_strings

CONTEXT = OpenContext(encodings=ENCODINGS, architectures={})

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
CODES = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "B",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}


@dataclass(frozen=True)
class Style:
    """Number layout: ``order`` ``<`` or ``>``, ``wide`` lengths of 8 bytes (4 in version 1), NUL behind every string."""

    order: str = "<"
    wide: bool = True
    nul: bool = False

    def number(self, code: str, value: float) -> bytes:
        return struct.pack(self.order + code, value)

    def count(self, value: int) -> bytes:
        return self.number("Q" if self.wide else "I", value)

    def text(self, value: bytes | str, length: int | None = None) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        data += b"\0" if self.nul else b""
        return self.count(len(data) if length is None else length) + data


PLAIN = Style()


def scalar(kind: int, value: float | str | bytes, style: Style = PLAIN) -> bytes:
    """Type and value of a metadata entry."""
    if isinstance(value, str | bytes):
        return style.number("I", kind) + style.text(value)
    return style.number("I", kind) + style.number(CODES[kind], value)


def array(kind: int, values: Sequence[float | str | bytes], count: int | None = None, style: Style = PLAIN) -> bytes:
    """Type and value of an array entry; ``count`` is what the file claims."""
    head = style.number("I", ARRAY) + style.number("I", kind) + style.count(len(values) if count is None else count)
    return head + b"".join(
        style.text(v) if isinstance(v, str | bytes) else style.number(CODES[kind], v) for v in values
    )


@dataclass(frozen=True)
class Record:
    """One tensor record; ``extents`` in file order (the row first), ``offset`` None to follow the one before."""

    name: str | bytes
    extents: tuple[int, ...] = (4,)
    kind: int = 0
    data: bytes = bytes(16)
    offset: int | None = None
    dimensions: int | None = None


@dataclass
class Craft:
    """A file to be: ``build()`` returns its bytes.

    ``entries`` hold keys with the bytes of their values (:func:`scalar`, :func:`array`).
    """

    entries: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    version: int = 3
    style: Style = PLAIN
    alignment: int = 32
    magic: bytes = b"GGUF"
    tensor_count: int | None = None
    key_count: int | None = None

    def header(self) -> bytes:
        """Everything before the data section, without padding."""
        style = self.style
        parts = [self.magic, style.number("I", self.version)]
        parts.append(style.count(len(self.records) if self.tensor_count is None else self.tensor_count))
        parts.append(style.count(len(self.entries) if self.key_count is None else self.key_count))
        for key, value in self.entries:
            parts += [style.text(key), value]
        offset = 0
        for record in self.records:
            dimensions = len(record.extents) if record.dimensions is None else record.dimensions
            parts += [style.text(record.name), style.number("I", dimensions)]
            parts += [style.count(extent) for extent in record.extents]
            parts += [
                style.number("I", record.kind),
                style.number("Q", offset if record.offset is None else record.offset),
            ]
            offset += -(-len(record.data) // self.alignment) * self.alignment
        return b"".join(parts)

    def build(self) -> bytes:
        """The whole file, padded to the alignment after the header and after each tensor."""
        out = bytearray(self.header())
        for data in (b"", *(record.data for record in self.records)):
            out += data
            out += bytes(-len(out) % self.alignment)
        return bytes(out)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(self.build())
        return path


def texts(model: Model, key: str) -> Sequence[str]:
    """The string array at ``key``."""
    found = get_strings(model.metadata, key)
    assert found is not None
    return found


def write_layout(layout: Layout, data: dict[str, bytes]) -> list[Path]:
    """Write every part of ``layout`` with ``data`` by tensor name; returns the paths."""
    digests = {name: sha256(content).hexdigest() for name, content in data.items()}
    for part in layout.parts:
        content = bytearray(part.size)
        header = part.header(digests)
        for offset, record in ((0, header), *part.records):
            content[offset : offset + len(record)] = record
        for placement in part.placements:
            raw = data[placement.tensor.name]
            assert len(raw) == placement.tensor.nbytes
            content[placement.offset : placement.offset + len(raw)] = raw
        part.path.write_bytes(content)
    return [part.path for part in layout.parts]
