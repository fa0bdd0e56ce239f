"""AWQ's version "gemv_fast": four outputs to a row of 16-bit words, and zero points already multiplied by their scales.

With K inputs, N outputs and G groups::

    qweight  I16 (N / 4, K)  blocks of 64 words for 64 inputs: 16 words for each of the four outputs, a word being 4 codes, low bits first
    scales   F16 (W, N)      W is G rounded up, and what lies beyond G does not count
    qzeros   F16 (W, N)      minus the scale times the zero point

    weight[n, k] = q[n, k] * scales[g, n] + qzeros[g, n]        g = k // group_size

The codes of an output stand in another order, the same in every 64 inputs (:func:`_places`). Source: AutoAWQ's ``pack_intweight``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ..stored import StoredTensor
from .access import as_float32, column_slab, row_slab
from .bits import unpack_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "OUTPUTS", "FastModule"]

OUTPUTS: Final = 4
"""Outputs that share a row of words."""
BLOCK: Final = 64
"""Inputs whose codes stand together."""
_CHUNK = 1 << 18  # weights per step: the intermediate results stay in the cache


@dataclass(frozen=True, slots=True)
class FastModule:
    """The packed tensors of one linear layer, their shapes checked."""

    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    inputs: int
    outputs: int
    groups: int
    group_size: int
    version: str = "gemv_fast"

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float32 (stop - start, inputs)."""
        scales = as_float32(column_slab(self.scales, start, stop)[:, : self.groups], self.scales.dtype)
        zeros = as_float32(column_slab(self.qzeros, start, stop)[:, : self.groups], self.qzeros.dtype)
        out = np.empty((stop - start, self.inputs), np.float32)
        step = max(1, _CHUNK // self.inputs)
        for first in range(start, stop, step):
            last = min(stop, first + step)
            place = slice(first - start, last - start)
            weights = self._codes(first, last).astype(np.float32).reshape(last - first, self.groups, self.group_size)
            with np.errstate(over="ignore", invalid="ignore"):  # what is no number is for later checks to name
                weights *= scales[place, :, None]
                weights += zeros[place, :, None]
            out[place] = weights.reshape(last - first, self.inputs)
        return out.view(np.uint8)

    def _codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return uint8 (stop - start, inputs)."""
        first, last = start // OUTPUTS, -(-stop // OUTPUTS)
        words = np.ascontiguousarray(row_slab(self.qweight, first, last)).view(np.uint8)
        blocks = words.reshape(last - first, self.inputs // BLOCK, OUTPUTS, BLOCK // 2).swapaxes(1, 2)
        rows = blocks.reshape((last - first) * OUTPUTS, self.inputs // 2)[start - first * OUTPUTS :][: stop - start]
        stored = unpack_stream(np.ascontiguousarray(rows), 4, self.inputs)
        return stored.reshape(-1, BLOCK).take(_places(), axis=1).reshape(stop - start, self.inputs)


@cache
def _places() -> NDArray[np.intp]:
    """Return where each of 64 inputs is stored."""
    pairs = np.arange(BLOCK).reshape(-1, 4, 4, 2).swapaxes(1, 2)  # from each quarter of 32 in turn
    order = pairs.reshape(-1, 4, 2).swapaxes(1, 2)  # and of each 8 first those with even numbers
    return np.argsort(order.reshape(-1))
