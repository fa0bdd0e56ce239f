"""Several residual streams that every part of a block reads and writes mixtures of: hyper-connections (Zhu et al., arXiv:2409.19606), kept from growing.

What attention or a feed-forward reads is a sum of the streams; what it gives is added to each of them with a share of its own; the streams themselves are
mixed with shares that add up to 1 from either side (manifold-constrained, arXiv:2512.24880). All shares follow from the streams. Streams of a token
lie side by side, float32 (rows, streams * hidden).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import Configuration, StreamMixing
from ..building.layers import HyperConnection
from ..elementwise import rms_norm, sigmoid, softmax
from ..run import Run
from ..weights import product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["even_shares", "join_streams", "mix_streams", "repeat_streams", "spread_result"]


def repeat_streams(configuration: Configuration, hidden: Floats) -> Floats:
    """Return float32 (rows, streams * hidden): ``hidden`` as often as there are streams, or as it is where its rows are streams already."""
    wide = configuration.streams * configuration.hidden
    return hidden if hidden.shape[1] == wide else np.tile(hidden, configuration.streams)


def join_streams(configuration: Configuration, streams: Floats) -> Floats:
    """Return float32 (rows, hidden): the mean of all streams."""
    mean: Floats = streams.reshape(len(streams), -1, configuration.hidden).mean(axis=1)
    return mean


def mix_streams(run: Run, connection: HyperConnection, streams: Floats) -> tuple[Floats, Floats, Floats]:
    """Return what a part reads, float32 (rows, hidden); the shares of its result, (rows, streams); and those of streams in streams, (rows, from, to)."""
    mixing, count = run.configuration.stream_mixing, run.configuration.streams
    assert mixing is not None
    inputs = np.empty_like(streams)
    run.workers.map_rows(
        lambda rows: rms_norm(streams[rows], None, None, run.configuration.epsilon, inputs[rows]), len(streams)
    )
    run.hooks.collect([connection.mixing.matrix], inputs)
    found = product(run.workers, inputs, connection.mixing)
    run.hooks.report(connection.mixing.matrix.name, found)
    found *= np.repeat(connection.scale.decode(), (count, count, count * count))
    found += connection.base.decode()
    reading, writing, passing = (np.ascontiguousarray(it) for it in np.split(found, (count, 2 * count), axis=1))
    sigmoid(reading)
    reading += np.float32(mixing.epsilon)
    sigmoid(writing)
    writing *= np.float32(2.0)
    read = np.matmul(reading[:, None], streams.reshape(len(streams), count, -1))[:, 0]
    return read, writing, even_shares(passing.reshape(-1, count, count), mixing)


def even_shares(logits: Floats, mixing: StreamMixing) -> Floats:
    """Return shares, float32 (n, from, to), that nearly add up to 1 from either side (Sinkhorn and Knopp, 1967); ``logits`` are overwritten."""
    epsilon = np.float32(mixing.epsilon)
    softmax(logits)
    logits += epsilon
    logits /= logits.sum(axis=1, keepdims=True) + epsilon
    for _ in range(mixing.rounds - 1):
        logits /= logits.sum(axis=2, keepdims=True) + epsilon
        logits /= logits.sum(axis=1, keepdims=True) + epsilon
    return logits


def spread_result(result: Floats, writing: Floats, passing: Floats, streams: Floats) -> None:
    """Replace streams, float32 (rows, streams * hidden), by their mixtures, with a share of ``result`` (rows, hidden) added to each."""
    split = streams.reshape(*writing.shape, -1)
    mixed = np.matmul(passing.swapaxes(1, 2), split)
    mixed += writing[:, :, None] * result[:, None]
    split[...] = mixed
