"""Feed-forward parts: gated, plain, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .configuration import Configuration
from .elementwise import ACTIVATIONS, softmax
from .hooks import Hooks
from .network import Dense, Experts
from .weights import Matrix, WeightStream, vector_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["dense", "dense_slabs", "mixture"]


def dense_slabs(layer: Dense) -> list[Matrix]:
    """Return the slabs of a feed-forward in the order in which :func:`dense` takes them: gate and up in turns, then down."""
    up, down = layer.up.matrix.slabs(), layer.down.matrix.slabs()
    if layer.gate is None:
        return [*up, *down]
    return [slab for pair in zip(layer.gate.matrix.slabs(), up, strict=True) for slab in pair] + down


def dense(
    stream: WeightStream,
    configuration: Configuration,
    layer: Dense,
    inputs: Floats,
    hooks: Hooks,
    *,
    rows: NDArray[np.intp] | None = None,
    expert: int | None = None,
) -> Floats:
    """Return float32 (n, hidden), the feed-forward of ``inputs`` (n, hidden), whose slabs have been announced.

    ``rows`` and ``expert`` are for the hooks, where this is one expert of a mixture.
    """
    matrices = [part.matrix for part in (layer.gate, layer.up) if part is not None]
    hooks.collect(matrices, inputs, rows, expert)
    activate = ACTIVATIONS[configuration.facts.activation]
    middle = np.empty((len(inputs), layer.up.matrix.rows), np.float32)
    biases = [
        None if part is None or part.bias is None else vector_values(part.bias) for part in (layer.gate, layer.up)
    ]
    for slab in layer.up.matrix.slabs():
        columns = slice(slab.first - layer.up.matrix.first, slab.first - layer.up.matrix.first + slab.rows)
        result = middle[:, columns]
        products: list[Floats] = []
        for part, bias in zip((layer.gate, layer.up), biases, strict=True):
            if part is None:
                continue
            window = part.matrix.window(columns.start, columns.stop)
            product = np.empty((len(inputs), slab.rows), np.float32) if part is layer.gate else result
            stream.multiply(inputs, window, product)
            if bias is not None:
                product += bias[columns]
            if expert is None:
                hooks.report(window.name, product, window.first)
            products.append(product)
        activate(products[0])
        if len(products) == 2:
            result *= products[0]
    hooks.collect([layer.down.matrix], middle, rows, expert)
    out = stream.product(middle, layer.down.matrix)
    if layer.down.bias is not None:
        out += vector_values(layer.down.bias)
    if expert is None:
        hooks.report(layer.down.matrix.name, out)
    return out


def mixture(stream: WeightStream, configuration: Configuration, layer: Experts, inputs: Floats, hooks: Hooks) -> Floats:
    """Return float32 (n, hidden): each token's experts, by softmax of the router and the largest few, weighted by shares that sum to 1.

    The router's slabs have been announced; only experts with tokens are read.
    """
    hooks.collect([layer.router], inputs)
    shares = stream.product(inputs, layer.router)
    hooks.report(layer.router.name, shares)
    softmax(shares)
    chosen = np.argsort(-shares, axis=1, kind="stable")[:, : configuration.experts_used]
    weights = np.take_along_axis(shares, chosen, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    assigned = _assignments(chosen, len(layer.experts))
    for expert, _ in assigned:
        stream.expect(dense_slabs(layer.experts[expert]))
    out = np.zeros_like(inputs)
    for expert, (rows, places) in assigned:
        result = dense(stream, configuration, layer.experts[expert], inputs[rows], hooks, rows=rows, expert=expert)
        result *= weights[rows, places][:, None]
        out[rows] += result
    hooks.report(layer.experts[0].down.matrix.name, out)
    return out


def _assignments(
    chosen: NDArray[np.intp], experts: int
) -> Sequence[tuple[int, tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Return (expert, (tokens, which of their choices it is)) for every expert that was chosen."""
    found = ((expert, np.nonzero(chosen == expert)) for expert in range(experts))
    return [(expert, (pair[0], pair[1])) for expert, pair in found if len(pair[0])]
