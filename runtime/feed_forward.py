"""Feed-forward parts: gated, plain, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from .building.configuration import Routing
from .building.layers import Dense, Experts
from .elementwise import ACTIVATIONS, JOINING, limit_gate, sigmoid, softmax
from .hooks import Hooks
from .weights import product, products
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["choose_experts", "dense", "mixture", "sparse_dense"]


@dataclass(frozen=True, slots=True)
class _Share:
    """The tokens of one expert: ``rows`` of the run, and ``places``, which of each token's choices it is."""

    expert: int
    rows: NDArray[np.intp]
    places: NDArray[np.intp]


def dense(
    workers: Workers, layer: Dense, activation: str, inputs: Floats, hooks: Hooks, *, limit: float | None = None
) -> Floats:
    """Return float32 (n, hidden), the feed-forward of ``inputs`` (n, hidden).

    With a ``limit`` gates go up to it, and what they are multiplied by from minus it to it.
    """
    hooks.collect([part.matrix for part in (layer.gate, layer.up) if part is not None], inputs)
    (middle,) = _middles(workers, [(inputs, layer)], activation, hooks, limit)
    hooks.collect([layer.down.matrix], middle)
    result = product(workers, middle, layer.down)
    hooks.report(layer.down.matrix.name, result)
    return result


def sparse_dense(workers: Workers, layer: Dense, activation: str, share: float, inputs: Floats, hooks: Hooks) -> Floats:
    """Return as :func:`dense`, but of a token's gate only what lies above the point that leaves out ``share`` of a normal distribution."""
    assert layer.gate is not None
    hooks.collect([layer.gate.matrix, layer.up.matrix], inputs)
    gate, middle = products(workers, [(inputs, layer.gate), (inputs, layer.up)])
    for linear, result in ((layer.gate, gate), (layer.up, middle)):
        hooks.report(linear.matrix.name, result, linear.matrix.first)
    spread, join = np.float32(NormalDist().inv_cdf(share)), _joined(ACTIVATIONS[activation])

    def cut(rows: slice) -> None:
        part = gate[rows]
        part -= part.mean(axis=1, keepdims=True) + spread * part.std(axis=1, keepdims=True)
        np.maximum(part, 0, out=part)
        join(part, middle[rows])

    workers.map_rows(cut, len(gate))
    hooks.collect([layer.down.matrix], middle)
    result = product(workers, middle, layer.down)
    hooks.report(layer.down.matrix.name, result)
    return result


def mixture(
    workers: Workers,
    layer: Experts,
    routing: Routing,
    activation: str,
    inputs: Floats,
    hooks: Hooks,
    routed_by: Floats | None = None,
    *,
    limit: float | None = None,
) -> Floats:
    """Return float32 (n, hidden): what each token's experts make of it, weighted and summed. Only experts with tokens are read.

    The router reads ``routed_by``, ``inputs`` where None. ``limit`` is that of :func:`dense`.
    """
    routed_by = inputs if routed_by is None else routed_by
    hooks.collect([layer.router.matrix], routed_by)
    logits = product(workers, routed_by, layer.router)
    hooks.report(layer.router.matrix.name, logits)
    chosen, weights = choose_experts(logits, routing, None if layer.choice_bias is None else layer.choice_bias.decode())

    if layer.beside is not None and layer.beside.weights is not None:
        weights *= layer.beside.weights.decode()[chosen]
    if layer.enter is not None:
        hooks.collect([layer.enter.matrix], inputs)
        inputs = product(workers, inputs, layer.enter)
        hooks.report(layer.enter.matrix.name, inputs)
    parts = _shares(chosen, len(layer.experts))
    experts = [layer.experts[part.expert] for part in parts]
    shares = [weights[part.rows, part.places][:, None] for part in parts]
    routed = [inputs[part.rows] for part in parts]
    if routing.of_inputs:
        routed = [values * share for values, share in zip(routed, shares, strict=True)]
    for part, expert, values in zip(parts, experts, routed, strict=True):
        matrices = [linear.matrix for linear in (expert.gate, expert.up) if linear is not None]
        hooks.collect(matrices, values, part.rows, part.expert)
    middles = _middles(workers, list(zip(routed, experts, strict=True)), activation, limit=limit)
    for part, expert, values in zip(parts, experts, middles, strict=True):
        hooks.collect([expert.down.matrix], values, part.rows, part.expert)
    results = products(workers, [(values, expert.down) for values, expert in zip(middles, experts, strict=True)])

    out = np.zeros_like(inputs)
    for part, share, result in zip(parts, shares, results, strict=True):
        if not routing.of_inputs:
            result *= share
        out[part.rows] += result
    hooks.report(layer.experts[0].down.matrix.name, out)
    if layer.leave is not None:
        hooks.collect([layer.leave.matrix], out)
        out = product(workers, out, layer.leave)
        hooks.report(layer.leave.matrix.name, out)
    return out


def choose_experts(
    logits: Floats, routing: Routing, choice_bias: Floats | None = None
) -> tuple[NDArray[np.intp], Floats]:
    """Return the experts of each token, intp (n, used), and their weights, float32 (n, used); ``logits`` (n, experts) are overwritten."""
    scores = logits.copy() if routing.of_inputs else logits
    (sigmoid if routing.gating == "sigmoid" else softmax)(scores)
    preference = scores if choice_bias is None else scores + choice_bias
    if logits is not scores and choice_bias is None and routing.groups_used == routing.groups:
        preference = logits  # whose order scores that are all 1 in float32 do not hide
    if routing.groups_used < routing.groups:
        preference = _within_groups(preference, routing)
    chosen = np.argsort(-preference, axis=1, kind="stable")[:, : routing.used]
    weights = np.take_along_axis(scores, chosen, axis=1)
    if routing.normalised:
        weights /= weights.sum(axis=1, keepdims=True)
    weights *= np.float32(routing.scale)
    return chosen, weights


def _within_groups(preference: Floats, routing: Routing) -> Floats:
    """Return preferences with those of experts outside of each token's best groups at minus infinity."""
    grouped = preference.reshape(len(preference), routing.groups, -1)
    best = np.sort(grouped, axis=2)[:, :, -1:] if routing.by_maximum else np.sort(grouped, axis=2)[:, :, -2:]
    order = np.argsort(-best.sum(axis=2), axis=1, kind="stable")[:, routing.groups_used :]
    kept = grouped.copy()
    np.put_along_axis(kept, order[:, :, None], np.float32(-np.inf), axis=1)
    return kept.reshape(preference.shape)


def _shares(chosen: NDArray[np.intp], experts: int) -> list[_Share]:
    """Return the tokens of every expert that ``chosen`` (n, used) names."""
    found = (_Share(expert, *np.nonzero(chosen == expert)) for expert in range(experts))
    return [share for share in found if len(share.rows)]


def _middles(
    workers: Workers,
    pairs: Sequence[tuple[Floats, Dense]],
    activation: str,
    hooks: Hooks | None = None,
    limit: float | None = None,
) -> list[Floats]:
    """Return what goes into the down projection for each (inputs, feed-forward): float32 (n, width).

    A slab of the gate and the same of the up projection are one task, so that the gate's result never exists as a whole.
    """
    middles = [np.empty((len(inputs), layer.up.matrix.rows), np.float32) for inputs, layer in pairs]
    traced = hooks is not None and hooks.trace is not None
    join = JOINING.get(activation) or _joined(ACTIVATIONS[activation])

    def compute(task: tuple[int, slice]) -> list[tuple[str, int, Floats]]:
        """Fill some columns; return what to report."""
        number, rows = task
        inputs, layer = pairs[number]
        result = middles[number][:, rows]
        layer.up.apply(inputs, rows, result)
        first = layer.up.matrix.first + rows.start
        reports = [(layer.up.matrix.name, first, result.copy())] if traced else []
        if layer.gate is None:
            ACTIVATIONS[activation](result)
            return reports
        gate = np.empty(result.shape, np.float32)
        layer.gate.apply(inputs, rows, gate)
        if traced:
            reports.insert(0, (layer.gate.matrix.name, layer.gate.matrix.first + rows.start, gate.copy()))
        if limit is not None:
            limit_gate(gate, result, limit)
        join(gate, result)
        return reports

    tasks = [(number, rows) for number, (_, layer) in enumerate(pairs) for rows in layer.up.matrix.slabs()]
    for reports in workers.map(compute, tasks):
        for name, first, values in reports:
            if hooks is not None:
                hooks.report(name, values, first)
    return middles


def _joined(activate: Callable[[Floats], None]) -> Callable[[Floats, Floats], None]:
    """Return the function of gate and up that multiplies up by the activated gate."""

    def join(gate: Floats, up: Floats) -> None:
        activate(gate)
        up *= gate

    return join
