"""Which types of an unversioned file have planar rows: nothing in the file says so, but scales read at the wrong place are no scales."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..positional import PositionalFile
from .layouts import PLANAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .records import Record

__all__ = ["planar_types"]

_ROWS = 32  # looked at per tensor
_TENSORS = 8
_SANE = (1e-8, 64.0)


def planar_types(file: PositionalFile, records: Iterable[Record]) -> frozenset[int]:
    """Return the numbers of the types in ``records`` whose rows are planar: more of their scales make sense that way."""
    samples: dict[int, list[Record]] = {number: [] for number in PLANAR}
    for record in records:
        if record.number in samples and len(samples[record.number]) < _TENSORS:
            samples[record.number].append(record)
    return frozenset(number for number, of_type in samples.items() if _is_planar(file, of_type))


def _is_planar(file: PositionalFile, records: list[Record]) -> bool:
    planar = interleaved = 0
    for record in records:
        kind, columns = record.kind, record.shape[-1]
        count = min(_ROWS, record.shape[0])
        width = kind.row_bytes(columns)
        rows = np.frombuffer(file.read(record.offset, count * width), np.uint8).reshape(count, width)
        floats = (kind.nbytes - 16) // 4  # 1 for Q4_0: scale; 2 for Q4_1
        blocks = columns // kind.weights
        together = rows[:, : 4 * floats * blocks].reshape(count, floats, blocks, 4)
        apart = rows.reshape(count, blocks, kind.nbytes)[..., : 4 * floats].reshape(count, blocks, floats, 4)
        planar += _sane(together[:, -1]) + _sane(together[:, 0], signed=True)  # the minima come before the scales
        interleaved += _sane(apart[..., 0, :]) + _sane(apart[..., -1, :], signed=True)
    return planar > interleaved


def _sane(raw: NDArray[np.uint8], signed: bool = False) -> int:
    """Count float32 numbers that may be scales (``signed``: or minima) of weights."""
    values = np.ascontiguousarray(raw).view("<f4")
    with np.errstate(invalid="ignore"):
        sizes = np.abs(values)
        usual = (sizes > _SANE[0]) & (sizes < _SANE[1]) & (signed | (values > 0))
    return int(np.count_nonzero(usual | (values == 0)))
