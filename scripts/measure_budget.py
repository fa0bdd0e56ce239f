"""Named mixtures beside types chosen for the same size, rounded plainly and with error feedback: mean KL divergence from the source, and a figure.

    python scripts/measure_budget.py MODEL --calibration TEXT --held-out TEXT [--moments FILE] [--baseline TABLE] [--figure STEM]

One calibration file serves all: its diagonals are the importance matrix, its second moments serve ``--method gptq``. Sensitivities are measured on the
calibration text too, once for either rounding; so nothing has seen the held-out text. ``--moments`` names a calibration file that is there already. ``--baseline`` is a Markdown table of another program's
figures: a type, bytes and divergences per row, of which the last before a column of per cents is taken. ``--figure docs/figures/budget``
writes ``budget.png`` and ``budget.svg``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from held_out import CHUNKS, CONTEXT, HeldOut
from measure_feedback import calibrate

import qconv
from qconv.convert.api import load_importance
from qconv.convert.budget import Request, TensorCosts, choose, measure
from qconv.convert.calibration.error_feedback import open_factors
from qconv.convert.jobs import run_plan
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.convert.settings import Budget, Settings
from qconv.formats.base import Model
from qconv.plugins import load_plugins
from qconv.runtime.measuring.identity import read_text

MIXTURES = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M")


@dataclass(frozen=True)
class Row:
    """Bytes and divergences of a mixture, and of types chosen for its size, each rounded plainly and with feedback."""

    mixture: str
    size: int
    plain: float
    feedback: float
    chosen: float
    both: float


class Laboratory:
    """Converts a model and measures the result."""

    def __init__(self, model: Model, settings: Settings, output: Path, held_out: HeldOut) -> None:
        registries = load_plugins().registries()
        importance = load_importance(settings, registries, model)
        factors = open_factors(settings, model, registries.open_context())
        self.settings, self.output, self.held_out = settings, output, held_out
        self.request = Request(model, output, registries.formats["gguf"], settings, registries, importance, factors)
        self.costs: Sequence[TensorCosts] = ()

    def measure(self, text: Path, chunks: int) -> None:
        """Measure what types cost."""
        subject = subject_of(self.request.model, self.request.registries)
        started = time.perf_counter()
        self.costs = measure(self.request, cut_text(subject, read_text(text), Cut(CONTEXT, None, chunks)))
        seconds = time.perf_counter() - started
        print(f"{self.settings.method}: measured {len(self.costs)} tensors in {seconds:.0f} s", flush=True)

    def mixture(self, name: str) -> tuple[int, float]:
        """Return the bytes and the divergence of a named mixture."""
        return self._run(replace(self.settings, type_name=name))

    def chosen(self, size: int) -> tuple[int, float]:
        """Return those of types chosen for a size."""
        fit = choose(self.request, Budget(size=size), self.costs, True)
        return self._run(fit.settings(self.settings))

    def _run(self, settings: Settings) -> tuple[int, float]:
        run_plan(self.request.plan(settings), True, lambda count: None)
        return self.output.stat().st_size, self.held_out.divergence(self.output)


def read_baseline(path: Path) -> dict[str, float]:
    """Return the divergence by type of a Markdown table."""
    found = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) >= 4 and cells[1].isdigit():
            found[cells[0]] = float(cells[3])
    return found


def draw(rows: Sequence[Row], stem: Path) -> None:
    """Draw size against divergence, all four ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = [row.size / 1e6 for row in rows]
    for label, style, color, values in (
        ("named mixture", "o--", "#b04a3a", [row.plain for row in rows]),
        ("named mixture, error feedback", "^--", "#c98a2b", [row.feedback for row in rows]),
        ("types chosen for the size", "s-", "#2f6f9f", [row.chosen for row in rows]),
        ("types chosen for the size, error feedback", "D-", "#2e7d5b", [row.both for row in rows]),
    ):
        axes.plot(sizes, values, style, color=color, label=label, markersize=4)
    for row in rows:
        axes.annotate(row.mixture, (row.size / 1e6, row.plain), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel="file, MB", ylabel="mean KL divergence, nats", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"windows of {CONTEXT} tokens of the held-out text")
    parser.add_argument("--measure-chunks", type=int, default=16, help="the same of the calibration text")
    parser.add_argument("--mixtures", nargs="+", default=MIXTURES, help="names to compare with")
    parser.add_argument("--moments", type=Path, help="what qconv calibrate measured on the calibration text")
    parser.add_argument("--baseline", type=Path, help="another program's table")
    parser.add_argument("--figure", type=Path, help="stem of the figure's files")
    arguments = parser.parse_args()
    baseline = read_baseline(arguments.baseline) if arguments.baseline else {}
    rows = []
    with tempfile.TemporaryDirectory() as name, qconv.open(arguments.model) as model:
        moments, output = arguments.moments or Path(name) / "calibration.gguf", Path(name) / "out.gguf"
        if arguments.moments is None:
            calibrate(arguments.model, arguments.calibration, moments)
        held_out = HeldOut(arguments.model, arguments.held_out, arguments.chunks)
        plain = Laboratory(model, Settings(calibration=moments), output, held_out)
        feedback = Laboratory(model, Settings(calibration=moments, method="gptq"), output, held_out)
        for laboratory in (plain, feedback):
            laboratory.measure(arguments.calibration, arguments.measure_chunks)
        print(
            "| mixture | bytes | plain | gptq | chosen | ratio | chosen, gptq | ratio | other program | ratio to it |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for mixture in arguments.mixtures:
            size, before = plain.mixture(mixture)
            rounded = feedback.mixture(mixture)[1]
            found, after = plain.chosen(size)
            room, both = feedback.chosen(size)
            assert found <= size and room <= size
            rows.append(Row(mixture, size, before, rounded, after, both))
            other = baseline.get(mixture)
            compared = ("–", "–") if other is None else (f"{other:.5f}", f"{both / other:.3f}")
            cells = (
                mixture,
                f"{size:,}",
                *(f"{before:.5f}", f"{rounded:.5f}"),
                *(f"{after:.5f}", f"{after / before:.3f}", f"{both:.5f}", f"{both / before:.3f}"),
                *compared,
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
