"""The figure of a choice of types: size against divergence, beside other sizes and the named mixtures; drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ...formats.whole_file import whole_file
from .front import Front, Point

__all__ = ["draw_front"]


def draw_front(path: Path, front: Front, title: str) -> None:
    """Draw a front to a PNG, SVG or PDF file; what is measured where it was measured, and what was predicted as a line beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    measured = front.goal.measured is not None
    sizes = [it.size / 1e6 for it in front.chosen]
    if measured:
        predicted = [it.predicted for it in front.chosen]
        axes.plot(sizes, predicted, ":", color="gray", linewidth=1, label="types chosen for a size, predicted")
    axes.plot(sizes, _values(front.chosen), "s-", color="#2f6f9f", markersize=4, label="types chosen for a size")
    if front.mixtures:
        places = [it.size / 1e6 for it in front.mixtures]
        axes.plot(places, _values(front.mixtures), "o", color="#b04a3a", markersize=4, label="named mixtures")
    for it, value in zip(front.mixtures, _values(front.mixtures), strict=True):
        axes.annotate(it.label, (it.size / 1e6, value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    (chosen,) = _values([front.goal])
    axes.plot([front.goal.size / 1e6], [chosen], "*", color="black", markersize=11, label="this choice")
    quantity = "mean KL divergence, nats" if measured else "predicted sum of relative errors"
    axes.set(xlabel="file, MB", ylabel=quantity, yscale="log", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    kind = path.suffix[1:].lower()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    with whole_file(path) as file:
        file.write(buffer.getvalue())


def _values(points: Sequence[Point]) -> list[float]:
    return [it.predicted if it.measured is None else it.measured for it in points]
