"""Files of importance matrices: GGUF, as llama-imatrix writes them since 2025, and the older ``.dat``.

GGUF form: ``general.type`` is ``imatrix``; for each weight tensor NAME an F32 tensor ``NAME.in_sum2`` (matrices, columns) of raw sums of squared
activations and one ``NAME.counts`` (matrices, 1); keys ``imatrix.datasets``, ``imatrix.chunk_count`` and ``imatrix.chunk_size``.

Legacy form, little-endian int32 and float32, no magic number: number of entries; per entry the name's length and bytes, the number of
calls (chunks), the number of values and the values, which are means times calls; then, in newer files, the last chunk's number and the
length and bytes of the text's name. It does not tell experts apart, nor say how many tokens a chunk had.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import FormatError, MissingFileError, TruncatedError
from ..quantizers.catalog import BUILT_IN
from ..quantizers.importance import ImportanceEntry, ImportanceMatrix, fault
from .base import Model, OpenContext, OutputTensor, Tensor, WriteOptions
from .getters import get_integer, get_string, get_strings
from .gguf import detect_gguf, lay_out_gguf, open_gguf
from .metadata import Field, string, strings, uint32

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["gguf_imatrix", "legacy_imatrix", "read_imatrix"]

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
LEGACY_CHUNK_SIZE: Final = 512
"""Tokens per chunk where the file does not say: llama-imatrix's default context."""
MAX_NAME_BYTES: Final = 4096
"""Longest name that a legacy file may hold; GGUF allows 64 bytes for tensors, file names are the longest strings in it."""
_REMEDY: Final = "Pass a file written by an importance matrix tool (GGUF or .dat)."


def read_imatrix(path: Path, context: OpenContext, compat: bool = False) -> ImportanceMatrix:
    """Read an importance matrix of either form; ``compat`` is passed on to :class:`ImportanceMatrix`.

    Raises MissingFileError, or FormatError naming the file, and the tensor or offset: for a file that is none of these, that lies about
    its lengths, or that holds numbers which are not finite or negative.
    """
    if not path.is_file():
        raise MissingFileError("there is no such file", path=path, remedy=_REMEDY)
    if detect_gguf(path):
        with open_gguf(path, context) as model:
            return _from_gguf(model, compat)
    return _Legacy(path, path.read_bytes()).parse(compat)


def _from_gguf(model: Model, compat: bool) -> ImportanceMatrix:
    """Build the matrix from an opened GGUF file."""
    path, metadata = model.path, model.metadata
    kind = get_string(metadata, "general.type", path)
    names = [name.removesuffix(SUMS) for name in model.tensors if name.endswith(SUMS)]
    if kind not in (None, "imatrix") or not names:
        raise FormatError(f"it is a GGUF file of type {kind!r}, not an importance matrix", path=path, remedy=_REMEDY)
    entries = {}
    for name in names:
        sums = _floats(model.tensors[name + SUMS], path)
        if name + COUNTS not in model.tensors:
            raise FormatError(f"there is no tensor {name}{COUNTS}", path=path, tensor=name)
        counts = _floats(model.tensors[name + COUNTS], path).reshape(-1).astype(np.float64)
        stacked = sums.reshape(-1, sums.shape[-1])
        if len(counts) == 1:
            counts = np.repeat(counts, len(stacked))
        entries[name] = _checked(ImportanceEntry(stacked, counts), path, name)
    return ImportanceMatrix(
        MappingProxyType(entries),
        tuple(get_strings(metadata, "imatrix.datasets", path) or ()),
        get_integer(metadata, "imatrix.chunk_count", path) or 0,
        get_integer(metadata, "imatrix.chunk_size", path) or LEGACY_CHUNK_SIZE,
        compat,
    )


def _floats(tensor: Tensor, path: Path) -> NDArray[np.float32]:
    """Return an F32 tensor's values in its shape."""
    if tensor.encoding.name != "F32":
        raise FormatError(f"it is {tensor.encoding.name}, not F32", path=path, tensor=tensor.name)
    return tensor.read(0, tensor.row_count).view(np.float32).reshape(tensor.shape or (1,))


def _checked(entry: ImportanceEntry, path: Path, name: str) -> ImportanceEntry:
    """Return the entry; raises FormatError, naming file and tensor, if it is unusable."""
    found = fault(entry)
    if found is not None:
        raise FormatError(f"importance {found}", path=path, tensor=name, remedy="Measure it again.")
    return entry


@dataclass
class _Legacy:
    """A legacy file being parsed: ``data`` and the ``offset`` that comes next."""

    path: Path
    data: bytes
    offset: int = 0

    def parse(self, compat: bool) -> ImportanceMatrix:
        """Read all entries and the trailer; every length is checked before it is used."""
        number = self._count("the number of entries", least=1, bytes_each=16)
        entries: dict[str, ImportanceEntry] = {}
        for _ in range(number):
            name = self._text("a tensor's name", least=1)
            if name in entries:
                raise self._fault(FormatError, "a second entry of this name", name)
            calls = self._count("the number of calls", least=1)
            values = self._values(self._count("the number of values", least=1, bytes_each=4))
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as not finite
                sums = values.reshape(1, -1) * np.float32(LEGACY_CHUNK_SIZE)
            counts = np.array([calls * LEGACY_CHUNK_SIZE], np.float64)
            entries[name] = _checked(ImportanceEntry(sums, counts), self.path, name)
        chunks, dataset = 0, ""
        if self.offset < len(self.data):
            chunks = self._count("the number of chunks", least=0)
            dataset = self._text("the name of the text", least=0)
        if self.offset < len(self.data):
            raise self._fault(FormatError, f"{len(self.data) - self.offset} bytes are left over")
        return ImportanceMatrix(
            MappingProxyType(entries), (dataset,) if dataset else (), chunks, LEGACY_CHUNK_SIZE, compat
        )

    def _fault(self, kind: type[FormatError], message: str, tensor: str | None = None) -> FormatError:
        """Return an error at the current offset; the file may simply be something else."""
        return kind(
            f"no GGUF file, and as a legacy importance matrix: {message}",
            path=self.path,
            offset=self.offset,
            tensor=tensor,
            remedy=_REMEDY,
        )

    def _take(self, length: int, what: str) -> bytes:
        """Return the next bytes; raises TruncatedError where the file ends before."""
        if length > len(self.data) - self.offset:
            raise self._fault(TruncatedError, f"{what} ends after the file does")
        self.offset += length
        return self.data[self.offset - length : self.offset]

    def _count(self, what: str, least: int, bytes_each: int = 0) -> int:
        """Return a number of at least ``least`` that leaves room for as many items of ``bytes_each``."""
        start = self.offset
        (value,) = struct.unpack("<i", self._take(4, what))
        if value < least or value * bytes_each > len(self.data) - self.offset:
            self.offset = start
            raise self._fault(FormatError, f"{what} cannot be {value}")
        return int(value)

    def _text(self, what: str, least: int) -> str:
        """Return a string with its length before it."""
        start = self.offset
        length = self._count(f"the length of {what}", least, bytes_each=1)
        if length > MAX_NAME_BYTES:
            self.offset = start
            raise self._fault(FormatError, f"{what} cannot have {length} bytes")
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError:
            self.offset = start
            raise self._fault(FormatError, f"{what} is no text") from None

    def _values(self, number: int) -> NDArray[np.float32]:
        """Return float32 values."""
        return np.frombuffer(self._take(4 * number, "a tensor's values"), "<f4").astype(np.float32)


def gguf_imatrix(matrix: ImportanceMatrix, metadata: Mapping[str, Field] = MappingProxyType({})) -> bytes:
    """Return the GGUF form; ``metadata`` adds keys of the caller's.

    Raises OutputError for names that GGUF cannot hold.
    """
    keys = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(matrix.datasets),
        "imatrix.chunk_count": uint32(matrix.chunk_count),
        "imatrix.chunk_size": uint32(matrix.chunk_size),
        **metadata,
    }
    data: dict[str, NDArray[np.float32]] = {}
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        data[name + SUMS] = entry.sums
        data[name + COUNTS] = entry.counts.astype(np.float32).reshape(-1, 1)
    float32 = next(encoding for encoding in BUILT_IN if encoding.name == "F32")
    tensors = [OutputTensor(name, values.shape, float32) for name, values in data.items()]
    (part,) = lay_out_gguf(Path("imatrix.gguf"), keys, tensors, WriteOptions(digests=False)).parts
    out = bytearray(part.size)
    header = part.header({})
    out[: len(header)] = header
    for place in part.placements:
        raw = data[place.tensor.name].astype("<f4").tobytes()
        out[place.offset : place.offset + len(raw)] = raw
    return bytes(out)


def legacy_imatrix(matrix: ImportanceMatrix) -> bytes:
    """Return the ``.dat`` form, which keeps means only: entries without data are left out, experts without data become ones."""
    items = [_legacy_item(name, matrix.entries[name], matrix.chunk_size) for name in sorted(matrix.entries)]
    kept = [item for item in items if item]
    text = _legacy_text(matrix.datasets)
    return b"".join([struct.pack("<i", len(kept)), *kept, struct.pack("<ii", matrix.chunk_count, len(text)), text])


def _legacy_item(name: str, entry: ImportanceEntry, chunk_size: int) -> bytes:
    """Return one entry's bytes, none where it has no data."""
    calls = math.ceil(entry.counts.max() / chunk_size)
    if not calls:
        return b""
    counts = entry.counts[:, None]
    means = np.divide(entry.sums, counts, out=np.ones(entry.sums.shape), where=counts > 0)
    raw = name.encode()
    head = struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, means.size)
    return head + np.asarray(means * calls, "<f4").tobytes()


def _legacy_text(datasets: Sequence[str]) -> bytes:
    """Return the one name that a legacy file has room for."""
    return datasets[0].encode()[:MAX_NAME_BYTES] if datasets else b""
