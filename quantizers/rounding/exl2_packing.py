"""The tensors of a quantized EXL2 matrix, as a file holds them (see :mod:`qconv.formats.packed.exl2`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .exl2_options import SCALE_BITS
from .exl2_rounding import Exl2Matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["pack_columns", "pack_exl2", "pack_rows"]

_WORD = 32


def pack_columns(codes: Bytes, bits: int) -> NDArray[np.uint32]:
    """Pack codes, uint8 (n, columns), down each column as a stream of fields, least significant bit first: uint32 (n * bits / 32, columns).

    The fields of a column must fill whole words.
    """
    count, columns = codes.shape
    if count * bits % _WORD:
        raise ValueError(f"{count} fields of {bits} bits do not fill whole words")
    words = np.zeros((count * bits // _WORD, columns), np.uint32)
    for index in range(count):
        word, shift = divmod(index * bits, _WORD)
        field = codes[index].astype(np.uint32)
        words[word] |= field << np.uint32(shift)
        if shift + bits > _WORD:
            words[word + 1] |= field >> np.uint32(_WORD - shift)
    return words


def pack_rows(fields: Bytes, bits: int) -> NDArray[np.uint32]:
    """Pack fields, uint8 (n, columns), along each row: uint32 (n, columns * bits / 32)."""
    return np.ascontiguousarray(pack_columns(fields.T, bits).T)


def pack_exl2(matrix: Exl2Matrix) -> dict[str, NDArray[Any]]:
    """Return the tensors by suffix: ``q_weight``, ``q_scale``, ``q_scale_max``, ``q_groups`` and ``q_invperm``."""
    words: list[NDArray[np.uint32]] = []
    places: list[int] = []
    first = 0
    for group in matrix.groups:
        codes = np.ascontiguousarray(matrix.codes[:, group.start : group.stop].T)
        words.append(pack_columns(codes, group.bits))
        places += [group.bits, first]
        first += len(words[-1])
    if first > np.iinfo(np.int16).max:
        raise ValueError(f"{first} rows of words are more than EXL2 can count")
    inverse = np.empty(len(matrix.order), np.int32)
    inverse[matrix.order] = np.arange(len(matrix.order), dtype=np.int32)
    return {
        "q_weight": np.concatenate(words).view(np.int32),
        "q_scale": pack_rows(matrix.roots, SCALE_BITS).view(np.int32),
        "q_scale_max": matrix.largest,
        "q_groups": np.array(places, np.int16),
        "q_invperm": inverse,
    }
