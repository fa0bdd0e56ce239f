"""What every block learns of a token by itself (Gemma 3n and 4): looked up per token and block, mixed with a projection of the token's embedding.

A block takes it up behind its feed-forward: its own input of the token, times an activated gate of the residual stream, projected, normalised, added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...formats.base import Tensor
from ..building.layers import Block, Norm
from ..elementwise import ACTIVATIONS
from ..norms import norm_function
from ..run import Run
from ..weights import Linear, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["LayerEmbedding", "layer_addition", "layer_inputs", "look_up"]

_NEARBY_ROWS = 8  # embeddings of tokens this close are read in one go


@dataclass(frozen=True, slots=True)
class LayerEmbedding:
    """Where the inputs of all blocks come from.

    Attributes:
        embedding: (vocabulary, layers * width).
        projection: (layers * width, hidden): of the token's embedding.
        norm: of each block's part of that projection.
    """

    embedding: Tensor
    projection: Linear
    norm: Norm


def look_up(embedding: Tensor, tokens: Sequence[NDArray[np.intp]]) -> Floats:
    """Return float32 (tokens of all sequences, columns): a row of a table for each; every row is read once."""
    unique, inverse = np.unique(np.concatenate(tokens), return_inverse=True)
    gathered = np.empty((len(unique), embedding.columns), np.float32)
    for near in np.split(np.arange(len(unique)), np.nonzero(np.diff(unique) > _NEARBY_ROWS)[0] + 1):
        first, last = int(unique[near[0]]), int(unique[near[-1]])
        gathered[near] = embedding.rows(first, last + 1)[unique[near] - first]
    found: Floats = gathered[inverse]
    return found


def layer_inputs(run: Run, source: LayerEmbedding, tokens: Sequence[NDArray[np.intp]], hidden: Floats) -> Floats:
    """Return float32 (rows, layers, width): the blocks' inputs of each token, whose embeddings, as the first block has them, are ``hidden``."""
    width = run.configuration.layer_input
    run.hooks.collect([source.projection.matrix], hidden)
    mixed = product(run.workers, hidden, source.projection)
    run.hooks.report(source.projection.matrix.name, mixed)
    mixed *= np.float32(1.0 / math.sqrt(run.configuration.hidden))
    normalise = norm_function(run.configuration, source.norm)
    run.workers.map_rows(
        lambda rows: normalise(mixed[rows].reshape(-1, width), mixed[rows].reshape(-1, width)), len(mixed)
    )
    known = look_up(source.embedding, tokens)
    known *= np.float32(math.sqrt(width))
    mixed += known
    mixed *= np.float32(math.sqrt(0.5))
    run.hooks.report(source.embedding.name, mixed)
    return mixed.reshape(len(hidden), -1, width)


def layer_addition(run: Run, block: Block, hidden: Floats) -> Floats:
    """Return float32 (rows, hidden): what a block with an input of its own makes of it, gated by ``hidden``, to be added to the stream."""
    layer = block.layer_input
    assert layer is not None
    assert run.layer_inputs is not None
    run.hooks.collect([layer.gate.matrix], hidden)
    gate = product(run.workers, hidden, layer.gate)
    run.hooks.report(layer.gate.matrix.name, gate)
    activate, own = ACTIVATIONS[run.configuration.facts.activation], run.layer_inputs[:, block.index]

    def join(rows: slice) -> None:
        activate(gate[rows])
        gate[rows] *= own[rows]

    run.workers.map_rows(join, len(gate))
    run.hooks.collect([layer.projection.matrix], gate)
    result = product(run.workers, gate, layer.projection)
    run.hooks.report(layer.projection.matrix.name, result)
    normalise = norm_function(run.configuration, layer.after)
    run.workers.map_rows(lambda rows: normalise(result[rows], result[rows]), len(result))
    return result
