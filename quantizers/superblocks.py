"""Super-blocks of 256 weights on their way into vector lanes, and the weights of their squared errors; shared by the k-quants.

A search works on sixteen sub-blocks at once, one per lane. A *group* is the super-blocks that they come from: two of eight sub-blocks
of 32 weights, or one of sixteen sub-blocks of 16. Groups are taken from the list of all super-blocks of a call, whatever row they
belong to, and lanes of different super-blocks never meet, so rows of an odd number of super-blocks need no care. In the scratch array
of a search lie

* ``STAGED``: the weights of the group in their own order, where packing reads them;
* ``X``: the weights transposed, ``X + place * 16 + lane``;
* ``W``: the weights of their squared errors, transposed alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .vectors import simd as v
from .vectors.kernel import inlined

if TYPE_CHECKING:
    from .vectors.simd import FloatArray, Floats

__all__ = [
    "GROUP_SCRATCH",
    "STAGED",
    "SUPERBLOCK",
    "W",
    "X",
    "balance",
    "load_group",
    "superblock_max",
    "superblock_sum",
    "weigh_by_deviation",
    "weigh_by_magnitude",
    "weigh_by_square",
]

SUPERBLOCK = 256
STAGED, X, W, _IMPORTANCE = 0, 512, 1024, 1536
GROUP_SCRATCH = 2048
"""Floats of scratch that :func:`load_group` takes."""

# super-blocks that are asked for before their turn: a processor by itself does not look beyond the end of a page
_AHEAD = 4
# more than a float16 scale, an 8-bit factor and a 6-bit code can express; sums of its fourth powers are float32
_LARGEST = 3.0e8
# what a sub-block without importance weighs, so that it is quantized well and counts for nothing beside the others
_NEXT_TO_NOTHING = 1e-20


@inlined
def superblock_sum(value: Floats, subblocks: int) -> Floats:
    """Return in each lane the sum over its super-block, which takes ``subblocks`` lanes: 8 or 16."""
    if subblocks == v.LANES:
        return v.splat(v.lane_sum(value))
    return v.octet_sum(value)


@inlined
def superblock_max(value: Floats, subblocks: int) -> Floats:
    """Return in each lane the largest of its super-block, which takes ``subblocks`` lanes: 8 or 16."""
    if subblocks == v.LANES:
        return v.splat(v.lane_max(value))
    return v.octet_max(value)


@inlined
def _transpose_subblocks(scratch: FloatArray, source: int, target: int, length: int) -> None:
    for tile in range(0, length, v.LANES):
        v.transpose(scratch, source + tile, length, scratch, target + tile * v.LANES, v.LANES)


@inlined
def load_group(
    rows: FloatArray, columns: int, importance: FloatArray, first: int, last: int, length: int, scratch: FloatArray
) -> None:
    """Fill ``STAGED``, ``X`` and ``W`` with one group of sub-blocks of ``length`` weights.

    ``first`` is the group's first super-block of the call and ``last`` the call's last, which fills the lanes of one that is missing.
    ``W`` becomes the importance, or one where there is none.
    """
    for part in range(length // v.LANES):
        superblock = min(first + part, last)
        for place in range(0, SUPERBLOCK, v.LANES):
            v.prefetch(rows, (superblock + _AHEAD) * SUPERBLOCK + place)
            x = v.load(rows, superblock * SUPERBLOCK + place)
            x = v.minimum(v.maximum(x, -_LARGEST), _LARGEST)
            v.store(scratch, STAGED + part * SUPERBLOCK + place, x)
        if importance.size > 0:
            column = superblock * SUPERBLOCK % columns
            for place in range(0, SUPERBLOCK, v.LANES):
                w = v.load(importance, column + place)
                v.store(scratch, _IMPORTANCE + part * SUPERBLOCK + place, w)
    _transpose_subblocks(scratch, STAGED, X, length)
    if importance.size > 0:
        _transpose_subblocks(scratch, _IMPORTANCE, W, length)
    else:
        for place in range(length):
            v.store(scratch, W + place * v.LANES, v.splat(1))


@inlined
def _squares(scratch: FloatArray, length: int) -> Floats:
    total = v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        total += x * x
    return total


@inlined
def weigh_by_deviation(scratch: FloatArray, length: int, spread: float) -> None:
    """Multiply ``W`` by ``sqrt(spread * mean(x**2 of the super-block) + x**2)``.

    llama.cpp weighs importance so, with a ``spread`` of 1 or 2. A larger share of the mean lowers the error that importance alone weighs,
    which its own choice does not always reach, and costs little or nothing in its weights.
    """
    subblocks = SUPERBLOCK // length
    mean = superblock_sum(_squares(scratch, length), subblocks) * (spread / SUPERBLOCK)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        v.store(scratch, W + place * v.LANES, w * v.sqrt(mean + x * x))


@inlined
def weigh_by_magnitude(scratch: FloatArray, length: int, floor: bool) -> None:
    """Multiply ``W`` by ``abs(x)``, plus the root mean square of the sub-block if ``floor``."""
    base = v.sqrt(_squares(scratch, length) * (1 / length)) if floor else v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        v.store(scratch, W + place * v.LANES, w * (base + v.absolute(x)))


@inlined
def balance(scratch: FloatArray, length: int) -> None:
    """Give sub-blocks whose weights are all zero uniform ones that count for next to nothing."""
    total = v.splat(0)
    for place in range(length):
        total += v.load(scratch, W + place * v.LANES)
    floor = v.select(total > 0, v.splat(0), _NEXT_TO_NOTHING)
    for place in range(length):
        w = v.load(scratch, W + place * v.LANES)
        v.store(scratch, W + place * v.LANES, v.maximum(w, floor))


@inlined
def weigh_by_square(scratch: FloatArray, length: int, floor: float) -> None:
    """Multiply ``W`` by ``x**2 + floor * mean(x**2 of the super-block)``."""
    base = v.splat(0)
    if floor > 0:
        base = superblock_sum(_squares(scratch, length), SUPERBLOCK // length) * (floor / SUPERBLOCK)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        v.store(scratch, W + place * v.LANES, w * (base + x * x))
