"""From logits to losses and their averages; definitions of llama.cpp's perplexity tool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

__all__ = ["Estimate", "Mean", "estimate", "log_normaliser", "mean", "row_slices", "token_losses"]

_SLICE_BYTES = 16 << 20  # of logits at once: a few temporary arrays of this size exist


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and its standard error, observations taken as independent."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A perplexity: exp of the mean loss.

    Attributes:
        value: the perplexity.
        error: its standard error, tokens taken as independent.
        tokens: scored tokens.
    """

    value: float
    error: float
    tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """Return plain data with stable keys."""
        return asdict(self)


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Cut ``rows`` rows of ``columns`` float32 each into slices of bounded size."""
    step = max(1, _SLICE_BYTES // (4 * columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_normaliser(logits: Floats) -> Doubles:
    """Return float64 (n,): log of the sum of exp over each row of float32 (n, vocabulary); float exponentials, summed in double."""
    top = logits.max(axis=1)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    return np.asarray(top + np.log(total), np.float64)


def token_losses(logits: Floats, targets: NDArray[np.integer]) -> Doubles:
    """Return float64 (n,): minus the log-probability that float32 (n, vocabulary) gives each of ``targets`` (n,)."""
    losses = np.empty(len(logits), np.float64)
    for rows in row_slices(*logits.shape):
        part = logits[rows]
        losses[rows] = log_normaliser(part) - part[np.arange(len(part)), targets[rows]]
    return losses


def mean(values: Doubles, least: int = 2) -> Mean:
    """Return the mean of ``values`` (n,); the error is 0 below ``least`` observations, or where the variance is not positive."""
    count = len(values)
    value = float(values.mean())
    variance = float(np.square(values - value).mean())
    return Mean(value, math.sqrt(variance / (count - 1)) if count >= max(2, least) and variance > 0 else 0.0)


def estimate(losses: Doubles) -> Estimate:
    """Return the perplexity of token losses (n,)."""
    average = mean(losses)
    perplexity = math.exp(average.value)
    return Estimate(perplexity, perplexity * average.error, len(losses))
