"""Find NaN and infinity in encoded floats without decoding them, so that a copy of a tensor can be checked as fast as it is read.

An IEEE number (bfloat16 included) is finite unless all bits of its exponent are set. Read as a signed integer, a non-finite number with
a clear sign bit is therefore no less than positive infinity's bits; read as an unsigned integer, one with the sign bit set is no less
than negative infinity's. Two reductions per slab, without a temporary array, decide whether there is any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import EncodingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHECKED_ENCODINGS", "first_non_finite"]

# bits of positive infinity; the item size gives the integers' width
_INFINITY: dict[str, np.signedinteger] = {
    "F16": np.int16(0x7C00),
    "BF16": np.int16(0x7F80),
    "F32": np.int32(0x7F800000),
    "F64": np.int64(0x7FF0000000000000),
}

CHECKED_ENCODINGS = frozenset(_INFINITY)
"""Encodings that :func:`first_non_finite` understands."""

_CHUNK_BYTES = 1 << 18  # both reductions find a chunk of this size in the second-level cache


def first_non_finite(data: NDArray[np.uint8], encoding_name: str) -> tuple[int, int] | None:
    """Return (row, column) of the first NaN or infinity in ``data``, or None where every number is finite.

    Args:
        data: uint8 (n, row bytes), rows of little-endian numbers, C-contiguous.
        encoding_name: one of :data:`CHECKED_ENCODINGS`.

    Raises:
        EncodingError: for another encoding, or where rows are not whole numbers.
    """
    infinity = _INFINITY.get(encoding_name)
    if infinity is None:
        raise EncodingError(f"{encoding_name} is not checked for NaN; only {', '.join(sorted(_INFINITY))} are")
    width = infinity.itemsize
    if data.shape[1] % width:
        raise EncodingError(f"{encoding_name}: rows of {data.shape[1]} bytes are not whole numbers of {width}")
    columns = data.shape[1] // width
    signed = data.reshape(-1).view(f"<i{width}")
    unsigned = data.reshape(-1).view(f"<u{width}")
    negative_infinity = int(infinity) + (1 << (8 * width - 1))
    step = _CHUNK_BYTES // width
    for start in range(0, signed.size, step):
        chunk = slice(start, start + step)
        if signed[chunk].max() >= infinity or unsigned[chunk].max() >= negative_infinity:
            position = start + int(np.argmax((signed[chunk] & infinity) == infinity))
            return position // columns, position % columns
    return None
