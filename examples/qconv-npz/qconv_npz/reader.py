"""Read an archive: arrays that lie uncompressed in it, by position, as any thread asks for rows."""

import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np

from qconv.errors import FormatError, QconvError, TruncatedError, UnknownFormatError
from qconv.formats.base import Model, OpenContext, Tensor
from qconv.formats.positional import ContiguousRows, PositionalFile
from qconv.quantizers.base import Encoding

from .description import DESCRIPTION, from_json

__all__ = ["detect", "open_archive"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_NPY_HEADER_MAX = 4096
_FLOATS = {"F32": "<f4", "F16": "<f2"}


def detect(path: Path) -> bool:
    """Whether ``path`` is an archive whose first member is ``qconv.json``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_LOCAL_HEADER.size + len(DESCRIPTION))
    return start[:4] == b"PK\3\4" and start[_LOCAL_HEADER.size :] == DESCRIPTION.encode()


def open_archive(path: Path, context: OpenContext) -> Model:
    """Open an archive; raises FormatError, TruncatedError or UnknownFormatError where it is none or is damaged."""
    file = PositionalFile(path)
    try:
        members = _members(path, file)
        if DESCRIPTION not in members:
            raise UnknownFormatError(
                f"no {DESCRIPTION} in this archive", path=path, remedy="Only archives that qconv wrote have metadata."
            )
        described = from_json(_read_member(file, members[DESCRIPTION]))
        tensors = {
            name: _tensor(file, name, shape, encoding, members, context.encodings)
            for name, (shape, encoding) in described.tensors.items()
        }
        return Model(path, "npz", described.metadata, tensors, files=(path,), close=file.close)
    except QconvError as error:
        file.close()
        error.path = error.path or path
        raise
    except BaseException:
        file.close()
        raise


def _members(path: Path, file: PositionalFile) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, struct.error) as error:
        raise FormatError(f"this is no whole ZIP archive ({error})", path=path, remedy="Copy it again.") from error
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise FormatError(
                f"{member.filename} is compressed or encrypted, and rows of it cannot be read one by one",
                path=path,
                remedy="Save it with numpy.savez instead of numpy.savez_compressed.",
            )
        if not 0 <= member.header_offset <= member.header_offset + member.file_size <= file.size:
            raise TruncatedError(f"{member.filename} is said to lie beyond the end", path=path)
    return members


def _data_offset(file: PositionalFile, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes start: after its local header, whose length only it knows."""
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(member.header_offset, _LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise FormatError(f"{member.filename} does not start with a local header", offset=member.header_offset)
    return member.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def _read_member(file: PositionalFile, member: zipfile.ZipInfo) -> bytes:
    return file.read(_data_offset(file, member), member.file_size)


def _tensor(
    file: PositionalFile,
    name: str,
    shape: tuple[int, ...],
    encoding_name: str,
    members: Mapping[str, zipfile.ZipInfo],
    encodings: Mapping[str, Encoding],
) -> Tensor:
    member, encoding = members.get(f"{name}.npy"), encodings.get(encoding_name)
    if member is None:
        raise FormatError("the archive has no array of this name", tensor=name)
    if encoding is None:
        raise FormatError(
            f"nothing here knows the encoding {encoding_name!r}",
            tensor=name,
            remedy="Install the plugin that adds it; `qconv types` lists what is there.",
        )
    if any(length < 0 for length in shape):
        raise FormatError(f"{shape} is no shape", tensor=name)
    columns = shape[-1] if shape else 1
    width, rows = encoding.row_bytes(columns), prod(shape[:-1])
    offset = _data_offset(file, member)
    header = BytesIO(file.read(offset, min(member.file_size, _NPY_HEADER_MAX)))
    try:
        np.lib.format.read_magic(header)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(header, _NPY_HEADER_MAX)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise FormatError(f"this is no array of NumPy's ({error})", tensor=name, offset=offset) from error
    wanted = (shape, _FLOATS[encoding_name]) if encoding_name in _FLOATS else ((rows, width), "|u1")
    if fortran or (found, dtype.str) != wanted or header.tell() + rows * width != member.file_size:
        raise FormatError(
            f"an array of {found} {dtype} does not hold {shape} weights as {encoding_name}", tensor=name, offset=offset
        )
    read = ContiguousRows(file, offset + header.tell(), width, rows, name)
    return Tensor(name, shape, encoding, read, f"{file.path.name}: {member.filename}")
