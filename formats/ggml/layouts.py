"""How tensor types were stored in each generation, and what their rows are given as.

==========  =======================================  ======================================================================
generation  files                                    nibbles of a block of 32 weights
==========  =======================================  ======================================================================
planar      ``ggml``: Q4_0 until 2023-03-11,         as 1, but a row holds all its scales (Q4_1: all minima, then all
            Q4_1 until 2023-03-17                    scales) before its nibbles
1           ``ggml``, ``ggmf``, ``ggjt`` version 1   byte ``j`` holds weight ``2j`` (low) and ``2j + 1`` (high)
2           ``ggjt`` version 2                       byte ``j`` holds weight ``j`` (low) and ``j + 16`` (high)
3           ``ggjt`` version 3                       as 2; GGUF's layouts
==========  =======================================  ======================================================================

Up to generation 2, Q4_0, Q4_1 and Q8_0 have float32 scales, which no type of GGUF holds: their rows are given as F32. So are those of
Q4_2 and Q4_3, and of super-blocks of 64 weights. Q5_0 and Q5_1 have had float16 scales from the start: their nibbles are put into
the new order, and the rows are GGUF's to the bit. What the generation does not name in its table did not exist in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import blocks, superblocks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Convert = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

__all__ = ["PLANAR", "TYPE_NAMES", "Reading", "StoredType", "readings"]

TYPE_NAMES: Final = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
)
"""Name of each type number."""


@dataclass(frozen=True, slots=True)
class StoredType:
    """How a file holds the weights of one type.

    Attributes:
        name: ggml's name.
        weights: per block.
        nbytes: per block.
        encoding: GGUF's encoding in which rows are given.
        convert: uint8 (n, row bytes) of the file to uint8 (n, row bytes) of ``encoding``; None where they are the same.
        detail: what tells it from GGUF's type of the name, for people; empty where nothing does.
    """

    name: str
    weights: int
    nbytes: int
    encoding: str
    convert: Convert | None = None
    detail: str = ""

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of whole blocks in the file."""
        return columns // self.weights * self.nbytes


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to understand the type numbers of a file.

    Attributes:
        name: what is assumed, for people.
        types: stored type by number.
        super_block: weights per super-block of the k-quants.
    """

    name: str
    types: dict[int, StoredType]
    super_block: int = 256


_FLOATS = {0: StoredType("F32", 1, 4, "F32"), 1: StoredType("F16", 1, 2, "F16")}

_F32_SCALES = "float32 scales"
_Q8_0 = StoredType("Q8_0", 32, 36, "F32", blocks.q8_0, _F32_SCALES)

_FIRST = _FLOATS | {
    2: StoredType("Q4_0", 32, 20, "F32", blocks.q4_0_interleaved, _F32_SCALES),
    3: StoredType("Q4_1", 32, 24, "F32", blocks.q4_1_interleaved, _F32_SCALES),
    4: StoredType("Q4_2", 16, 10, "F32", blocks.q4_2, "blocks of 16"),
    5: StoredType("Q4_3", 16, 12, "F32", blocks.q4_3, "blocks of 16"),
    6: StoredType("Q5_0", 32, 22, "Q5_0", blocks.q5_0_reordered),
    7: StoredType("Q5_1", 32, 24, "Q5_1", blocks.q5_1_reordered),
    8: _Q8_0,
}
# From 2023-04-25 to 04-26 Q8_0 had the number that is Q5_0's since.
_FIRST_WITH_EARLY_Q8_0 = {number: kind for number, kind in _FIRST.items() if number < 6} | {6: _Q8_0}

_SECOND = _FLOATS | {
    2: StoredType("Q4_0", 32, 20, "F32", blocks.q4_0_split, _F32_SCALES),
    3: StoredType("Q4_1", 32, 24, "F32", blocks.q4_1_split, _F32_SCALES),
    6: StoredType("Q5_0", 32, 22, "Q5_0"),
    7: StoredType("Q5_1", 32, 24, "Q5_1"),
    8: _Q8_0,
}

_THIRD = _FLOATS | {
    2: StoredType("Q4_0", 32, 18, "Q4_0"),
    3: StoredType("Q4_1", 32, 20, "Q4_1"),
    6: StoredType("Q5_0", 32, 22, "Q5_0"),
    7: StoredType("Q5_1", 32, 24, "Q5_1"),
    8: StoredType("Q8_0", 32, 34, "Q8_0"),
}
_K_QUANTS = {
    10: StoredType("Q2_K", 256, 84, "Q2_K"),
    11: StoredType("Q3_K", 256, 110, "Q3_K"),
    12: StoredType("Q4_K", 256, 144, "Q4_K"),
    13: StoredType("Q5_K", 256, 176, "Q5_K"),
    14: StoredType("Q6_K", 256, 210, "Q6_K"),
}
_OF_64 = "super-blocks of 64"
_SMALL_K_QUANTS = {
    10: StoredType("Q2_K", 64, 24, "F32", superblocks.q2_k, _OF_64),
    11: StoredType("Q3_K", 64, 28, "F32", superblocks.q3_k, _OF_64),
    12: StoredType("Q4_K", 64, 38, "F32", superblocks.q4_k, _OF_64),
    13: StoredType("Q5_K", 64, 46, "F32", superblocks.q5_k, _OF_64),
    14: StoredType("Q6_K", 64, 54, "F32", superblocks.q6_k, _OF_64),
}

PLANAR: Final = {
    2: StoredType("Q4_0", 32, 20, "F32", blocks.q4_0_planar, "float32 scales, planar rows"),
    3: StoredType("Q4_1", 32, 24, "F32", blocks.q4_1_planar, "float32 scales, planar rows"),
}
"""What a type of an unversioned file may be instead, by number; only the numbers in it tell."""


def readings(container: str, version: int) -> tuple[Reading, ...]:
    """Return how a file's types may be understood, the likeliest first; nothing in a header tells, but only one fits the file."""
    if container != "ggjt":
        return (Reading("generation 1", _FIRST),)
    if version == 1:
        return (Reading("generation 1", _FIRST), Reading("generation 1, Q8_0 as type 6", _FIRST_WITH_EARLY_Q8_0))
    if version == 2:
        return (Reading("generation 2", _SECOND),)
    return (
        Reading("generation 3", _THIRD | _K_QUANTS),
        Reading("generation 3, super-blocks of 64", _THIRD | _SMALL_K_QUANTS, 64),
    )
