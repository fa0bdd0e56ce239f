"""How far one model's predictions lie from another's: llama.cpp's statistics of ``--kl-divergence``, by the same definitions.

The *base* is the reference (P), the model under test is Q. Per scored position there are five numbers (:class:`Compared`); over all of them
:func:`summarise` gives perplexities, their ratio and difference with errors that know of the correlation, the Kullback-Leibler divergence and
the change of the right token's probability with percentiles, and how often both would say the same token first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from .losses import Estimate, Mean, estimate, log_normaliser, mean, row_slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

__all__ = [
    "LOWEST_LOG_PROBABILITY",
    "MIN_POSITIONS",
    "Compared",
    "Summary",
    "compare",
    "compare_logits",
    "compare_top",
    "concatenate",
    "log_probabilities",
    "summarise",
]

LOWEST_LOG_PROBABILITY: Final = -16.0
"""Tokens to which a base file gives less are left out of the divergence: the file does not hold them exactly."""

MIN_POSITIONS: Final = 100
"""llama.cpp prints its statistics from so many positions on."""

_LEAST_FOR_ERRORS = 11  # llama.cpp's errors are 0 for 10 observations or fewer
_KLD_SHARES: Final = (0.999, 0.99, 0.95, 0.90, 0.50, 0.10, 0.05, 0.01, 0.001)
_CHANGE_SHARES: Final = (0.999, 0.99, 0.95, 0.90, 0.75, 0.50, 0.25, 0.10, 0.05, 0.01, 0.001)


@dataclass(frozen=True, eq=False)
class Compared:
    """What was found at n positions; every array is (n,).

    Attributes:
        loss: float64, minus log of Q's probability of the right token.
        base_loss: float64, the same of the base.
        divergence: float64, Kullback-Leibler divergence of Q from the base, in nats.
        change: float64, Q's probability of the right token minus the base's.
        same_top: bool, whether both find the same token most probable (the lowest of equals).
    """

    loss: Doubles
    base_loss: Doubles
    divergence: Doubles
    change: Doubles
    same_top: NDArray[np.bool_]


def log_probabilities(logits: Floats) -> Floats:
    """Return float32 (n, vocabulary): logits less the log of each row's normaliser."""
    return np.asarray(logits - log_normaliser(logits)[:, None].astype(np.float32), np.float32)


def compare(
    base: Floats,
    logits: Floats,
    targets: NDArray[np.integer],
    lowest: float = LOWEST_LOG_PROBABILITY,
) -> Compared:
    """Compare base log-probabilities with Q's logits, both float32 (n, vocabulary), where ``targets`` (n,) are right.

    Tokens whose base log-probability is not above ``lowest`` are left out of the divergence.
    """
    return _by_slices(logits, lambda rows: _compare_rows(base[rows], logits[rows], targets[rows], lowest))


def compare_logits(base_logits: Floats, logits: Floats, targets: NDArray[np.integer]) -> Compared:
    """Compare logits of both models, float32 (n, vocabulary) each; no token is left out of the divergence."""

    def part(rows: slice) -> Compared:
        base = log_probabilities(base_logits[rows])
        return _compare_rows(base, logits[rows], targets[rows], -math.inf)

    return _by_slices(logits, part)


def compare_top(
    tokens: NDArray[np.integer],
    base: Floats,
    tail: Floats,
    base_target: Floats,
    logits: Floats,
    targets: NDArray[np.integer],
) -> Compared:
    """Compare with a base of which only the k most probable tokens are known, one symbol standing for all others.

    The divergence is that over k + 1 symbols, which is never above the one over the whole vocabulary.

    Args:
        tokens: (n, k), the most probable first.
        base: float32 (n, k), their log-probabilities.
        tail: float32 (n,), log of the probability of all other tokens together.
        base_target: float32 (n,), log-probability of the right token.
        logits: float32 (n, vocabulary), Q's.
        targets: (n,), the right tokens.
    """

    def part(rows: slice) -> Compared:
        values = logits[rows]
        normaliser = log_normaliser(values)
        q_top = np.take_along_axis(values, tokens[rows], axis=1) - normaliser[:, None]
        rest = values.copy()
        np.put_along_axis(rest, tokens[rows], np.float32(-np.inf), axis=1)
        with np.errstate(divide="ignore"):  # k may be the whole vocabulary
            total = np.exp(rest - values.max(axis=1, keepdims=True)).sum(axis=1, dtype=np.float64)
            q_tail = values.max(axis=1) + np.log(total) - normaliser
        p_top, p_tail = base[rows].astype(np.float64), tail[rows].astype(np.float64)
        divergence = (np.exp(p_top) * (p_top - q_top)).sum(axis=1)
        known = np.isfinite(p_tail) & np.isfinite(q_tail)
        divergence[known] += np.exp(p_tail[known]) * (p_tail[known] - q_tail[known])
        index = np.arange(len(values))
        loss = normaliser - values[index, targets[rows]]
        base_loss = -base_target[rows].astype(np.float64)
        same = values.argmax(axis=1) == tokens[rows][:, 0]
        return Compared(loss, base_loss, divergence, np.exp(-loss) - np.exp(-base_loss), same)

    return _by_slices(logits, part)


def concatenate(parts: Sequence[Compared]) -> Compared:
    """Return several runs of positions as one."""
    return Compared(
        np.concatenate([it.loss for it in parts]),
        np.concatenate([it.base_loss for it in parts]),
        np.concatenate([it.divergence for it in parts]),
        np.concatenate([it.change for it in parts]),
        np.concatenate([it.same_top for it in parts]),
    )


@dataclass(frozen=True)
class Summary:
    """The statistics of :func:`summarise`; shares and probabilities are fractions, not per cent.

    Attributes:
        positions: how many were compared.
        perplexity: of Q.
        base_perplexity: of the base.
        correlation: of both losses.
        log_ratio: ln(PPL(Q) / PPL(base)).
        ratio: PPL(Q) / PPL(base).
        difference: PPL(Q) - PPL(base).
        divergence: mean Kullback-Leibler divergence, nats.
        divergence_percentiles: by share of the positions that lie below (0 and 1: smallest and largest).
        change: mean change of the right token's probability.
        change_rms: root of its mean square.
        change_percentiles: as above.
        same_top: share of positions with the same first token.
    """

    positions: int
    perplexity: Estimate
    base_perplexity: Estimate
    correlation: float
    log_ratio: Mean
    ratio: Mean
    difference: Mean
    divergence: Mean
    divergence_percentiles: Mapping[float, float]
    change: Mean
    change_rms: Mean
    change_percentiles: Mapping[float, float]
    same_top: Mean

    def to_dict(self) -> dict[str, object]:
        """Return plain data with stable keys; percentiles are keyed by per cent (``"99.9"``)."""
        found = asdict(self)
        for key in ("divergence_percentiles", "change_percentiles"):
            found[key] = {f"{100 * share:g}": value for share, value in found[key].items()}
        return found


def summarise(compared: Compared) -> Summary:
    """Return the statistics of n > 0 positions. Errors take positions as independent, and are 0 where n is 10 or less."""
    loss, base_loss = compared.loss, compared.base_loss
    count = len(loss)
    average, base_average = mean(loss, _LEAST_FOR_ERRORS), mean(base_loss, _LEAST_FOR_ERRORS)
    product = (loss - loss.mean()) * (base_loss - base_loss.mean())
    covariance = float(product.mean()) / (count - 1) if count >= 10 else 0.0
    spread = average.error * base_average.error
    log_ratio = average.value - base_average.value
    ratio_error = math.sqrt(max(0.0, average.error**2 + base_average.error**2 - 2 * covariance))
    ppl, base_ppl = estimate(loss), estimate(base_loss)
    difference_error = ppl.error**2 + base_ppl.error**2 - 2 * ppl.value * base_ppl.value * covariance
    square = mean(np.square(compared.change), _LEAST_FOR_ERRORS)
    rms = math.sqrt(square.value)
    share = float(compared.same_top.mean())
    return Summary(
        positions=count,
        perplexity=ppl,
        base_perplexity=base_ppl,
        correlation=covariance / spread if spread else 0.0,
        log_ratio=Mean(log_ratio, ratio_error),
        ratio=Mean(math.exp(log_ratio), math.exp(log_ratio) * ratio_error),
        difference=Mean(ppl.value - base_ppl.value, math.sqrt(max(0.0, difference_error))),
        divergence=mean(compared.divergence, _LEAST_FOR_ERRORS),
        divergence_percentiles=_percentiles(compared.divergence, _KLD_SHARES),
        change=mean(compared.change, _LEAST_FOR_ERRORS),
        change_rms=Mean(rms, 0.5 / rms * square.error if rms else 0.0),
        change_percentiles=_percentiles(compared.change, _CHANGE_SHARES),
        same_top=Mean(share, math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else 0.0),
    )


def _percentiles(values: Doubles, shares: Sequence[float]) -> dict[float, float]:
    """Return values by share, from the largest down: linear interpolation between sorted values at ``share * (n - 1)``."""
    wanted = (1.0, *shares, 0.0)
    return dict(zip(wanted, map(float, np.quantile(values, wanted)), strict=True))


def _compare_rows(base: Floats, logits: Floats, targets: NDArray[np.integer], lowest: float) -> Compared:
    index = np.arange(len(logits))
    normaliser = log_normaliser(logits)
    loss = normaliser - logits[index, targets]
    base_loss = -base[index, targets].astype(np.float64)
    weights = np.exp(base)
    weights[base <= lowest] = 0
    with np.errstate(invalid="ignore"):
        gaps = base - logits + normaliser[:, None].astype(np.float32)
    gaps[weights == 0] = 0  # the difference of two infinities, where both give a token no probability
    divergence = np.einsum("ij,ij->i", weights, gaps, dtype=np.float64)
    same = logits.argmax(axis=1) == base.argmax(axis=1)
    return Compared(loss, base_loss, divergence, np.exp(-loss) - np.exp(-base_loss), same)


def _by_slices(logits: Floats, part: Callable[[slice], Compared]) -> Compared:
    return concatenate([part(rows) for rows in row_slices(*logits.shape)])
