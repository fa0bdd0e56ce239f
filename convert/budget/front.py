"""What other sizes would cost: types chosen for sizes around a goal, and the named mixtures among them, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError
from ...runtime.measuring.windows import Windows
from ..plan import Plan
from ..progress import Bar, no_bar
from ..settings import Budget
from .fit import Fit, Request, choose, mixtures, predict
from .sensitivity import base_rows, divergence

__all__ = ["Front", "Point", "trace_front"]

_SHARES = np.geomspace(0.7, 1.45, 9)  # of the chosen size
_NEAR = (0.65, 1.6)  # mixtures outside of these shares are left out


@dataclass(frozen=True, slots=True)
class Point:
    """One way to choose types.

    Attributes:
        label: name of a mixture; empty for types that were chosen for a size.
        size: bytes of the file.
        predicted: sum of costs, as :attr:`.Fit.predicted`.
        measured: mean divergence from the source in nats on the text that sensitivities were measured on, None without a text.
    """

    label: str
    size: int
    predicted: float
    measured: float | None


@dataclass(frozen=True)
class Front:
    """A choice among others.

    Attributes:
        goal: the choice.
        chosen: types chosen for other sizes, and the goal, by size.
        mixtures: named mixtures of about the same size, by size.
    """

    goal: Point
    chosen: tuple[Point, ...]
    mixtures: tuple[Point, ...]


def trace_front(request: Request, done: Fit, windows: Windows | None = None, bar: Bar = no_bar) -> Front:
    """Return what the sizes around a fit cost; with ``windows`` each point takes a pass of the text, and one more for the source.

    Raises what plans and networks raise.
    """
    drafts: dict[tuple[str, int], tuple[Plan, float]] = {}
    goal = ("", done.size)
    drafts[goal] = request.plan(done.settings(request.settings)), done.predicted
    for share in _SHARES:
        try:
            found = choose(request, Budget(size=int(share * done.size)), done.costs, done.measured)
        except UsageError:  # out of bounds
            continue
        drafts.setdefault(("", found.size), (request.plan(found.settings(request.settings)), found.predicted))
    for name, plan, chosen in mixtures(request, done.costs):
        if _NEAR[0] * done.size <= plan.layout.size <= _NEAR[1] * done.size:
            drafts[name, plan.layout.size] = plan, predict(done.costs, chosen)
    measured = _measure(request, {key: plan for key, (plan, _) in drafts.items()}, windows, bar)
    points = {key: Point(*key, predicted, measured.get(key)) for key, (_, predicted) in drafts.items()}
    by_size = sorted(points.values(), key=lambda it: (it.size, it.label))
    return Front(points[goal], tuple(it for it in by_size if not it.label), tuple(it for it in by_size if it.label))


def _measure(
    request: Request, plans: Mapping[tuple[str, int], Plan], windows: Windows | None, bar: Bar
) -> dict[tuple[str, int], float]:
    """Return the divergence of each plan's result."""
    if windows is None:
        return {}
    threads = request.settings.threads
    found = {}
    with bar("measuring sizes", len(plans)) as advance:
        base = base_rows(request.model, windows, threads)
        for key, plan in plans.items():
            types = {step.source.name: step.target.encoding for step in plan.steps if step.target.encoding.is_quantized}
            found[key] = divergence(request.model, types, request.rounding, base, windows, threads)
            advance(f"{key[1]:,} bytes: {found[key]:.4g}")
    return found
