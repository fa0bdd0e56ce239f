"""A choice of types for people: one line for all tensors of a kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .fit import Fit

__all__ = ["Group", "choice_groups"]


@dataclass(frozen=True)
class Group:
    """The tensors of all blocks that share a name, or one outside of the blocks.

    Attributes:
        name: such as ``attn_q.weight``.
        types: how many tensors got each encoding, the most frequent first.
        nbytes: of all together.
        predicted: sum of their costs.
    """

    name: str
    types: Mapping[str, int]
    nbytes: int
    predicted: float


def choice_groups(fit: Fit) -> list[Group]:
    """Return the groups of a fit, the costliest first."""
    types: dict[str, Counter[str]] = {}
    sizes: Counter[str] = Counter()
    costs: dict[str, float] = {}
    for it in fit.costs:
        name = re.sub(r"^blk\.\d+\.", "", it.name)
        place = [one.encoding for one in it.candidates].index(fit.chosen[it.name])
        types.setdefault(name, Counter())[fit.chosen[it.name]] += 1
        sizes[name] += it.candidates[place].nbytes
        costs[name] = costs.get(name, 0.0) + float(it.costs()[place])
    groups = [Group(name, dict(types[name].most_common()), sizes[name], costs[name]) for name in types]
    return sorted(groups, key=lambda it: (-it.predicted, it.name))
