"""Weights computed in float32, rounded to the precision that they are given in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...quantizers.base import Encoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rounded"]


def rounded(weights: NDArray[np.float32], encoding: Encoding) -> NDArray[np.uint8]:
    """Return float32 rows as rows of F32, F16 or BF16: to the nearest, ties to even.

    What is beyond the range becomes infinite, as it would in the quantizer's own package; whoever converts finds and names it.
    """
    if encoding.name == "F32":
        return weights.view(np.uint8)
    if encoding.name == "F16":
        with np.errstate(over="ignore", invalid="ignore"):
            return weights.astype("<f2").view(np.uint8)
    return encoding.encode(weights)
