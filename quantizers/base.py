"""The contract of an encoding.

An encoding holds float32 rows in fixed-size blocks of bytes. It is a pure function of the row: it sees arrays, never files,
and its output does not depend on how rows are grouped into calls.

* A *row* has ``columns`` weights, a multiple of ``block_size``; a *block* of ``block_size`` consecutive weights of a row
  takes ``block_bytes`` bytes; a row's blocks are contiguous.
* ``encode`` maps float32 ``(n, columns)`` to uint8 ``(n, row_bytes(columns))``. Input is finite: callers check before, because
  kernels are compiled with flags that let the optimiser assume it.
* An *importance vector* is float32 ``(columns,)``, non-negative and finite: the weight of each column's squared error
  (llama.cpp's importance matrix: the mean squared activation of the channel).
* ``decode`` maps uint8 ``(n, row_bytes)`` to float32 ``(n, columns)`` and is bit-identical to ggml's.
* Kernels release the GIL and keep no state between calls, so any thread may call any codec.

Kernels are compiled on first use: an :class:`Encoding` is a cheap value, and ``Encoding.codec`` is where a family module is imported. numba is
imported only where a kernel has to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ..errors import EncodingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatRows = NDArray[np.float32]
    ByteRows = NDArray[np.uint8]

__all__ = ["DEFAULT_OPTIONS", "Codec", "EncodeOptions", "Encoding", "ImportanceUse"]


class ImportanceUse(StrEnum):
    """What an encoder does with an importance vector."""

    UNUSED = "unused"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How hard an encoder searches, and which error it minimises.

    Attributes:
        effort: ``fast`` tries few candidates, ``best`` many; ``default`` is the balance that the benchmarks quote.
        objective: ``ggml`` weights squared errors as llama.cpp does, ``plain`` weights them all alike, ``importance`` by the
            importance vector alone (``plain`` where there is none). ``docs/encodings.md`` gives the formulas.
    """

    effort: Literal["fast", "default", "best"] = "default"
    objective: Literal["ggml", "plain", "importance"] = "ggml"


DEFAULT_OPTIONS = EncodeOptions()


class Decode(Protocol):
    """Fill ``out``, float32 (n, columns), from ``data``, uint8 (n, row bytes); both C-contiguous."""

    def __call__(self, data: ByteRows, out: FloatRows) -> None: ...


class Encode(Protocol):
    """Fill ``out``, uint8 (n, row bytes), from finite ``rows``, float32 (n, columns); all arrays C-contiguous."""

    def __call__(
        self, rows: FloatRows, importance: NDArray[np.float32] | None, options: EncodeOptions, out: ByteRows
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """The two kernels of an encoding; ``encode`` is None where qconv only reads it."""

    decode: Decode
    encode: Encode | None


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to hold weights in bytes, by GGUF's name (``Q4_K``).

    Attributes:
        name: upper-case name, unique in the registry.
        type_id: number in ggml's type table, or None where GGUF has none.
        block_size: weights per block; the number of columns must be a multiple of it.
        block_bytes: bytes per block.
        family: heading under which ``qconv types`` lists it.
        importance: whether the encoder takes an importance vector.
        load: imports and returns the codec; None where only the size is known.
    """

    name: str
    type_id: int | None
    block_size: int
    block_bytes: int
    family: str
    importance: ImportanceUse = ImportanceUse.UNUSED
    load: Callable[[], Codec] | None = None

    @property
    def bits_per_weight(self) -> float:
        """Average storage per weight, scales included."""
        return 8 * self.block_bytes / self.block_size

    @property
    def is_quantized(self) -> bool:
        """Whether weights share scales, so that re-encoding loses precision a second time."""
        return self.block_size > 1

    def fits(self, columns: int) -> bool:
        """Whether rows of ``columns`` weights are whole blocks."""
        return columns % self.block_size == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; raises EncodingError where ``columns`` is no multiple of the block."""
        if not self.fits(columns):
            raise EncodingError(f"{self.name} needs a multiple of {self.block_size} columns, not {columns}")
        return columns // self.block_size * self.block_bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of NumPy-order ``shape`` (the last axis is the row)."""
        columns = shape[-1] if shape else 1
        return prod(shape[:-1]) * self.row_bytes(columns)

    def codec(self) -> Codec:
        """Import and return the kernels; raises EncodingError where qconv has none for this encoding."""
        if self.load is None:
            raise EncodingError(
                f"{self.name} can be stored but not decoded", remedy="Copy it unchanged, or choose another source."
            )
        return self.load()

    def decode(self, data: ByteRows) -> FloatRows:
        """Return float32 (n, columns) for uint8 (n, row bytes)."""
        rows, width = data.shape
        if width % self.block_bytes:
            raise EncodingError(f"{self.name}: rows of {width} bytes are not whole blocks of {self.block_bytes}")
        out = np.empty((rows, width // self.block_bytes * self.block_size), np.float32)
        self.codec().decode(np.ascontiguousarray(data), out)
        return out

    def encode(
        self,
        rows: FloatRows,
        importance: NDArray[np.float32] | None = None,
        options: EncodeOptions = DEFAULT_OPTIONS,
    ) -> ByteRows:
        """Return uint8 (n, row bytes) for finite float32 (n, columns); raises EncodingError for what does not fit."""
        encode = self.codec().encode
        if encode is None:
            raise EncodingError(f"{self.name} can be read but not written")
        if importance is None and self.importance is ImportanceUse.REQUIRED:
            raise EncodingError(f"{self.name} needs an importance matrix", remedy="Pass one with --imatrix.")
        count, columns = rows.shape
        if importance is not None:
            if importance.shape != (columns,):
                raise EncodingError(f"{self.name}: {columns} columns, but {importance.shape} importance values")
            importance = np.ascontiguousarray(importance, np.float32)
        out = np.empty((count, self.row_bytes(columns)), np.uint8)
        encode(np.ascontiguousarray(rows, np.float32), importance, options, out)
        return out
