"""Feed-forward parts: gated, plain, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .elementwise import ACTIVATIONS, softmax
from .hooks import Hooks
from .network import Dense, Experts
from .weights import product, products
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["dense", "mixture"]


@dataclass(frozen=True, slots=True)
class _Share:
    """The tokens of one expert: ``rows`` of the run, and ``places``, which of each token's choices it is."""

    expert: int
    rows: NDArray[np.intp]
    places: NDArray[np.intp]


def dense(workers: Workers, layer: Dense, activation: str, inputs: Floats, hooks: Hooks) -> Floats:
    """Return float32 (n, hidden), the feed-forward of ``inputs`` (n, hidden)."""
    hooks.collect([part.matrix for part in (layer.gate, layer.up) if part is not None], inputs)
    (middle,) = _middles(workers, [(inputs, layer)], activation, hooks)
    hooks.collect([layer.down.matrix], middle)
    result = product(workers, middle, layer.down)
    hooks.report(layer.down.matrix.name, result)
    return result


def mixture(workers: Workers, layer: Experts, used: int, activation: str, inputs: Floats, hooks: Hooks) -> Floats:
    """Return float32 (n, hidden): each token's ``used`` experts, chosen by softmax of the router, their shares scaled to sum to 1.

    Only experts with tokens are read.
    """
    hooks.collect([layer.router.matrix], inputs)
    shares = product(workers, inputs, layer.router)
    hooks.report(layer.router.matrix.name, shares)
    softmax(shares)
    chosen = np.argsort(-shares, axis=1, kind="stable")[:, :used]
    weights = np.take_along_axis(shares, chosen, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)

    parts = _shares(chosen, len(layer.experts))
    experts = [layer.experts[part.expert] for part in parts]
    routed = [inputs[part.rows] for part in parts]
    for part, expert, values in zip(parts, experts, routed, strict=True):
        matrices = [linear.matrix for linear in (expert.gate, expert.up) if linear is not None]
        hooks.collect(matrices, values, part.rows, part.expert)
    middles = _middles(workers, list(zip(routed, experts, strict=True)), activation)
    for part, expert, values in zip(parts, experts, middles, strict=True):
        hooks.collect([expert.down.matrix], values, part.rows, part.expert)
    results = products(workers, [(values, expert.down) for values, expert in zip(middles, experts, strict=True)])

    out = np.zeros_like(inputs)
    for part, result in zip(parts, results, strict=True):
        result *= weights[part.rows, part.places][:, None]
        out[part.rows] += result
    hooks.report(layer.experts[0].down.matrix.name, out)
    return out


def _shares(chosen: NDArray[np.intp], experts: int) -> list[_Share]:
    """Return the tokens of every expert that ``chosen`` (n, used) names."""
    found = (_Share(expert, *np.nonzero(chosen == expert)) for expert in range(experts))
    return [share for share in found if len(share.rows)]


def _middles(
    workers: Workers, pairs: Sequence[tuple[Floats, Dense]], activation: str, hooks: Hooks | None = None
) -> list[Floats]:
    """Return what goes into the down projection for each (inputs, feed-forward): float32 (n, width).

    A slab of the gate and the same of the up projection are one task, so that the gate's result never exists as a whole.
    """
    middles = [np.empty((len(inputs), layer.up.matrix.rows), np.float32) for inputs, layer in pairs]
    traced = hooks is not None and hooks.trace is not None
    activate = ACTIVATIONS[activation]

    def compute(task: tuple[int, slice]) -> list[tuple[str, int, Floats]]:
        """Fill some columns; return what to report."""
        number, rows = task
        inputs, layer = pairs[number]
        result = middles[number][:, rows]
        layer.up.apply(inputs, rows, result)
        first = layer.up.matrix.first + rows.start
        reports = [(layer.up.matrix.name, first, result.copy())] if traced else []
        if layer.gate is None:
            activate(result)
            return reports
        gate = np.empty(result.shape, np.float32)
        layer.gate.apply(inputs, rows, gate)
        if traced:
            reports.insert(0, (layer.gate.matrix.name, layer.gate.matrix.first + rows.start, gate.copy()))
        activate(gate)
        result *= gate
        return reports

    tasks = [(number, rows) for number, (_, layer) in enumerate(pairs) for rows in layer.up.matrix.slabs()]
    for reports in workers.map(compute, tasks):
        for name, first, values in reports:
            if hooks is not None:
                hooks.report(name, values, first)
    return middles
