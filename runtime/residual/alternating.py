"""Several residual streams of which a block computes one (Gemma 3n): alternating updates (AltUp, arXiv:2301.13310) and learned residuals (LAuReL).

A block predicts all streams by mixing them, runs attention and feed-forward on the first prediction, and corrects every stream by what that changed.
Streams of a token lie side by side, float32 (rows, streams * hidden); the first is the active one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..building.layers import Alternating
from ..norms import norm_function
from ..run import Run
from ..weights import Linear, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Streams", "correct_streams", "learned_residual", "merge_streams", "open_streams", "predict_streams"]

_LEAST = np.float32(1e-5)  # mean square of a stream, below which it is not made larger


@dataclass(frozen=True, slots=True)
class Streams:
    """How streams begin and end.

    Attributes:
        opening: (hidden, hidden) for each stream but the first: what it is made of.
        closing: the same for what it becomes at the end.
    """

    opening: tuple[Linear, ...]
    closing: tuple[Linear, ...]


def open_streams(run: Run, streams: Streams, hidden: Floats) -> Floats:
    """Return float32 (rows, streams * hidden): the embeddings, and projections of them of the same magnitude."""
    size = _magnitude(hidden)
    return np.concatenate([hidden, *(_projected(run, it, n, hidden, size) for n, it in enumerate(streams.opening))], 1)


def merge_streams(run: Run, streams: Streams, hidden: Floats) -> Floats:
    """Return float32 (rows, hidden): the mean of the first stream and of projections of the others, of the first one's magnitude."""
    first, *others = np.split(hidden, len(streams.closing) + 1, axis=1)
    total, size = first.copy(), _magnitude(first)
    for number, (linear, other) in enumerate(zip(streams.closing, others, strict=True)):
        total += _projected(run, linear, number, np.ascontiguousarray(other), size)
    total *= np.float32(1.0 / (1 + len(others)))
    return total


def _magnitude(values: Floats) -> Floats:
    """Return float32 (rows, 1): the root mean square of each row."""
    found: Floats = np.sqrt(np.einsum("ij,ij->i", values, values) / np.float32(values.shape[1]))[:, None]
    return found


def _projected(run: Run, linear: Linear, number: int, inputs: Floats, size: Floats) -> Floats:
    run.hooks.collect([linear.matrix], inputs, np.arange(len(inputs)), number)
    result = product(run.workers, inputs, linear)
    run.hooks.report(linear.matrix.name, result, linear.matrix.first)
    result *= size / np.maximum(_magnitude(result), np.sqrt(_LEAST))
    return result


def _shares(run: Run, layer: Alternating, values: Floats, *, told: bool) -> Floats:
    """Return float32 (rows, streams), from -1 to 1: what a row says about how streams are to be mixed.

    The router is asked twice in a block; ``told`` says whether the trace hears of it.
    """
    inputs = np.empty_like(values)
    norm_function(run.configuration, layer.router_norm)(values, inputs)
    inputs *= np.float32(1.0 / run.configuration.hidden)
    run.hooks.collect([layer.router.matrix], inputs)
    found = product(run.workers, inputs, layer.router)
    if told:
        run.hooks.report(layer.router.matrix.name, found)
    return np.tanh(found, out=found)


def _coefficients(run: Run, linear: Linear, shares: Floats) -> Floats:
    run.hooks.collect([linear.matrix], shares)
    found = product(run.workers, shares, linear)
    run.hooks.report(linear.matrix.name, found)
    return found


def predict_streams(run: Run, layer: Alternating, streams: Floats) -> Floats:
    """Return float32 (rows, streams, hidden): each stream and a mixture of all."""
    rows, count, _ = streams.shape
    mixing = _coefficients(run, layer.predict, _shares(run, layer, np.ascontiguousarray(streams[:, 0]), told=True))
    result: Floats = np.matmul(mixing.reshape(rows, count, count), streams)
    result += streams
    return result


def correct_streams(run: Run, layer: Alternating, predicted: Floats, active: Floats) -> None:
    """Add to every stream, in place, a share of what the block made of the first prediction."""
    shares = _coefficients(run, layer.correct, _shares(run, layer, active, told=False))
    shares += np.float32(1.0)
    change = active - predicted[:, 0]
    predicted += shares[:, :, None] * change[:, None]


def learned_residual(run: Run, layer: Alternating, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): the inputs, and a normalised product of low rank of them."""
    run.hooks.collect([layer.left.matrix], inputs)
    middle = product(run.workers, inputs, layer.left)
    run.hooks.report(layer.left.matrix.name, middle)
    run.hooks.collect([layer.right.matrix], middle)
    result = product(run.workers, middle, layer.right)
    run.hooks.report(layer.right.matrix.name, result)
    norm_function(run.configuration, layer.learned_after)(result, result)
    result += inputs
    return result
