"""Choose a type for every tensor so that the sum of errors is small and the sum of sizes within a budget.

This is the multiple-choice knapsack problem. Two ways lead to a first answer. A Lagrangian sweep trades bytes for error at one price for all tensors:
each tensor's options that no mixture of two others beats (the lower convex hull of size and error) form a chain, and the steps of all
chains are taken in the order of error saved per byte, as long as they fit. It is all but exact for many tensors, and coarse for few. Dynamic
programming over sizes rounded up to a fine grid is exact for few tensors, and coarse for many. The better answer is then improved by
exchange: single changes, and pairs of one that frees bytes and one that uses them, while the error falls. The result depends on nothing but
the arguments.

Source: H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems (2004), chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

__all__ = ["Options", "bounds", "solve"]

_MOST_EXCHANGES = 10_000
_GRID = 1 << 14


@dataclass(frozen=True)
class Options:
    """What one tensor may become.

    Attributes:
        sizes: int64 (n,), bytes of each option.
        errors: float64 (n,), what each costs; lower is better.
    """

    sizes: NDArray[np.int64]
    errors: NDArray[np.float64]


def bounds(tensors: Sequence[Options]) -> tuple[int, int]:
    """Return the smallest and the largest number of bytes that all tensors can take together."""
    return sum(int(it.sizes.min()) for it in tensors), sum(int(it.sizes.max()) for it in tensors)


def solve(tensors: Sequence[Options], budget: int) -> list[int]:
    """Return the number of the option of each tensor; all sizes add up to ``budget`` bytes at most.

    Raises UsageError, with both bounds, where the budget is below the smallest possible size.
    """
    least, most = bounds(tensors)
    if budget < least:
        raise UsageError(f"{budget:,} bytes are too few: the tensors take between {least:,} and {most:,}")
    chosen = min(_sweep(tensors, budget), _on_grid(tensors, budget), key=lambda it: _total(tensors, it)[1])
    _exchange(tensors, chosen, budget - _total(tensors, chosen)[0])
    return chosen


def _total(tensors: Sequence[Options], chosen: Sequence[int]) -> tuple[int, float]:
    """Return the bytes and the error of a choice."""
    pairs = list(zip(tensors, chosen, strict=True))
    return sum(int(it.sizes[option]) for it, option in pairs), sum(float(it.errors[option]) for it, option in pairs)


def _sweep(tensors: Sequence[Options], budget: int) -> list[int]:
    """Take the steps of all chains by error saved per byte."""
    hulls = [_hull(it) for it in tensors]
    chosen = [hull[0] for hull in hulls]
    used = _total(tensors, chosen)[0]
    for _, tensor, before, after in _steps(tensors, hulls):
        added = int(tensors[tensor].sizes[after] - tensors[tensor].sizes[before])
        if chosen[tensor] == before and used + added <= budget:  # a chain ends at the first step that does not fit
            chosen[tensor] = after
            used += added
    return chosen


def _on_grid(tensors: Sequence[Options], budget: int) -> list[int]:
    """Return the exact answer for sizes rounded up to a grid: never over budget, at worst a grid step too small per tensor."""
    slack = budget - bounds(tensors)[0]
    step = max(1, -(-slack // _GRID))
    cells = slack // step + 1
    lowest = np.zeros(cells)  # the least error of the tensors so far within so many steps
    taken = np.empty((len(tensors), cells), np.int32)
    for row, it in enumerate(tensors):
        steps = -(-(it.sizes - it.sizes.min()) // step)
        found = np.full(cells, np.inf)
        for option in np.argsort(it.sizes, kind="stable"):
            first = int(steps[option])
            if first >= cells:
                continue
            candidate = lowest[: cells - first] + it.errors[option]
            better = candidate < found[first:]
            found[first:][better] = candidate[better]
            taken[row, first:][better] = option
        lowest = found
    chosen, cell = [0] * len(tensors), cells - 1
    for row in reversed(range(len(tensors))):
        it = tensors[row]
        chosen[row] = int(taken[row, cell])
        cell -= int(-(-(it.sizes[chosen[row]] - it.sizes.min()) // step))
    return chosen


def _hull(options: Options) -> list[int]:
    """Return the options on the lower convex hull of (size, error), by size."""
    order = np.lexsort((options.errors, options.sizes))
    hull: list[int] = []
    for option in map(int, order):
        if hull and options.errors[option] >= options.errors[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(options, hull[-2], option) <= _slope(options, hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(options: Options, before: int, after: int) -> float:
    """Error per byte from one option to a larger one; the steeper, the more negative."""
    saved = float(options.errors[after] - options.errors[before])
    return saved / float(max(1, options.sizes[after] - options.sizes[before]))


def _steps(tensors: Sequence[Options], hulls: Sequence[Sequence[int]]) -> list[tuple[float, int, int, int]]:
    """Return every step (slope, tensor, from, to) of all chains, the best first."""
    return sorted(
        (_slope(tensors[tensor], before, after), tensor, before, after)
        for tensor, hull in enumerate(hulls)
        for before, after in pairwise(hull)
    )


def _exchange(tensors: Sequence[Options], chosen: list[int], slack: int) -> None:
    """Improve ``chosen`` within ``slack`` more bytes: the best change of one tensor, or of two, while there is one."""
    width = max(len(it.sizes) for it in tensors)
    sizes, errors = np.zeros((len(tensors), width)), np.full((len(tensors), width), np.inf)
    for row, it in enumerate(tensors):
        sizes[row, : len(it.sizes)], errors[row, : len(it.errors)] = it.sizes, it.errors
    rows = np.arange(len(tensors))
    for _ in range(_MOST_EXCHANGES):
        more = sizes - sizes[rows, chosen][:, None]
        worse = errors - errors[rows, chosen][:, None]
        found = _best_pair(more, worse, slack)
        if not found:
            return
        for tensor, option in found:
            slack -= int(more[tensor, option])
            chosen[tensor] = option


def _best_pair(more: NDArray[np.float64], worse: NDArray[np.float64], slack: int) -> list[tuple[int, int]]:
    """Return the change of one or two tensors that lowers the error most, or nothing.

    ``more`` and ``worse``, float64 (tensors, options), are the bytes and the error that each change adds.
    """
    fits = np.where(more <= slack, worse, np.inf)
    best = -1e-12 * float(np.abs(worse[np.isfinite(worse)]).max(initial=0))
    found: list[tuple[int, int]] = []
    at = int(fits.argmin())
    if fits.flat[at] < best:
        best, found = float(fits.flat[at]), [divmod(at, fits.shape[1])]
    # a change that frees bytes, and with them the best of another tensor: by size, so that what fits is a prefix
    by_size = np.argsort(more, axis=None, kind="stable")
    costs, added, owners = worse.flat[by_size], more.flat[by_size], by_size // more.shape[1]
    first, second = _two_best_prefixes(costs, owners)
    for change in map(int, np.flatnonzero((more < 0) & np.isfinite(worse))):
        reach = int(np.searchsorted(added, slack - more.flat[change], side="right")) - 1
        partner = first[reach] if owners[first[reach]] != change // more.shape[1] else second[reach]
        if reach < 0 or partner < 0:
            continue
        total = float(worse.flat[change] + costs[partner])
        if total < best:
            best, found = total, [divmod(change, more.shape[1]), divmod(int(by_size[partner]), more.shape[1])]
    return found


def _two_best_prefixes(
    costs: NDArray[np.float64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for every prefix where its lowest cost is, and where the lowest of any other owner is (-1: nowhere)."""
    first, second = np.full(len(costs), -1), np.full(len(costs), -1)
    one, two = 0, -1
    for place in range(len(costs)):
        if costs[place] < costs[one]:
            two = one if owners[one] != owners[place] else two
            one = place
        elif owners[place] != owners[one] and (two < 0 or costs[place] < costs[two]):
            two = place
        first[place], second[place] = one, two
    return first, second
