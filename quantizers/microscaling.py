"""MXFP4 and NVFP4: four-bit floats under a scale of eight bits.

A code is an E2M1 number: bit 3 the sign, then two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. Two lie in a byte.

**Layout** (ggml's).

* MXFP4, 17 bytes for 32 weights: the scale, E8M0 (``2**(byte - 127)``), then 16 bytes; byte ``i`` holds code ``i`` below code ``i + 16``.
  (OCP Microscaling Formats specification 1.0; ggml decodes the reserved byte 255 as ``2**128``.)
* NVFP4, 36 bytes for 64 weights: four scales, E4M3 without sign (bits 0 to 2 mantissa, 3 to 6 exponent of bias 7; subnormal numbers count;
  127 decodes to 0), one for each 16 weights; then four times 8 bytes, byte ``i`` holding code ``i`` below code ``i + 8``.

ggml counts codes in halves and halves the scale in turn; the products are the same.

**Objective.** The sum of squared errors; neither type takes importance, as in llama.cpp.

**Search.** llama.cpp takes one scale from the largest weight. Here the scales beside it are tried too, and the one of the lowest error is
kept: a larger weight may round better, or clipping it may help the rest. llama.cpp's own scale is among them, so that no block is worse.

**Effort.** How many scales are tried for NVFP4: 4, 8 or 10. For MXFP4 they are always two, because none of the others ever won.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Codec
from .block_search import load_tile
from .vectors import simd as v
from .vectors.kernel import block_codec, inlined, kernel, scratch, scratch_int
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import ByteArray, FloatArray, Floats, Ints

__all__ = ["codec"]

_MX_BLOCK, _MX_BYTES = 32, 17
_NV_BLOCK, _NV_BYTES = 16, 36  # one scale's weights; the bytes of four such
_MX_TILE, _NV_TILE = _MX_BLOCK * LANES, _NV_BLOCK * LANES
_MX_HIGHEST = 252  # 6 at the next exponent is beyond float32
_EXPONENT = 0x7F800000  # of a float32
_ONE = 127 << 23  # bits of 1.0


# --- E2M1 -----------------------------------------------------------------------------------------------------------------------


@inlined
def _halves(code: Ints) -> Floats:
    """Return twice the numbers of codes 0 to 15, as ggml counts them: so that a scale at the end of its range is not passed."""
    magnitude = code & 7
    # exponent and mantissa as those of a float32, but for the exponent 0
    value = v.select(magnitude < 2, v.to_float(magnitude), v.from_bits((magnitude << 22) + _ONE))
    return v.select(code > 8, -value, value)


@inlined
def _steps(magnitude: Floats) -> tuple[Floats, Ints]:
    """Return the distance of the numbers about each magnitude, times 2**23, and twice the exponent that it has (0 below 2)."""
    exponent = v.bits(v.minimum(v.maximum(magnitude, 1.0), 4.0)) & _EXPONENT
    return v.from_bits(exponent + (22 << 23)), (exponent - _ONE) >> 22


@inlined
def _rounded(magnitude: Floats) -> Floats:
    """Return the number nearest to each magnitude."""
    # what is added has its last bit where the number's last bit is, so that the addition rounds
    steps, _ = _steps(magnitude)
    return v.minimum((magnitude + steps) - steps, 6.0)


@inlined
def _code(value: Floats) -> Ints:
    """Return the code of the number nearest to each value."""
    magnitude = v.minimum(v.absolute(value), 6.0)
    steps, twice_exponent = _steps(magnitude)
    code = v.minimum(v.bits(magnitude + steps) - v.bits(steps) + twice_exponent, 7)
    return code | v.logical_shift(v.bits(value), 31) << 3


@inlined
def _error(tile: FloatArray, block: int, per_scale: Floats) -> Floats:
    """Return the squared error of each lane's block, in units of its scale, under the scale whose reciprocal is given."""
    error = v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        magnitude = v.absolute(v.load(tile, place)) * per_scale
        residual = magnitude - _rounded(magnitude)
        error += residual * residual
    return error


@inlined
def _largest(tile: FloatArray, block: int) -> Floats:
    largest = v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        largest = v.maximum(largest, v.absolute(v.load(tile, place)))
    return largest


# --- MXFP4 ----------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_mxfp4(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // _MX_BYTES):
        place, start = block * _MX_BYTES, block * _MX_BLOCK
        exponent = np.int32(data[place])
        # half of the scale; the lowest two are subnormal
        half_scale = v.from_bits(v.splat_int(exponent - 1 << 23 if exponent > 1 else 0x00200000 << exponent))
        packed = v.load_bytes(data, place + 1)
        v.store(out, start, _halves(packed & 15) * half_scale)
        v.store(out, start + LANES, _halves(packed >> 4) * half_scale)


@kernel
def _encode_mxfp4(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    tile, padded = scratch(_MX_TILE), scratch(_MX_TILE)
    exponents = scratch_int(LANES)
    blocks = rows.size // _MX_BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _MX_BLOCK, first, count, padded, tile)
        # the largest weight comes to lie between 4 and 8
        start_exponent = (v.bits(_largest(tile, _MX_BLOCK)) >> 23) - 2
        lower = v.maximum(start_exponent, 0)
        higher = v.minimum(v.maximum(start_exponent + 1, 0), _MX_HIGHEST)
        lower_error = _error(tile, _MX_BLOCK, v.from_bits(254 - lower << 23))
        higher_error = _error(tile, _MX_BLOCK, v.from_bits(254 - higher << 23)) * 4.0  # its unit is twice the other's
        v.store(exponents, 0, v.select(higher_error < lower_error, higher, lower))
        for lane in range(count):
            start, place = (first + lane) * _MX_BLOCK, (first + lane) * _MX_BYTES
            per_scale = v.from_bits(v.splat_int(254 - exponents[lane] << 23))
            out[place] = exponents[lane]
            left, right = _code(v.load(rows, start) * per_scale), _code(v.load(rows, start + LANES) * per_scale)
            v.store_bytes(out, place + 1, left | right << 4)


# --- NVFP4 ----------------------------------------------------------------------------------------------------------------------

# scales tried, by what is added to the code of llama.cpp's, in the order of what each adds; an effort takes the first few
_NV_TRIED = np.array([0, 4, -1, 2, 5, 1, 3, 6, -2, 7], np.int32)
_NV_EFFORT = (4, 8, 10)
_NV_LARGEST = 126


@inlined
def _nv_scale(code: Ints) -> Floats:
    """Return the numbers of E4M3 codes 0 to 126."""
    # the bits at their places in a float32 and an exact product that corrects the exponent's bias, subnormal numbers included
    return v.from_bits(code << 20) * np.float32(2.0**120)


@inlined
def _half_scale(byte: int) -> Floats:
    code = v.splat_int(0 if byte == 127 else byte & 127)
    return _nv_scale(code) * 0.5


@kernel
def _decode_nvfp4(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // _NV_BYTES):
        place = block * _NV_BYTES
        for pair in range(0, 4, 2):
            start = (block * 4 + pair) * _NV_BLOCK
            packed = v.load_bytes(data, place + 4 + 8 * pair)
            lower, upper = _halves(packed & 15), _halves(packed >> 4)
            v.store(out, start, v.join_low(lower, upper) * _half_scale(data[place + pair]))
            v.store(out, start + _NV_BLOCK, v.join_high(lower, upper) * _half_scale(data[place + pair + 1]))


@kernel
def _encode_nvfp4(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    tile, padded, per_scale = scratch(_NV_TILE), scratch(_NV_TILE), scratch(LANES)
    codes = scratch_int(LANES)
    blocks = rows.size // _NV_BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _NV_BLOCK, first, count, padded, tile)
        # the largest weight comes to lie at 6; half a unit of the last place is added before the bits below it are dropped
        start_scale = v.minimum(_largest(tile, _NV_BLOCK) * np.float32(1 / 6), 448.0)
        start_code = v.bits(start_scale * np.float32(2.0**-120)) + (1 << 19) >> 20
        best_code, best_error = v.splat_int(0), v.splat(np.inf)
        for trial in range(_NV_EFFORT[effort]):
            code = v.minimum(v.maximum(start_code + _NV_TRIED[trial], 1), _NV_LARGEST)
            scale = _nv_scale(code)
            error = _error(tile, _NV_BLOCK, 1.0 / scale) * scale * scale
            better = error < best_error
            best_code = v.select(better, code, best_code)
            best_error = v.select(better, error, best_error)
        v.store(codes, 0, best_code)
        v.store(per_scale, 0, 1.0 / _nv_scale(v.maximum(best_code, 1)))
        for lane in range(0, count, 2):
            start = (first + lane) * _NV_BLOCK
            place = (first + lane) // 4 * _NV_BYTES
            within = (first + lane) % 4
            left = _code(v.load(rows, start) * per_scale[lane])
            right = _code(v.load(rows, start + _NV_BLOCK) * per_scale[lane + 1])
            out[place + within] = codes[lane]
            out[place + within + 1] = codes[lane + 1]
            v.store_bytes(out, place + 4 + 8 * within, v.join_low(left, right) | v.join_high(left, right) << 4)


def codec(name: str) -> Codec:
    """Return the codec of one of this module's encodings."""
    return block_codec(*_KERNELS[name])


_KERNELS = {"MXFP4": (_decode_mxfp4, _encode_mxfp4), "NVFP4": (_decode_nvfp4, _encode_nvfp4)}
