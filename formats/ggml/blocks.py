"""Blocks of 16 and 32 weights as they were before GGUF (see :mod:`.layouts`), to exact float32 or to GGUF's order of nibbles.

Every function takes uint8 (n, row bytes) of a file and returns uint8 (n, row bytes) of F32, or of the encoding in its name. A product of
a scale and a code rounds once in float32 and a sum once more, as in the programs that wrote the files.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = [
    "as_rows",
    "floats_at",
    "in_blocks",
    "q4_0_interleaved",
    "q4_0_planar",
    "q4_0_split",
    "q4_1_interleaved",
    "q4_1_planar",
    "q4_1_split",
    "q4_2",
    "q4_3",
    "q5_0_reordered",
    "q5_1_reordered",
    "q8_0",
]


def in_blocks(rows: Bytes, size: int) -> Bytes:
    """Return rows as (n, blocks, size)."""
    return rows.reshape(len(rows), rows.shape[1] // size, size)


def floats_at(blocks: Bytes, start: int, dtype: str) -> Floats:
    """Return (…, 1): the float of type ``dtype`` (``<f4`` or ``<f2``) at byte ``start`` of each block, as float32."""
    stored = np.dtype(dtype)
    field = np.ascontiguousarray(blocks[..., start : start + stored.itemsize])
    return field.view(stored).astype(np.float32)


def as_rows(weights: Floats) -> Bytes:
    """Return (n, …), all axes but the first being a row's weights in order, as the bytes of F32 rows."""
    return np.ascontiguousarray(weights, "<f4").reshape(len(weights), prod(weights.shape[1:])).view(np.uint8)


def _interleaved(nibbles: Bytes) -> Bytes:
    codes = np.empty((*nibbles.shape[:-1], 2 * nibbles.shape[-1]), np.uint8)
    np.bitwise_and(nibbles, 15, out=codes[..., 0::2])
    np.right_shift(nibbles, 4, out=codes[..., 1::2])
    return codes


def _split(nibbles: Bytes) -> Bytes:
    return np.concatenate((nibbles & 15, nibbles >> 4), axis=-1)


def _centred(codes: Bytes, centre: int, scales: Floats) -> Bytes:
    weights = codes.astype(np.float32)
    weights -= np.float32(centre)
    weights *= scales
    return as_rows(weights)


def _shifted(codes: Bytes, scales: Floats, minima: Floats) -> Bytes:
    weights = codes.astype(np.float32)
    weights *= scales
    weights += minima
    return as_rows(weights)


def q4_0_interleaved(rows: Bytes) -> Bytes:
    """Q4_0 of generation 1: d float32, nibbles[16]; weight d * (code - 8)."""
    found = in_blocks(rows, 20)
    return _centred(_interleaved(found[..., 4:]), 8, floats_at(found, 0, "<f4"))


def q4_0_split(rows: Bytes) -> Bytes:
    """Q4_0 of generation 2."""
    found = in_blocks(rows, 20)
    return _centred(_split(found[..., 4:]), 8, floats_at(found, 0, "<f4"))


def q4_0_planar(rows: Bytes) -> Bytes:
    """Q4_0 of the first days: per row all d, then all nibbles."""
    count = rows.shape[1] // 20
    scales = rows[:, : 4 * count].reshape(len(rows), count, 4)
    return _centred(_interleaved(rows[:, 4 * count :].reshape(len(rows), count, 16)), 8, floats_at(scales, 0, "<f4"))


def q4_1_interleaved(rows: Bytes) -> Bytes:
    """Q4_1 of generation 1: d float32, m float32, nibbles[16]; weight d * code + m."""
    found = in_blocks(rows, 24)
    return _shifted(_interleaved(found[..., 8:]), floats_at(found, 0, "<f4"), floats_at(found, 4, "<f4"))


def q4_1_split(rows: Bytes) -> Bytes:
    """Q4_1 of generation 2."""
    found = in_blocks(rows, 24)
    return _shifted(_split(found[..., 8:]), floats_at(found, 0, "<f4"), floats_at(found, 4, "<f4"))


def q4_1_planar(rows: Bytes) -> Bytes:
    """Q4_1 of the first week: per row all m, then all d, then all nibbles."""
    count = rows.shape[1] // 24
    minima = rows[:, : 4 * count].reshape(len(rows), count, 4)
    scales = rows[:, 4 * count : 8 * count].reshape(len(rows), count, 4)
    nibbles = rows[:, 8 * count :].reshape(len(rows), count, 16)
    return _shifted(_interleaved(nibbles), floats_at(scales, 0, "<f4"), floats_at(minima, 0, "<f4"))


def q4_2(rows: Bytes) -> Bytes:
    """Q4_2: 16 weights, d float16, nibbles[8] in generation 1's order; weight d * (code - 8)."""
    found = in_blocks(rows, 10)
    return _centred(_interleaved(found[..., 2:]), 8, floats_at(found, 0, "<f2"))


def q4_3(rows: Bytes) -> Bytes:
    """Q4_3: 16 weights, d float16, m float16, nibbles[8] in generation 1's order; weight d * code + m."""
    found = in_blocks(rows, 12)
    return _shifted(_interleaved(found[..., 4:]), floats_at(found, 0, "<f2"), floats_at(found, 2, "<f2"))


def q8_0(rows: Bytes) -> Bytes:
    """Q8_0 up to generation 2: d float32, codes int8[32]; weight d * code."""
    found = in_blocks(rows, 36)
    return as_rows(found[..., 4:].view(np.int8).astype(np.float32) * floats_at(found, 0, "<f4"))


def _reorder(rows: Bytes, size: int) -> Bytes:
    """Put the nibbles at the end of each block of ``size`` bytes from generation 1's order into GGUF's; all else stays."""
    out = in_blocks(rows, size).copy()
    nibbles = rows.reshape(out.shape)[..., -16:]
    lower, upper = nibbles[..., :8], nibbles[..., 8:]  # weights 0 to 15 and 16 to 31, two to a byte
    out[..., -16::2] = lower & 15 | upper << 4
    out[..., -15::2] = lower >> 4 | upper & 0xF0
    return out.reshape(rows.shape)


def q5_0_reordered(rows: Bytes) -> Bytes:
    """Q5_0 of generation 1: d float16, fifth bits u32 (bit i is weight i's, as in GGUF), nibbles[16]; to GGUF's Q5_0."""
    return _reorder(rows, 22)


def q5_1_reordered(rows: Bytes) -> Bytes:
    """Q5_1 of generation 1: d float16, m float16, fifth bits u32, nibbles[16]; to GGUF's Q5_1."""
    return _reorder(rows, 24)
