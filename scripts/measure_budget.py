"""Named mixtures beside types chosen for the same size: mean KL divergence from the source on held-out text, and a figure.

    python scripts/measure_budget.py MODEL --calibration TEXT --held-out TEXT [--chunks N] [--figure STEM]

One importance matrix, from the calibration text, serves both. Sensitivities are measured once, on the calibration text too; so
nothing has seen the held-out text. ``--figure docs/figures/budget`` writes ``budget.png`` and ``budget.svg``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import qconv
from qconv.convert.api import load_importance
from qconv.convert.budget import Request, choose, measure
from qconv.convert.jobs import run_plan
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.convert.settings import Budget, Settings
from qconv.plugins import load_plugins
from qconv.runtime.divergence import compare_logits
from qconv.runtime.identity import read_text
from qconv.runtime.perplexity import scored_rows

MIXTURES = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M")


def divergence(source: Path, result: Path, text: Path, chunks: int, threads: int) -> float:
    """Return the mean divergence in nats of ``result`` from ``source``."""
    registries = load_plugins().registries()
    with qconv.open(source) as one, qconv.open(result) as other:
        subject, candidate = subject_of(one, registries), subject_of(other, registries)
        windows = cut_text(subject, read_text(text), Cut(512, None, chunks))
        pairs = zip(
            scored_rows(subject.network, windows, threads=threads),
            scored_rows(candidate.network, windows, threads=threads),
            strict=True,
        )
        found = [compare_logits(a.logits, b.logits, a.targets).divergence for a, b in pairs]
    return float(np.concatenate(found).mean())


def draw(rows: list[tuple[str, int, float, int, float]], stem: Path) -> None:
    """Draw size against divergence, both ways."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.plot([row[1] / 1e6 for row in rows], [row[2] for row in rows], "o--", color="#b04a3a", label="named mixture")
    axes.plot(
        [row[3] / 1e6 for row in rows],
        [row[4] for row in rows],
        "s-",
        color="#2f6f9f",
        label="types chosen for the size",
    )
    for name, size, value, _, _ in rows:
        axes.annotate(name, (size / 1e6, value), textcoords="offset points", xytext=(5, 5), fontsize=8)
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
    parser.add_argument("--chunks", type=int, default=64, help="windows of the held-out text")
    parser.add_argument(
        "--measure-chunks", type=int, default=16, help="windows of the calibration text for sensitivities"
    )
    parser.add_argument("--mixtures", nargs="+", default=MIXTURES, help="names to compare with")
    parser.add_argument("--figure", type=Path, help="stem of the figure's files")
    arguments = parser.parse_args()
    registries = load_plugins().registries()
    rows: list[tuple[str, int, float, int, float]] = []
    with tempfile.TemporaryDirectory() as name, qconv.open(arguments.model) as model:
        folder = Path(name)
        matrix, output = folder / "imatrix.gguf", folder / "out.gguf"
        command = [sys.executable, "-m", "qconv", "imatrix", str(arguments.model), "--text", str(arguments.calibration)]
        subprocess.run([*command, "-o", str(matrix), "--chunks", "200"], check=True, stderr=subprocess.DEVNULL)
        settings = Settings(imatrix=matrix, force=True)
        importance = load_importance(settings, registries, model)
        request = Request(model, output, registries.formats["gguf"], settings, registries, importance)
        cut = Cut(512, None, arguments.measure_chunks)
        windows = cut_text(subject_of(model, registries), read_text(arguments.calibration), cut)
        started = time.perf_counter()
        costs = measure(request, windows)
        print(f"measured {len(costs)} tensors in {time.perf_counter() - started:.0f} s", flush=True)
        print(
            f"{'mixture':8} {'bytes':>12} {'KLD':>9}   {'chosen: bytes':>13} {'KLD':>9} {'ratio':>6} {'predicted':>9}"
        )
        for mixture in arguments.mixtures:
            plan = request.plan(replace(settings, type_name=mixture))
            run_plan(plan, True, lambda count: None)
            size = output.stat().st_size
            before = divergence(arguments.model, output, arguments.held_out, arguments.chunks, settings.threads)
            fit = choose(request, Budget(size=size), costs, True)
            run_plan(request.plan(fit.settings(settings)), True, lambda count: None)
            after = divergence(arguments.model, output, arguments.held_out, arguments.chunks, settings.threads)
            rows.append((mixture, size, before, output.stat().st_size, after))
            print(
                f"{mixture:8} {size:12,} {before:9.5f}   {rows[-1][3]:13,} {after:9.5f} {after / before:6.3f} {fit.predicted:9.5f}",
                flush=True,
            )
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
