"""Rotary positions: pairs of dimensions are rotated by angles that grow with the position (RoFormer, arXiv:2104.09864).

Scalings: linear divides every frequency; llama3 and longrope divide each by a number of its own (a tensor of the model); yarn
(arXiv:2309.00071) divides low frequencies, keeps high ones, and ramps between. Angles are computed in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .rope_settings import RopeSettings

__all__ = ["rope_frequencies", "rope_table", "rotate"]

Floats = NDArray[np.float32]


def rope_frequencies(settings: RopeSettings, divisors: Floats | None = None) -> NDArray[np.float64]:
    """Return float64 (rotated / 2,): the angle per position of each pair; ``divisors`` divide the unscaled frequencies."""
    pairs = np.arange(settings.dimensions // 2, dtype=np.float64)
    frequencies = settings.theta ** (-2.0 * pairs / settings.dimensions)
    if divisors is not None:
        frequencies = frequencies / divisors.astype(np.float64)
    if not settings.yarn:
        return frequencies / settings.factor
    low, high = (
        settings.dimensions
        * math.log(settings.original_context / (turns * 2 * math.pi))
        / (2 * math.log(settings.theta))
        for turns in (settings.beta_fast, settings.beta_slow)
    )
    low, high = max(0, math.floor(low)), min(settings.dimensions - 1, math.ceil(high))
    divided = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    return frequencies * (divided / settings.factor + (1.0 - divided))


def rope_table(
    settings: RopeSettings, positions: NDArray[np.intp], divisors: Floats | None = None
) -> NDArray[np.complex64]:
    """Return complex64 (positions, rotated / 2): cosine + i sine of each pair's angle, times the attention factor."""
    angles = positions[:, None] * rope_frequencies(settings, divisors)
    magnitude = settings.attention_factor
    if settings.yarn:
        magnitude *= 1.0 + 0.1 * math.log(settings.factor)
    table = np.empty(angles.shape, np.complex64)
    table.real = np.cos(angles) * magnitude
    table.imag = np.sin(angles) * magnitude
    return table


def rotate(values: Floats, table: NDArray[np.complex64], settings: RopeSettings, out: Floats) -> None:
    """Fill ``out`` (heads, n, size) with ``values`` (n, heads, size) rotated by ``table`` (n, rotated / 2); both with contiguous heads."""
    rotated = settings.dimensions
    for head in range(values.shape[1]):
        source, target = values[:, head], out[head]
        target[:, rotated:] = source[:, rotated:]
        if settings.order == "interleaved":
            # a pair of neighbours is the real and imaginary part of a number that a complex product rotates
            np.multiply(source[:, :rotated].view(np.complex64), table, out=target[:, :rotated].view(np.complex64))
            continue
        half = rotated // 2
        first, second = source[:, :half], source[:, half:rotated]
        cosine, sine = table.real, table.imag
        np.multiply(first, cosine, out=target[:, :half])
        target[:, :half] -= second * sine
        np.multiply(second, cosine, out=target[:, half:rotated])
        target[:, half:rotated] += first * sine
