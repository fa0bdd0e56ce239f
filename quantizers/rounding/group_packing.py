"""The tensors of a rounded matrix as GPTQ and AWQ folders hold them (see :mod:`qconv.formats.packed.gptq` and :mod:`qconv.formats.packed.awq`).

Outputs lie along the last axis of each of them, so that the tensors of some outputs are columns of those of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .exl2_packing import pack_columns, pack_rows
from .group_rounding import Rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["OUTPUTS_PER_WORD", "pack_awq", "pack_gptq"]

OUTPUTS_PER_WORD: Final = 8
"""Outputs whose zero points of 4 bits, or in AWQ whose codes, lie in one word: packed matrices have a multiple of it."""

_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble in which AWQ holds each of 8 outputs


def pack_gptq(rounded: Rounded, bits: int) -> dict[str, NDArray[Any]]:
    """Return ``qweight`` int32 (inputs * bits / 32, outputs), ``qzeros`` int32 (groups, outputs * bits / 32), ``scales`` float16 (groups, outputs).

    ``qzeros`` holds zero points less one, as AutoGPTQ has them; they must not be 0. The inputs' groups, ``g_idx``, are all outputs' alike.
    """
    if (rounded.zeros == 0).any():
        raise ValueError("a zero point of 0 cannot be held less one")
    return {
        "qweight": pack_columns(np.ascontiguousarray(rounded.codes.T), bits).view(np.int32),
        "qzeros": pack_rows(np.ascontiguousarray(rounded.zeros.T) - np.uint8(1), bits).view(np.int32),
        "scales": np.ascontiguousarray(rounded.scales.T),
    }


def pack_awq(rounded: Rounded) -> dict[str, NDArray[Any]]:
    """Return ``qweight`` int32 (inputs, outputs / 8), ``qzeros`` int32 (groups, outputs / 8), ``scales`` float16 (groups, outputs), of 4 bits."""
    return {
        "qweight": _interleaved(rounded.codes).view(np.int32),
        "qzeros": _interleaved(rounded.zeros).view(np.int32),
        "scales": np.ascontiguousarray(rounded.scales.T),
    }


def _interleaved(fields: Bytes) -> NDArray[np.uint32]:
    """Return uint32 (n, outputs / 8) for fields of 4 bits, uint8 (outputs, n)."""
    outputs, count = fields.shape
    words = np.zeros((outputs // OUTPUTS_PER_WORD, count), np.uint32)
    for output, place in enumerate(_PLACES):
        words |= fields[output::OUTPUTS_PER_WORD].astype(np.uint32) << np.uint32(4 * place)
    return np.ascontiguousarray(words.T)
