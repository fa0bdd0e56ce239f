"""Other metadata for a GGUF file whose tensors stay as they are, and a way to write them over that no crash can spoil.

A header fits in place where the tensor data can begin at the same byte as before. One that has become shorter is filled up with a key without
meaning (:data:`.constants.PAD_KEY`).

A header is seldom so small that a disk writes it at once, so :func:`write_in_place` keeps a journal, ``NAME.qconv-header``:

1. The journal, which holds the new header, is written and made durable under its final name.
2. The first four bytes of the file become :data:`.constants.MAGIC_DURING_EDIT`, which no reader accepts.
3. The rest of the new header is written and made durable.
4. The first four bytes become ``GGUF`` again.
5. The journal is removed.

A kill or a power cut before the second step leaves the old header, after the fourth the new one. In between no program can read the
file, and :func:`finish_edit` completes it from the journal. At no moment can a mixture of the two headers be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from ...errors import FormatError, UsageError
from ...quantizers.base import Encoding
from ..base import OutputTensor, Placement
from ..metadata import Field, ValueType, string, strings
from ..whole_file import sync_folder, whole_file
from . import constants as c
from .checks import check_metadata
from .header import Header, parse_header
from .serialize import serialize_field, serialize_preamble, serialize_record
from .verify import read_digests

__all__ = ["edit_journal", "finish_edit", "new_header", "write_in_place"]

_BLANK: Final = "0" * c.HEX_DIGITS
_PAD_OVERHEAD: Final = len(serialize_field(c.PAD_KEY, string("")))


def new_header(old: Header, metadata: Mapping[str, Field], encodings: Mapping[str, Encoding]) -> bytes:
    """Return the bytes that go before the tensor data of ``old``, with other metadata.

    Digests of tensors are kept where the file has them, and that of the header is made anew; digest keys in ``metadata`` do not count. Where the
    bytes are as many as before, the data can stay where they are.

    Raises UsageError for an alignment that the tensors have not, OutputError for a value that GGUF cannot hold, FormatError for what no reader
    would accept.
    """
    fields = {key: field for key, field in metadata.items() if not key.startswith(c.DIGEST_PREFIX) and key != c.PAD_KEY}
    alignment = _alignment(fields, old)
    made, digest_at = _serialize(old, fields)
    room = old.data_start - len(made)
    if alignment == old.alignment and c.padded(len(made), alignment) < old.data_start and room >= _PAD_OVERHEAD:
        made, digest_at = _serialize(old, {**fields, c.PAD_KEY: string(" " * (room - _PAD_OVERHEAD))})
    header = made.ljust(c.padded(len(made), alignment), b"\0")
    if digest_at is not None:
        header[digest_at : digest_at + c.HEX_DIGITS] = sha256(header).hexdigest().encode("ascii")
    future = _FutureFile(old.path, len(header) + max(0, old.size - old.data_start), bytes(header))
    check_metadata(parse_header(future, encodings).metadata, old.path)
    return future.header


@dataclass(frozen=True, slots=True)
class _FutureFile:
    """A file as it will be, of which only the header can be read."""

    path: Path
    size: int
    header: bytes

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the header; those behind it are zero."""
        return self.header[offset : offset + count].ljust(count, b"\0")


def _alignment(fields: Mapping[str, Field], old: Header) -> int:
    field = fields.get(c.ALIGNMENT_KEY)
    value = c.DEFAULT_ALIGNMENT if field is None else field.value
    if field is not None and field.type is not ValueType.UINT32:
        raise UsageError(f"{c.ALIGNMENT_KEY} has type UINT32")
    if not isinstance(value, int) or not 0 < value <= c.MAX_ALIGNMENT or value & (value - 1):
        raise UsageError(f"{c.ALIGNMENT_KEY} is a power of two up to {c.MAX_ALIGNMENT}, not {value}")
    for tensor in old.tensors:
        if (tensor.offset - old.data_start) % value:
            raise UsageError(
                f"tensor {tensor.name} is not aligned to {value} bytes",
                remedy=f"Have the tensors moved: qconv quantize IN OUT --type copy --alignment {value}.",
            )
    return value


def _serialize(old: Header, fields: Mapping[str, Field]) -> tuple[bytearray, int | None]:
    """Return the header without padding behind it, and the position of the 64 characters that are to be its digest."""
    digests = read_digests(old)
    written = dict(fields)
    if digests is not None:
        written[c.DIGEST_ALGORITHM_KEY] = string(c.DIGEST_ALGORITHM)
        written[c.DIGEST_TENSORS_KEY] = strings(digests.tensors)
        written[c.DIGEST_HEADER_KEY] = string(_BLANK)
    header = bytearray(serialize_preamble(len(old.tensors), len(written)))
    for key, field in written.items():
        header += serialize_field(key, field)
    digest_at = None if digests is None else len(header) - c.HEX_DIGITS
    for tensor in old.tensors:
        placement = Placement(OutputTensor(tensor.name, tensor.shape, tensor.encoding), tensor.offset)
        header += serialize_record(placement, old.data_start)
    return header, digest_at


def edit_journal(path: Path) -> Path:
    """Return the name of the journal beside a file whose header is being written over."""
    return path.with_name(path.name + ".qconv-header")


def write_in_place(path: Path, header: bytes) -> None:
    """Write ``header`` over the header of ``path``, which is as long, as the module describes; raises OSError as the system does."""
    journal = edit_journal(path)
    with path.open("r+b", buffering=0) as file:
        about = {"size": os.fstat(file.fileno()).st_size, "sha256": sha256(header).hexdigest()}
        with whole_file(journal) as written:
            written.write(json.dumps(about).encode() + b"\n" + header)
        try:
            _write_over(file.fileno(), header)
        except KeyboardInterrupt:  # it takes no time, so finish it
            _write_over(file.fileno(), header)
            _remove(journal)
            raise
    _remove(journal)


def finish_edit(path: Path) -> bool:
    """Finish what a kill interrupted in :func:`write_in_place`; return whether there was anything to finish.

    Raises FormatError where the file needs a journal that is missing or belongs to another file.
    """
    journal = edit_journal(path)
    if not journal.exists():
        return False
    line, _, header = journal.read_bytes().partition(b"\n")
    with path.open("r+b", buffering=0) as file:
        interrupted = file.read(len(c.MAGIC)) == c.MAGIC_DURING_EDIT
        if interrupted:
            about = _about(line, journal)
            if os.fstat(file.fileno()).st_size != about.get("size") or sha256(header).hexdigest() != about.get(
                "sha256"
            ):
                raise FormatError(
                    f"this is not the journal of {path.name}", path=journal, remedy=f"Download {path.name} again."
                )
            _write_over(file.fileno(), header)
    _remove(journal)  # without interruption: the change had not begun, or was complete
    return interrupted


def _about(line: bytes, journal: Path) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FormatError("this is no journal of a change of metadata", path=journal, remedy="Delete it.")
    return found


def _write_over(descriptor: int, header: bytes) -> None:
    """Write the header so that what is on disk at any moment is the old one, the new one, or none."""
    _write_at(descriptor, c.MAGIC_DURING_EDIT, 0)
    os.fsync(descriptor)
    _write_at(descriptor, header[len(c.MAGIC) :], len(c.MAGIC))
    os.fsync(descriptor)
    _write_at(descriptor, header[: len(c.MAGIC)], 0)
    os.fsync(descriptor)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:])


def _remove(journal: Path) -> None:
    journal.unlink()
    sync_folder(journal.parent)
