"""Streams of small unsigned numbers: field ``i`` of ``bits`` bits lies at bits ``i * bits`` and following, least significant first.

Bit 0 is the least significant one of the first byte, so words of any size in little-endian order hold the same stream; a field may straddle
bytes and words.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["unpack_planes", "unpack_stream"]

_PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}  # bits of each plane, the low ones first


def unpack_stream(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first ``count`` fields, uint8 (n, count), of each row of ``data``, uint8 (n, bytes); ``bits`` is 1 to 8.

    >>> unpack_stream(np.array([[0b1101_0001, 0b10]], np.uint8), 3, 3)
    array([[1, 2, 3]], dtype=uint8)
    """
    rows, width = data.shape
    if not 1 <= bits <= 8 or count * bits > width * 8:
        raise ValueError(f"{count} fields of {bits} bits do not fit {width} bytes")
    if bits == 8:
        return data[:, :count]
    common = gcd(8, bits)
    fields, size = (
        8 // common,
        bits // common,
    )  # the shortest run of whole bytes: 2 fields of 4 bits in 1 byte, 8 of 3 in 3
    runs = -(-count // fields)
    if width < runs * size:
        data = np.pad(data, ((0, 0), (0, runs * size - width)))
    packed = data[:, : runs * size].reshape(rows, runs, size)
    out = np.empty((rows, runs, fields), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for index in range(fields):
        byte, shift = divmod(index * bits, 8)
        field = packed[:, :, byte] >> shift
        if shift + bits > 8:
            field |= packed[:, :, byte + 1] << (8 - shift)
        np.bitwise_and(field, mask, out=out[:, :, index])
    return out.reshape(rows, runs * fields)[:, :count]


def unpack_planes(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first ``count`` fields of each row of ``data`` as :func:`unpack_stream` does, from words whose bits are split into planes.

    Each 32 fields take ``bits`` words of 32 bits: first the words of their low bits, then those of the higher ones, every plane a stream by
    itself. Widths of 1, 2, 4 and 8 bits have one plane.
    """
    if bits not in _PLANES:
        return unpack_stream(data, bits, count)
    rows, width = data.shape
    if width % (4 * bits) or count > width * 8 // bits:
        raise ValueError(f"{count} fields of {bits} bits do not fit planes of {width} bytes")
    runs = data.reshape(rows * (width // (4 * bits)), 4 * bits)
    out = np.zeros((len(runs), 32), np.uint8)
    byte = shift = 0
    for plane in _PLANES[bits]:
        out |= unpack_stream(runs[:, byte : byte + 4 * plane], plane, 32) << np.uint8(shift)
        byte, shift = byte + 4 * plane, shift + plane
    return out.reshape(rows, -1)[:, :count]
