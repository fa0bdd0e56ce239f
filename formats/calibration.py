"""Calibration files: second moments of what every matrix of a model is multiplied by, as GGUF.

``general.type`` is ``calibration``. Matrices that share an input are one entry, stored under the first of their names:

================== =================== ===========================================================================================
``NAME.hessian``   F32 (m, n(n+1)/2)   means of xᵀx over tokens: the upper triangle of each of m matrices, row by row
``NAME.in_sum2``   F32 (m, n)          sums of squares, as importance matrices hold them
``NAME.counts``    F64 (m, 1)          numbers of tokens
================== =================== ===========================================================================================

m is the number of experts of a stack, otherwise 1. Keys say what was measured, and on what:

================================ =========================================================================================
``qconv.calibration.shared``     for each entry its names, joined by commas
``qconv.calibration.weights``    digest of the model's weights, whatever file they lie in (:func:`qconv.runtime.measuring.identity.weights_digest`)
``qconv.calibration.model``      SHA-256 of the model that was run (:mod:`qconv.runtime.measuring.identity`)
``qconv.calibration.tokenizer``  SHA-256 of the tokenizer
``qconv.calibration.texts``      SHA-256 of each text
``qconv.calibration.datasets``   name of each text
``qconv.calibration.bos``        ``left out``, ``kept`` or ``none``: what happened to the row of the first token
``qconv.calibration.chunks``     number of windows
``qconv.calibration.context``    tokens of each
``qconv.calibration.job``        digest of everything that the numbers depend on
================================ =========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import FormatError, MissingFileError
from ..quantizers.catalog import BUILT_IN
from ..quantizers.importance import ImportanceEntry, ImportanceMatrix, fault
from .base import Layout, Model, OpenContext, OutputTensor, Tensor, WriteOptions
from .getters import get_integer, get_string, get_strings
from .gguf import detect_gguf, lay_out_gguf, open_gguf
from .metadata import Field, string, strings, uint32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = [
    "COUNTS",
    "HESSIAN",
    "SUMS",
    "CalibrationFacts",
    "CalibrationFile",
    "Entry",
    "lay_out_calibration",
    "open_calibration",
    "pack_triangle",
    "unpack_triangle",
]

HESSIAN: Final = ".hessian"
SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
_PREFIX: Final = "qconv.calibration."
_REMEDY: Final = "Pass a file written by qconv calibrate."
_F32, _F64 = (next(encoding for encoding in BUILT_IN if encoding.name == name) for name in ("F32", "F64"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        names: the tensors that share it; the first names the entry.
        columns: its width.
        experts: how many experts have an input of their own, None where there is one.
    """

    names: tuple[str, ...]
    columns: int
    experts: int | None = None

    @property
    def matrices(self) -> int:
        """Number of second moments."""
        return self.experts or 1

    def tensors(self) -> tuple[OutputTensor, OutputTensor, OutputTensor]:
        """Return its tensors in a file: moments, sums, counts."""
        triangle = self.columns * (self.columns + 1) // 2
        return (
            OutputTensor(self.names[0] + HESSIAN, (self.matrices, triangle), _F32),
            OutputTensor(self.names[0] + SUMS, (self.matrices, self.columns), _F32),
            OutputTensor(self.names[0] + COUNTS, (self.matrices, 1), _F64),
        )


@dataclass(frozen=True)
class CalibrationFacts:
    """The keys of the module's second table, ``shared`` apart."""

    weights: str
    model: str
    tokenizer: str
    texts: tuple[str, ...]
    datasets: tuple[str, ...]
    bos: str
    chunks: int
    context: int
    job: str

    def fields(self) -> dict[str, Field]:
        """Return them as metadata."""
        return {
            _PREFIX + "weights": string(self.weights),
            _PREFIX + "model": string(self.model),
            _PREFIX + "tokenizer": string(self.tokenizer),
            _PREFIX + "texts": strings(self.texts),
            _PREFIX + "datasets": strings(self.datasets),
            _PREFIX + "bos": string(self.bos),
            _PREFIX + "chunks": uint32(self.chunks),
            _PREFIX + "context": uint32(self.context),
            _PREFIX + "job": string(self.job),
        }


def lay_out_calibration(
    path: Path, entries: Sequence[Entry], facts: CalibrationFacts, extra: Mapping[str, Field]
) -> Layout:
    """Return where everything goes; ``extra`` are further keys. Raises OutputError for names that GGUF cannot hold."""
    keys = {
        "general.type": string("calibration"),
        _PREFIX + "shared": strings(",".join(entry.names) for entry in entries),
        **facts.fields(),
        **extra,
    }
    return lay_out_gguf(path, keys, [tensor for entry in entries for tensor in entry.tensors()], WriteOptions())


def pack_triangle(matrix: Floats) -> Floats:
    """Return the upper triangle of (n, n), row by row."""
    return np.concatenate([row[number:] for number, row in enumerate(matrix)])


def unpack_triangle(packed: Floats) -> Floats:
    """Return the symmetric matrix that :func:`pack_triangle` was given."""
    columns = _triangle_side(packed.size)
    matrix = np.empty((columns, columns), np.float32)
    start = 0
    for number in range(columns):
        matrix[number, number:] = packed[start : start + columns - number]
        start += columns - number
    step = 256  # a stretch of columns that stays in the cache while it is transposed
    for top in range(0, columns, step):
        block = matrix[top : top + step]
        for left in range(0, top, step):
            block[:, left : left + step] = matrix[left : left + step, top : top + step].T
        corner = block[:, top : top + step]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T
    return matrix


def _triangle_side(size: int) -> int:
    return (isqrt(8 * size + 1) - 1) // 2


@dataclass(frozen=True)
class CalibrationFile:
    """An open calibration file.

    Attributes:
        path: its name.
        facts: what was measured.
        entries: by the name of each tensor, those that share an input alike.
    """

    path: Path
    facts: CalibrationFacts
    entries: Mapping[str, Entry]
    tensors: Mapping[str, Tensor]

    @cached_property
    def importance(self) -> ImportanceMatrix:
        """The diagonals, as an importance matrix: nothing but them is read. Raises FormatError for numbers that make no sense."""
        found = {}
        for first in dict.fromkeys(entry.names[0] for entry in self.entries.values()):
            item = ImportanceEntry(self._rows(first + SUMS), self.counts(first))
            trouble = fault(item)
            if trouble is not None:
                raise FormatError(f"importance {trouble}", path=self.path, tensor=first, remedy="Measure it again.")
            found.update(dict.fromkeys(self.entries[first].names, item))
        return ImportanceMatrix(MappingProxyType(found), self.facts.datasets, self.facts.chunks, self.facts.context)

    def counts(self, name: str) -> NDArray[np.float64]:
        """Return float64 (matrices,): of how many tokens each second moment of a tensor's input is the mean."""
        tensor = self.tensors[self.entries[name].names[0] + COUNTS]
        return np.ascontiguousarray(tensor.read(0, tensor.row_count)).view("<f8").reshape(-1).astype(np.float64)

    def hessian(self, name: str, expert: int = 0) -> Floats:
        """Return float32 (n, n), symmetric: the second moment of a tensor's input (of one ``expert`` of a stack); zeros if never met.

        Raises FormatError for numbers that are not finite.
        """
        first = self.entries[name].names[0]
        packed = self.tensors[first + HESSIAN].rows(expert, expert + 1)[0]
        if not np.isfinite(packed).all():
            raise FormatError("it holds NaN or infinity", path=self.path, tensor=first + HESSIAN)
        return unpack_triangle(packed)

    def _rows(self, name: str) -> Floats:
        return self.tensors[name].rows(0, self.tensors[name].row_count)


@contextmanager
def open_calibration(path: Path, context: OpenContext) -> Iterator[CalibrationFile]:
    """Open a file, which stays open as long as the block runs.

    Raises MissingFileError, or FormatError naming key or tensor for a file that is none, or whose entries lack a part or have one of a wrong size.
    """
    if not path.is_file():
        raise MissingFileError("there is no such file", path=path, remedy=_REMEDY)
    if not detect_gguf(path):
        raise FormatError("it is no calibration file, nor any GGUF file", path=path, remedy=_REMEDY)
    with open_gguf(path, context) as model:
        if get_string(model.metadata, "general.type", path) != "calibration":
            raise FormatError("it is a GGUF file, but no calibration file", path=path, remedy=_REMEDY)
        entries = [_entry(model, names) for names in _strings(model, "shared")]
        by_name = {name: entry for entry in entries for name in entry.names}
        yield CalibrationFile(path, _facts(model), MappingProxyType(by_name), model.tensors)


def _facts(model: Model) -> CalibrationFacts:
    words = {key: _string(model, key) for key in ("weights", "model", "tokenizer", "bos", "job")}
    return CalibrationFacts(
        weights=words["weights"],
        model=words["model"],
        tokenizer=words["tokenizer"],
        texts=_strings(model, "texts"),
        datasets=_strings(model, "datasets"),
        bos=words["bos"],
        chunks=get_integer(model.metadata, _PREFIX + "chunks", model.path) or 0,
        context=get_integer(model.metadata, _PREFIX + "context", model.path) or 0,
        job=words["job"],
    )


def _string(model: Model, key: str) -> str:
    found = get_string(model.metadata, _PREFIX + key, model.path)
    if found is None:
        raise FormatError(f"it has no key {_PREFIX}{key}", path=model.path, remedy=_REMEDY)
    return found


def _strings(model: Model, key: str) -> tuple[str, ...]:
    return tuple(get_strings(model.metadata, _PREFIX + key, model.path) or ())


def _entry(model: Model, names: str) -> Entry:
    """Return an entry, its tensors checked."""
    first = names.split(",")[0]
    hessian = model.tensors.get(first + HESSIAN)
    if hessian is None or len(hessian.shape) != 2:
        raise FormatError("it is not there, or no list of triangles", path=model.path, tensor=first + HESSIAN)
    columns = _triangle_side(hessian.columns)
    entry = Entry(tuple(names.split(",")), columns, hessian.shape[0] if hessian.shape[0] > 1 else None)
    for wanted in entry.tensors():
        found = model.tensors.get(wanted.name)
        if found is None or found.shape != wanted.shape or found.encoding.name != wanted.encoding.name:
            text = "it is not there" if found is None else f"it is {found.encoding.name} {found.shape}"
            raise FormatError(
                f"{text}, but {wanted.encoding.name} {wanted.shape} is needed",
                path=model.path,
                tensor=wanted.name,
                remedy=_REMEDY,
            )
    return entry
