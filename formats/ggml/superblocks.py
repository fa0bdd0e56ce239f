"""K-quants in super-blocks of 64 weights, which programs built with ``LLAMA_QKK_64`` wrote from June 2023 to May 2024.

GGUF has no types for them. Every function takes uint8 (n, row bytes) of a file and returns the bytes of F32 rows: products of the
float16 scales, sub-scales and codes have at most 24 significant bits, so all but the subtraction of a minimum is exact.

====  =====  ==================================================  ====================================================
type  bytes  fields                                              weight ``e``
====  =====  ==================================================  ====================================================
Q2_K  24     scales[4], codes[16], d half, dmin half             d * (low nibble) * q - dmin * (high nibble), of
                                                                 scales[e / 16]
Q3_K  28     high[8], codes[16], scales[2], d half               d * (nibble e / 16 of scales - 8) * (q - 4 without its
                                                                 high bit)
Q4_K  38     d half, m half, scales[2], nibbles[32]              d * (low nibble) * q - m * (high nibble), of scales[e / 32]
Q5_K  46     d half, scales int8[4], high[8], nibbles[32]        d * scales[e / 16] * (q - 16 without its high bit)
Q6_K  54     nibbles[32], high[16], scales int8[4], d half       d * scales[e / 16] * (q - 32)
====  =====  ==================================================  ====================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .blocks import as_rows, floats_at, in_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]

_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_EIGHTHS = np.arange(8, dtype=np.uint8)[:, None]


def _pairs(packed: Bytes) -> Bytes:
    """Return (…, 4, 16): the two bits of weight e from byte ``e % 16`` at ``2 * (e / 16)``."""
    return packed[..., None, :] >> _PAIRS & np.uint8(3)


def _bits(packed: Bytes) -> Bytes:
    """Return (…, 64): the bit of weight e from byte ``e % 8`` at ``e / 8``."""
    found = packed[..., None, :] >> _EIGHTHS & np.uint8(1)
    return found.reshape(*packed.shape[:-1], 64)


def _halves(packed: Bytes) -> Bytes:
    """Return (…, 2, 32): the nibble of weight e from byte ``e % 32``, the lower one for the first half."""
    return np.stack((packed & 15, packed >> 4), axis=-2)


def q2_k(rows: Bytes) -> Bytes:
    """Q2_K: four sub-blocks of 16 with a scale and a minimum of 4 bits each."""
    found = in_blocks(rows, 24)
    scales = found[..., :4]
    step = floats_at(found, 20, "<f2") * (scales & 15).astype(np.float32)
    least = floats_at(found, 22, "<f2") * (scales >> 4).astype(np.float32)
    return as_rows(step[..., None] * _pairs(found[..., 4:20]) - least[..., None])


def q3_k(rows: Bytes) -> Bytes:
    """Q3_K: four sub-blocks of 16 with a signed scale of 4 bits each."""
    found = in_blocks(rows, 28)
    packed = found[..., 24:26]
    scales = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], 4).astype(np.float32) - 8
    high = _bits(found[..., :8]).reshape(*found.shape[:-1], 4, 16)
    codes = (_pairs(found[..., 8:24]) | high << 2).astype(np.float32) - 4
    return as_rows((floats_at(found, 26, "<f2") * scales)[..., None] * codes)


def q4_k(rows: Bytes) -> Bytes:
    """Q4_K: two sub-blocks of 32 with a scale and a minimum of 4 bits each."""
    found = in_blocks(rows, 38)
    scales = found[..., 4:6]
    step = floats_at(found, 0, "<f2") * (scales & 15).astype(np.float32)
    least = floats_at(found, 2, "<f2") * (scales >> 4).astype(np.float32)
    return as_rows(step[..., None] * _halves(found[..., 6:]) - least[..., None])


def q5_k(rows: Bytes) -> Bytes:
    """Q5_K: four sub-blocks of 16 with a signed scale of 8 bits each, and no minimum."""
    found = in_blocks(rows, 46)
    scales = floats_at(found, 0, "<f2") * found[..., 2:6].view(np.int8).astype(np.float32)
    nibbles = _halves(found[..., 14:]).reshape(*found.shape[:-1], 64)
    codes = (nibbles | _bits(found[..., 6:14]) << 4).astype(np.float32) - 16
    return as_rows(scales[..., None] * codes.reshape(*found.shape[:-1], 4, 16))


def q6_k(rows: Bytes) -> Bytes:
    """Q6_K: four sub-blocks of 16 with a signed scale of 8 bits each."""
    found = in_blocks(rows, 54)
    scales = floats_at(found, 52, "<f2") * found[..., 48:52].view(np.int8).astype(np.float32)
    nibbles = _halves(found[..., :32]).reshape(*found.shape[:-1], 4, 16)
    codes = (nibbles | _pairs(found[..., 32:48]) << 4).astype(np.float32) - 32
    return as_rows(scales[..., None] * codes)
