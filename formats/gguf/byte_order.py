"""Big-endian tensor data: which numbers inside a block have more than one byte.

A program on a big-endian machine writes the fields of ggml's blocks (ggml-common.h) as its machine holds them: float16 scales, the words of 16 bits that some
types have, and fields declared as bytes that ggml reads and writes through a 32- or 16-bit number (the fifth bits of Q5_0 and Q5_1, scales and
signs of IQ3_XXS, scales of IQ1_M). IQ2_XXS is left out: its words are written as numbers and read as bytes, so that such a file has no one meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...quantizers.base import Encoding

__all__ = ["is_swappable", "swap_blocks"]

_NUMBERS = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})

_HALF, _TWO_HALVES = ((0, 2, 1),), ((0, 2, 2),)
_FIELDS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "Q4_0": _HALF,
    "Q4_1": _TWO_HALVES,
    "Q5_0": (*_HALF, (2, 4, 1)),
    "Q5_1": (*_TWO_HALVES, (4, 4, 1)),
    "Q8_0": _HALF,
    "Q8_1": _TWO_HALVES,
    "Q2_K": ((80, 2, 2),),
    "Q3_K": ((108, 2, 1),),
    "Q4_K": _TWO_HALVES,
    "Q5_K": _TWO_HALVES,
    "Q6_K": ((208, 2, 1),),
    "Q8_K": ((0, 4, 1), (260, 2, 16)),
    "IQ1_S": (*_HALF, (34, 2, 8)),
    "IQ1_M": ((48, 2, 4),),
    "IQ2_XS": ((0, 2, 33),),
    "IQ2_S": _HALF,
    "IQ3_XXS": (*_HALF, (66, 4, 8)),
    "IQ3_S": _HALF,
    "IQ4_NL": _HALF,
    "IQ4_XS": _TWO_HALVES,
    "TQ1_0": ((52, 2, 1),),
    "TQ2_0": ((64, 2, 1),),
    "Q1_0": _HALF,
    "Q2_0": _HALF,
    "MXFP4": (),
    "NVFP4": (),
}
"""Position in a block, bytes and number of its numbers of more than one byte, one after another."""


def is_swappable(encoding: Encoding) -> bool:
    """Whether big-endian data of ``encoding`` can be read."""
    return encoding.name in _NUMBERS or encoding.name in _FIELDS


def swap_blocks(data: NDArray[np.uint8], encoding: Encoding) -> None:
    """Turn big-endian ``data``, uint8 (n, row bytes), into little-endian in place."""
    blocks = data.reshape(-1, encoding.block_bytes)
    if encoding.name in _NUMBERS:
        blocks[:] = blocks[:, ::-1].copy()
        return
    for position, width, count in _FIELDS[encoding.name]:
        numbers = blocks[:, position : position + width * count].reshape(len(blocks), count, width)
        blocks[:, position : position + width * count] = numbers[..., ::-1].reshape(len(blocks), width * count)
