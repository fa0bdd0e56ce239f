"""Q4_K and Q5_K: 4.5 and 5.5 bits per weight, with a scale and a minimum in 6 bits for each 32 weights.

A super-block of 256 weights is eight sub-blocks of 32; a weight is ``d * scale * code - dmin * minimum``.

Layout, 144 bytes in Q4_K and 176 in Q5_K:

=============  ======================================================================================================================
0 … 1, 2 … 3   ``d`` and ``dmin``, float16
4 … 15         scales and minima in 6 bits. Of sub-blocks 0–3 the scales are the low 6 bits of bytes 0–3 here, the minima those of bytes
               4–7. Of sub-blocks 4–7 the low 4 bits are the nibbles of bytes 8–11 (scale low, minimum high); the upper 2 bits lie in the
               upper 2 bits of bytes 0–3 and 4–7
16 … 47        only in Q5_K: byte ``i`` holds the fifth bit of weight ``i`` of every sub-block, bit ``j`` that of sub-block ``j``
last 128       low 4 bits of the codes: 32 bytes for each two sub-blocks, the even one in the low nibbles
=============  ======================================================================================================================

Objective: the sum of ``w * (x - q)**2`` over a super-block, with ``w``

* ``ggml``: ``rms(sub-block) + abs(x)``; with importance, ``importance * sqrt(8 * mean(x**2 of the super-block) + x**2)``;
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

Search: :mod:`.affine_search`, with 15 or 31 as the largest code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Codec
from ..superblocks import STAGED, SUPERBLOCK, balance, load_group, weigh_by_deviation, weigh_by_magnitude
from ..vectors import simd as v
from ..vectors.kernel import GGML, block_codec, inlined, kernel, merged, scratch
from .affine_search import AFFINE_SCRATCH, DMIN, INVERSE, MINIMUM, OFFSET, SCALE, D, affine_code, affine_search

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray

__all__ = ["codec"]

LENGTH, SUBBLOCKS = 32, 8
GROUP = v.LANES // SUBBLOCKS  # super-blocks
LARGEST_SCALE = 63
SPREAD = 8.0  # share of the mean square in the objective with importance
Q4_BYTES, Q4_TOP = 144, 15
Q5_BYTES, Q5_TOP = 176, 31
SCALES, FIFTH_BITS = 4, 16

# by effort: candidates of the real scale (their first and step are relative to the largest code), refinements, reach of integer scales
# before and in these
FIRST, STEP, TRIES = (-2.4, -1.9, -4.0), (0.7, 0.55, 0.3), (5, 6, 18)
REFINEMENTS, FIRST_REACH, REACH = (0, 1, 2), (1, 0, 2), (1, 1, 2)


# --- pack ---


@inlined
def _pack_scales(work: FloatArray, lane: int, out: ByteArray, start: int) -> None:
    """Write the six-bit scales and minima of the eight lanes from ``lane`` on."""
    for j in range(4):
        scale, minimum = int(work[SCALE + lane + j]), int(work[MINIMUM + lane + j])
        high_scale, high_minimum = int(work[SCALE + lane + j + 4]), int(work[MINIMUM + lane + j + 4])
        out[start + j] = scale | (high_scale >> 4) << 6
        out[start + 4 + j] = minimum | (high_minimum >> 4) << 6
        out[start + 8 + j] = (high_scale & 15) | (high_minimum & 15) << 4


@inlined
def _unpack_scales(data: ByteArray, start: int, j: int) -> tuple[int, int]:
    """Return scale and minimum of sub-block ``j``."""
    if j < 4:
        return data[start + j] & 63, data[start + 4 + j] & 63
    low = data[start + 4 + j]
    return (low & 15) | (data[start + j - 4] >> 6) << 4, (low >> 4) | (data[start + j] >> 6) << 4


@inlined
def _codes(work: FloatArray, place: int, lane: int, top: int) -> v.Ints:
    """Return the codes of sixteen staged weights of the sub-block in ``lane``."""
    x = v.load(work, STAGED + place)
    return v.to_int(affine_code(x, v.splat(work[INVERSE + lane]), v.splat(work[OFFSET + lane]), top))


@inlined
def _pack(work: FloatArray, part: int, top: int, out: ByteArray, start: int) -> None:
    """Write super-block ``part`` of the group to the bytes from ``start`` on."""
    lane = part * SUBBLOCKS
    v.store_short(out, start, v.float_to_half(work[D + lane]))
    v.store_short(out, start + 2, v.float_to_half(work[DMIN + lane]))
    _pack_scales(work, lane, out, start + SCALES)
    nibbles = start + FIFTH_BITS + (LENGTH if top == Q5_TOP else 0)
    for half in range(0, LENGTH, v.LANES):
        fifth_bits = v.splat_int(0)
        for pair in range(SUBBLOCKS // 2):
            place = part * SUPERBLOCK + pair * 2 * LENGTH + half
            even = _codes(work, place, lane + 2 * pair, top)
            odd = _codes(work, place + LENGTH, lane + 2 * pair + 1, top)
            v.store_bytes(out, nibbles + pair * LENGTH + half, (even & 15) | (odd & 15) << 4)
            fifth_bits |= (even >> 4) << (2 * pair) | (odd >> 4) << (2 * pair + 1)
        if top == Q5_TOP:
            v.store_bytes(out, start + FIFTH_BITS + half, fifth_bits)


# --- encode and decode ---


@merged
def _encode(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    effort: int,
    objective: int,
    out: ByteArray,
    top: int,
    nbytes: int,
) -> None:
    work = scratch(AFFINE_SCRATCH)
    count = rows.size // SUPERBLOCK
    for first in range(0, count, GROUP):
        load_group(rows, columns, importance, first, count - 1, LENGTH, work)
        if objective == GGML:
            if importance.size > 0:
                weigh_by_deviation(work, LENGTH, SPREAD)
            else:
                weigh_by_magnitude(work, LENGTH, True)
        balance(work, LENGTH)
        affine_search(
            work,
            LENGTH,
            top,
            LARGEST_SCALE,
            FIRST[effort],
            STEP[effort],
            TRIES[effort],
            REFINEMENTS[effort],
            FIRST_REACH[effort],
            REACH[effort],
        )
        for part in range(min(GROUP, count - first)):
            _pack(work, part, top, out, (first + part) * nbytes)


@inlined
def _decode(data: ByteArray, out: FloatArray, top: int, nbytes: int) -> None:
    for block in range(data.size // nbytes):
        start = block * nbytes
        d, dmin = v.half_to_float(v.load_short(data, start)), v.half_to_float(v.load_short(data, start + 2))
        nibbles = start + FIFTH_BITS + (LENGTH if top == Q5_TOP else 0)
        for pair in range(SUBBLOCKS // 2):
            even_scale, even_minimum = _unpack_scales(data, start + SCALES, 2 * pair)
            odd_scale, odd_minimum = _unpack_scales(data, start + SCALES, 2 * pair + 1)
            for half in range(0, LENGTH, v.LANES):
                byte = v.load_bytes(data, nibbles + pair * LENGTH + half)
                even, odd = byte & 15, byte >> 4
                if top == Q5_TOP:
                    fifth_bits = v.load_bytes(data, start + FIFTH_BITS + half)
                    even |= (fifth_bits >> (2 * pair) & 1) << 4
                    odd |= (fifth_bits >> (2 * pair + 1) & 1) << 4
                place = block * SUPERBLOCK + pair * 2 * LENGTH + half
                v.store(out, place, v.to_float(even) * (d * even_scale) - v.splat(dmin * even_minimum))
                v.store(out, place + LENGTH, v.to_float(odd) * (d * odd_scale) - v.splat(dmin * odd_minimum))


@kernel
def _encode_q4(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    _encode(rows, columns, importance, effort, objective, out, Q4_TOP, Q4_BYTES)


@kernel
def _decode_q4(data: ByteArray, out: FloatArray) -> None:
    _decode(data, out, Q4_TOP, Q4_BYTES)


@kernel
def _encode_q5(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    _encode(rows, columns, importance, effort, objective, out, Q5_TOP, Q5_BYTES)


@kernel
def _decode_q5(data: ByteArray, out: FloatArray) -> None:
    _decode(data, out, Q5_TOP, Q5_BYTES)


_CODECS = {"Q4_K": block_codec(_decode_q4, _encode_q4), "Q5_K": block_codec(_decode_q5, _encode_q5)}


def codec(name: str) -> Codec:
    """Return the codec of ``Q4_K`` or ``Q5_K``."""
    return _CODECS[name]
