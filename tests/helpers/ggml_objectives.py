"""The weights of squared errors that default encoders document for encoding without importance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]


def _mean_square(x: Weights, length: int) -> Weights:
    """Mean square of each run of ``length`` weights, repeated for all of them."""
    parts = x.reshape(-1, length)
    return np.repeat((parts**2).mean(1), length).reshape(x.shape)


OBJECTIVES: dict[str, Callable[[Weights], Weights]] = {
    "Q2_K": np.abs,
    "Q3_K": lambda x: x**2 + 0.7 * _mean_square(x, 256),
    "Q4_K": lambda x: np.sqrt(_mean_square(x, 32)) + np.abs(x),
    "Q5_K": lambda x: np.sqrt(_mean_square(x, 32)) + np.abs(x),
    "Q6_K": lambda x: x**2,
    "IQ4_NL": lambda x: np.sqrt(8 * _mean_square(x, 32) + x**2),
    "IQ4_XS": lambda x: np.sqrt(8 * _mean_square(x, 256) + x**2),
    **{name: lambda x: np.sqrt(2 * _mean_square(x, 256) + x**2) for name in ("IQ2_S", "IQ3_XXS", "IQ3_S")},
}
