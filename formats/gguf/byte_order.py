"""Big-endian tensor data: which numbers inside a block have more than one byte.

Only the types that gguf's own endian converter handles, and plain numbers, are listed: no big-endian file of the others is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...quantizers.base import Encoding

__all__ = ["is_swappable", "swap_blocks"]

_NUMBERS = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})

_HALVES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
    "MXFP4": (),
    "NVFP4": (),
}
"""Positions in a block of its two-byte numbers, all of them float16 scales."""


def is_swappable(encoding: Encoding) -> bool:
    """Whether big-endian data of ``encoding`` can be read."""
    return encoding.name in _NUMBERS or encoding.name in _HALVES


def swap_blocks(data: NDArray[np.uint8], encoding: Encoding) -> None:
    """Turn big-endian ``data``, uint8 (n, row bytes), into little-endian in place."""
    blocks = data.reshape(-1, encoding.block_bytes)
    if encoding.name in _NUMBERS:
        blocks[:] = blocks[:, ::-1].copy()
        return
    for position in _HALVES[encoding.name]:
        blocks[:, position : position + 2] = blocks[:, position : position + 2][:, ::-1].copy()
