"""The next token from logits: greedy, or drawn from what top-k, top-p and temperature leave.

With logits l, sorted from high to low (equal ones by token id):

1. *top-k* keeps the first k.
2. *top-p* keeps the shortest prefix of these whose share Σ exp(lᵢ) / Σ exp(lⱼ) (j over what top-k kept) reaches p, and one at least.
3. *temperature* T gives the kept ones the probabilities exp(lᵢ / T) / Σ exp(lⱼ / T).

This order is llama.cpp's: which tokens are kept does not depend on the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["GREEDY", "Sampling", "distribution", "sample"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Raises UsageError for numbers without a meaning.

    Attributes:
        temperature: above 0; 0 takes the most likely token.
        top_k: how many of the most likely tokens are kept; 0: all.
        top_p: probability that the kept tokens reach together, in (0, 1]; 1: all.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"a temperature of {self.temperature} means nothing", remedy="Use a number from 0.")
        if self.top_k < 0:
            raise UsageError(f"the {self.top_k} most likely tokens are none", remedy="Use 1 or more, or 0 for all.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}, which is no share", remedy="Use a number above 0, at most 1.")


GREEDY = Sampling(temperature=0.0)
"""Takes the most likely token, of equals the one with the lowest id."""


def distribution(logits: Floats, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the tokens that are kept, most likely first, intp (n,), and their probabilities, float64 (n,).

    ``logits`` is float32 (vocabulary,), finite.
    """
    values = logits.astype(np.float64)
    if sampling.temperature == 0 or sampling.top_k == 1:
        return np.array([values.argmax()], np.intp), np.ones(1)
    kept = _highest(values, sampling.top_k)
    if sampling.top_p < 1:
        reached = np.cumsum(_softmax(values[kept]))
        kept = kept[: int(np.searchsorted(reached, sampling.top_p)) + 1]
    # the highest logit is taken away first: a tiny temperature would make infinities of logits
    with np.errstate(over="ignore"):
        return kept, _softmax((values[kept] - values[kept[0]]) / sampling.temperature)


def sample(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """Return a token drawn from :func:`distribution`; nothing is drawn from ``random`` where one token is left."""
    tokens, probabilities = distribution(logits, sampling)
    if len(tokens) == 1:
        return int(tokens[0])
    reached = np.cumsum(probabilities)
    place = int(np.searchsorted(reached, random.random() * reached[-1], side="right"))
    return int(tokens[min(place, len(tokens) - 1)])


def _highest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return where the ``count`` highest values are (0: all), from high to low, equal ones by place."""
    places = np.arange(len(values))
    if 0 < count < len(values):
        least = np.partition(values, -count)[-count]
        places = np.nonzero(values >= least)[0]
        places = places[np.argsort(-values[places], kind="stable")]
        return places[:count]
    return places[np.argsort(-values, kind="stable")]


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(values - values.max())
    return np.asarray(shares / shares.sum())
