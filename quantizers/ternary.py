"""TQ1_0 and TQ2_0: blocks of 256 weights that are -d, 0 or d, for models trained that way.

**Layout** (ggml's). A code is 0, 1 or 2 and decodes to ``d * (code - 1)``; ``d`` is a float16 and comes last.

* TQ2_0, 66 bytes: 64 bytes of four codes each, then ``d``. Bits ``2n`` and ``2n + 1`` of byte ``32 c + j`` hold code ``128 c + 32 n + j``.
* TQ1_0, 54 bytes: 48 bytes of five codes and 4 bytes of four codes, then ``d``. A byte holds the fraction ``0.abcde`` in base 3, as
  256ths and rounded up: multiplied by 3 it carries its first code over the byte's edge, and what stays is the rest. Digit ``n`` is that of

  - code ``32 n + j`` in byte ``j`` below 32,
  - code ``160 + 16 n + j`` in byte ``32 + j``,
  - code ``240 + 4 n + j`` in byte ``48 + j``, which has four digits (the fifth is 0).

**Objective.** The sum of squared errors. llama.cpp, which takes no importance here either, sets ``d`` to the largest weight: right for
ternary weights, which come back exactly from the search too; for others the search finds a ``d`` of about half the error.

**Effort.** The number of starts of the search for ``d``, and how often the codes are chosen anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Codec
from .block_search import load_tile, nearest_codes, reciprocal, search_encoder, search_scale
from .vectors import simd as v
from .vectors.kernel import block_codec, inlined, kernel, scratch
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import ByteArray, FloatArray, Ints

__all__ = ["codec"]

_BLOCK = 256
_TILE = _BLOCK * LANES
_TQ1_BYTES, _TQ2_BYTES = 54, 66
_TQ1_SCALE, _TQ2_SCALE = 52, 64
_TQ1_LAST = 48  # first of the bytes of four digits

# the largest weight's code before clipping, in the order of what a start adds on Gauss, Student, Laplace and uniform weights
_STARTS = np.array([2.8, 1.6, 4.8, 2.4, 3.4, 6.6, 1.4, 4.0, 2.2, 3.0, 2.6, 8.4], np.float32)
_EFFORT = ((2, 0), (5, 1), (12, 4))  # starts and refinements of fast, default, best


# --- decode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_tq2_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // _TQ2_BYTES):
        place, start = block * _TQ2_BYTES, block * _BLOCK
        scale = v.half_to_float(v.load_short(data, place + _TQ2_SCALE))
        for byte in range(0, 64, LANES):
            packed = v.load_bytes(data, place + byte)
            first = start + byte // 32 * 128 + byte % 32
            for digit in range(4):
                v.store(out, first + 32 * digit, v.to_float((packed >> 2 * digit & 3) - 1) * scale)


@kernel
def _decode_tq1_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // _TQ1_BYTES):
        place, start = block * _TQ1_BYTES, block * _BLOCK
        scale = v.half_to_float(v.load_short(data, place + _TQ1_SCALE))
        for byte in range(0, _TQ1_LAST, LANES):
            rest = v.load_bytes(data, place + byte)
            stride = 32 if byte < 32 else 16
            first = start + byte if byte < 32 else start + 160
            for digit in range(5):
                tripled = rest * 3
                v.store(out, first + stride * digit, v.to_float((tripled >> 8) - 1) * scale)
                rest = tripled & 255
        for byte in range(4):
            last = np.int32(data[place + _TQ1_LAST + byte])
            for digit in range(4):
                last *= 3
                out[start + 240 + 4 * digit + byte] = np.float32((last >> 8) - 1) * scale
                last &= 255


# --- encode ---------------------------------------------------------------------------------------------------------------------


@inlined
def _codes(rows: FloatArray, start: int, per_scale: float) -> Ints:
    """Return the codes, 0 to 2, of sixteen weights."""
    return nearest_codes(rows, start, 0.0, per_scale, 1.0, 0, 2) & 3


@inlined
def _fraction(number: Ints) -> Ints:
    """Return ``number`` 243rds as 256ths, rounded up: ``(256 * number + 242) // 243`` for numbers below 243."""
    return number + ((13 * number + 242) * 270 >> 16)


@inlined
def _pack_tq2_0(rows: FloatArray, start: int, per_scale: float, out: ByteArray, place: int) -> None:
    for byte in range(0, 64, LANES):
        first = start + byte // 32 * 128 + byte % 32
        packed = _codes(rows, first, per_scale)
        for digit in range(1, 4):
            packed |= _codes(rows, first + 32 * digit, per_scale) << 2 * digit
        v.store_bytes(out, place + byte, packed)


@inlined
def _pack_tq1_0(rows: FloatArray, start: int, per_scale: float, out: ByteArray, place: int) -> None:
    for byte in range(0, _TQ1_LAST, LANES):
        stride = 32 if byte < 32 else 16
        first = start + byte if byte < 32 else start + 160
        number = _codes(rows, first, per_scale)
        for digit in range(1, 5):
            number = number * 3 + _codes(rows, first + stride * digit, per_scale)
        v.store_bytes(out, place + byte, _fraction(number))
    codes = _codes(rows, start + 240, per_scale)
    for byte in range(4):
        last = 0
        for digit in range(4):
            last = last * 3 + v.extract(codes, byte + 4 * digit)
        last *= 3
        out[place + _TQ1_LAST + byte] = (256 * last + 242) // 243


@inlined
def _encode(
    rows: FloatArray, five_digits: bool, size: int, starts: FloatArray, refinements: int, out: ByteArray
) -> None:
    tile, padded = scratch(_TILE), scratch(_TILE)
    scales, per_scale = scratch(LANES), scratch(LANES)
    blocks = rows.size // _BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _BLOCK, first, count, padded, tile)
        scale = search_scale(tile, tile, False, _BLOCK, (-1.0, 1.0), starts, refinements)
        v.store(scales, 0, scale)
        v.store(per_scale, 0, reciprocal(scale))
        for lane in range(count):
            start, place = (first + lane) * _BLOCK, (first + lane) * size
            if five_digits:
                _pack_tq1_0(rows, start, per_scale[lane], out, place)
            else:
                _pack_tq2_0(rows, start, per_scale[lane], out, place)
            v.store_short(out, place + size - 2, v.float_to_half(scales[lane]))


@kernel
def _encode_tq1_0(rows: FloatArray, starts: FloatArray, refinements: int, out: ByteArray) -> None:
    _encode(rows, True, _TQ1_BYTES, starts, refinements, out)


@kernel
def _encode_tq2_0(rows: FloatArray, starts: FloatArray, refinements: int, out: ByteArray) -> None:
    _encode(rows, False, _TQ2_BYTES, starts, refinements, out)


def codec(name: str) -> Codec:
    """Return the codec of one of this module's encodings."""
    decode, encode = _KERNELS[name]
    return block_codec(decode, search_encoder(encode, _STARTS, _EFFORT))


_KERNELS = {"TQ1_0": (_decode_tq1_0, _encode_tq1_0), "TQ2_0": (_decode_tq2_0, _encode_tq2_0)}
