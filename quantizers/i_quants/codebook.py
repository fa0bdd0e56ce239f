"""Codebooks of the i-quants: their points, and how packed points become weights.

A codebook is a set of points with four or eight coordinates; a group of as many weights is one point, times a scale, times signs.
The points are ggml's, read from the gguf package when a codec is first asked for, never copied here.

Decoding takes a super-block of 256 weights at once: lane ``j`` holds the run of weights ``16 j`` to ``16 j + 15``, that is four points of
four or two points of eight coordinates. Coordinates are bytes, four to a *word*, lowest first, so a run is always four words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from gguf import quants

from ..vectors import simd as v
from ..vectors.kernel import inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..vectors.simd import ByteArray, FloatArray, Floats, IntArray, Ints

__all__ = [
    "EXPAND_SCRATCH",
    "Codebook",
    "complete_signs",
    "expand",
    "load_codebook",
    "load_word",
    "nibble_of_run",
    "pair",
    "run_of_pair",
    "store_word",
]

EXPAND_SCRATCH = 256
"""Floats of scratch that :func:`expand` takes."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """The points of one encoding.

    Attributes:
        points: float32 (count, coordinates), integers.
        words: int32 (count * coordinates / 4,), the same as signed bytes: what kernels gather. Read-only.
    """

    points: NDArray[np.float32]
    words: NDArray[np.int32]


@cache
def load_codebook(name: str) -> Codebook:
    """Return the codebook of ``name``, an encoding that has one (``IQ2_XS``).

    Points of IQ1_S and IQ1_M are shifted by an eighth up or down; theirs come as 4096 points in eighths, first all that are shifted up.
    """
    source = getattr(quants, name)
    source.init_grid()
    points = np.array(source.grid, np.float32).reshape(source.grid_shape)
    if name.startswith("IQ1"):
        points = np.concatenate([8 * points + 1, 8 * points - 1])
    words = np.ascontiguousarray(points, np.int8).reshape(-1).view("<i4").astype(np.int32)
    points.flags.writeable = words.flags.writeable = False
    return Codebook(points, words)


@inlined
def load_word(data: ByteArray, index: int) -> int:
    """Return the little-endian uint32 at byte ``index``."""
    return v.load_short(data, index) | v.load_short(data, index + 2) << 16


@inlined
def store_word(out: ByteArray, index: int, value: int) -> None:
    """Write the low 32 bits of ``value``, little-endian, to the four bytes from ``index``."""
    v.store_short(out, index, value)
    v.store_short(out, index + 2, value >> 16)


@inlined
def pair(words: IntArray, index: Ints) -> tuple[Ints, Ints]:
    """Return the two words of points with eight coordinates."""
    first = index << 1
    return v.gather_int(words, first), v.gather_int(words, first + 1)


@inlined
def _odd(value: Ints) -> Ints:
    """Return 1 where a number below 256 has an odd number of one bits, else 0."""
    value ^= value >> 4
    value ^= value >> 2
    return (value ^ value >> 1) & 1


@inlined
def complete_signs(seven: Ints) -> Ints:
    """Return eight sign bits: the last is such that their number is even."""
    return seven | _odd(seven) << 7


@inlined
def run_of_pair(value: Ints) -> Ints:
    """Return lanes 8 to 15, one per 32 weights, each twice: one per run."""
    return v.interleave_high(value, value)


@inlined
def nibble_of_run(lower: int, upper: int) -> Ints:
    """Return nibble ``j`` of 64 bits, given as two halves of 32, in lane ``j``."""
    lane = v.lane_indices()
    return v.select(lane < 8, v.splat_int(lower), v.splat_int(upper)) >> (lane & 7) * 4 & 15


@inlined
def expand(
    words: tuple[Ints, Ints, Ints, Ints],
    negative: Ints,
    scale: Floats,
    scratch: FloatArray,
    out: FloatArray,
    place: int,
) -> None:
    """Write the 256 weights ``scale * coordinate``, negated where bit ``i`` of ``negative`` is set for the ``i``-th of a run.

    The products are exact: float16 scales times small integers.
    """
    for i in range(v.LANES):
        coordinate = words[i >> 2] << 24 - 8 * (i & 3) >> 24
        sign = negative << 31 - i >> 31
        v.store(scratch, i * v.LANES, v.to_float((coordinate ^ sign) - sign) * scale)
    v.transpose(scratch, 0, v.LANES, out, place, v.LANES)
