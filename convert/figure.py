"""Figures of a divergence, drawn with matplotlib, which is an optional dependency."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import UsageError
from ..formats.whole_file import whole_file

if TYPE_CHECKING:
    from ..runtime.measuring.divergence import Compared
    from ..runtime.measuring.windows import Windows

__all__ = ["check_figure", "draw_divergence"]

_KINDS: Final = (".png", ".svg", ".pdf")
_SHARES: Final = np.concatenate([np.linspace(0.005, 0.9, 91), 1 - np.geomspace(0.1, 1e-3, 60)])
_FLOOR = 1e-7  # of the logarithmic axis: truncated sums may be a little below zero


def check_figure(path: Path) -> None:
    """Raise UsageError, before any work is done, for a file that cannot be drawn."""
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"a figure cannot be a {path.suffix or 'nameless'} file", remedy="Use .png, .svg or .pdf.")
    try:
        import matplotlib  # noqa: F401  # asked for, not used: drawing happens after hours of work
    except ImportError:
        raise UsageError("--figure needs matplotlib", remedy="Install it: pip install 'qconv[figures]'.") from None


def draw_divergence(path: Path, compared: Compared, windows: Windows, title: str) -> None:
    """Draw the divergence by position in the window, and its percentiles, to a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    scored = windows.scored_per_window
    values = np.maximum(compared.divergence, _FLOOR)
    by_position = values.reshape(-1, scored)
    positions = np.arange(scored) + windows.first_scored
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for share, label, style in ((0.99, "99 %", ":"), (0.9, "90 %", "--"), (0.5, "median", "-")):
        left.plot(positions, np.quantile(by_position, share, axis=0), style, linewidth=1, label=label)
    left.plot(positions, by_position.mean(axis=0), color="black", linewidth=1.2, label="mean")
    left.set(xlabel="position in the window", ylabel="KL divergence, nats", yscale="log")
    left.legend(frameon=False)
    right.plot(100 * _SHARES, np.quantile(values, _SHARES), color="black", linewidth=1.2)
    right.axhline(float(compared.divergence.mean()), color="gray", linestyle="--", linewidth=1)
    right.set(xlabel="per cent of positions below", ylabel="KL divergence, nats", yscale="log")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    with whole_file(path) as file:
        file.write(buffer.getvalue())
