"""F32, F16, BF16, F64 and the integers I8, I16, I32, I64: one number per weight, little-endian. NumPy does all but widening F16, so that copies start fast.

==========  ============================================================================================================
F32         the weights as they are
F16         IEEE half: 5 bits of exponent, 10 of mantissa. Encoding rounds to nearest, ties to even, and keeps subnormals;
            a finite weight of 65520 or more would round to infinity and raises EncodingError
BF16        the upper half of a float32. Encoding rounds to nearest, ties to even; a NaN stays a NaN (its quiet bit is set)
F64         IEEE double. Decoding rounds to float32; a finite number beyond its range raises EncodingError
I8 … I64    decoded only (ggml holds tables in them, never weights); decoding rounds to float32
==========  ============================================================================================================

NaN (a signalling one becomes quiet in a conversion) and infinity pass through all float encodings; :mod:`.finite` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import EncodingError
from .base import Codec, Decode, EncodeOptions
from .finite import first_non_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatRows = NDArray[np.float32]
    ByteRows = NDArray[np.uint8]
    Importance = NDArray[np.float32] | None

__all__ = ["codec"]

_CHUNK = 1 << 16  # weights per step where a conversion takes several passes: the intermediate results stay in the cache


def codec(name: str) -> Codec:
    """Return the codec of one of this module's encodings."""
    return _CODECS[name]


def _decode_f32(data: ByteRows, out: FloatRows) -> None:
    out[...] = data.view("<f4")


def _encode_f32(rows: FloatRows, importance: Importance, options: EncodeOptions, out: ByteRows) -> None:
    out.view("<f4")[...] = rows


def _decode_f16(data: ByteRows, out: FloatRows) -> None:
    from .halves import decode_halves  # machine code, which what only copies does not need

    decode_halves(data.reshape(-1), out.reshape(-1))


def _encode_f16(rows: FloatRows, importance: Importance, options: EncodeOptions, out: ByteRows) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        out.view("<f2")[...] = rows
    if first_non_finite(out, "F16") is not None:
        _refuse_overflow(rows, out.view("<f2"), "float16's range, 65504", "Choose BF16 or F32.")


def _decode_bf16(data: ByteRows, out: FloatRows) -> None:
    np.left_shift(data.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _encode_bf16(rows: FloatRows, importance: Importance, options: EncodeOptions, out: ByteRows) -> None:
    bits = rows.reshape(-1).view(np.uint32)
    upper = out.reshape(-1).view("<u2")
    scratch = np.empty(min(_CHUNK, bits.size), np.uint32)
    for start in range(0, bits.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        rounded = scratch[: bits[chunk].size]
        # adding half a unit of the last place, less one where that place is even, carries exactly when rounding goes up
        np.right_shift(bits[chunk], 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, bits[chunk], out=rounded)
        np.right_shift(rounded, 16, out=rounded)
        upper[chunk] = rounded
    if first_non_finite(rows.view(np.uint8), "F32") is not None:
        nan = np.isnan(rows)
        out.view("<u2")[nan] = rows.view(np.uint32)[nan] >> 16 | 0x40


def _decode_f64(data: ByteRows, out: FloatRows) -> None:
    doubles = data.view("<f8")
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = doubles
    if first_non_finite(out.view(np.uint8), "F32") is not None:
        _refuse_overflow(doubles, out, "float32's range, 3.4e38", "No encoding of weights holds it.")


def _encode_f64(rows: FloatRows, importance: Importance, options: EncodeOptions, out: ByteRows) -> None:
    with np.errstate(invalid="ignore"):
        out.view("<f8")[...] = rows


def _refuse_overflow(source: NDArray[np.floating], result: NDArray[np.floating], limit: str, remedy: str) -> None:
    """Raise EncodingError for the first finite number of ``source`` that became infinite in ``result``, if there is one."""
    overflown = np.isinf(result) & np.isfinite(source)
    if overflown.any():
        row, column = divmod(int(np.argmax(overflown)), source.shape[1])
        raise EncodingError(f"row {row}, column {column}: {source[row, column]:.9g} exceeds {limit}", remedy=remedy)


def _integer_decoder(dtype: str) -> Decode:
    def decode(data: ByteRows, out: FloatRows) -> None:
        out[...] = data.view(dtype)

    return decode


_CODECS = {
    "F32": Codec(_decode_f32, _encode_f32),
    "F16": Codec(_decode_f16, _encode_f16),
    "BF16": Codec(_decode_bf16, _encode_bf16),
    "F64": Codec(_decode_f64, _encode_f64),
    "I8": Codec(_integer_decoder("<i1"), None),
    "I16": Codec(_integer_decoder("<i2"), None),
    "I32": Codec(_integer_decoder("<i4"), None),
    "I64": Codec(_integer_decoder("<i8"), None),
}
