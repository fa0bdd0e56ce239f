"""GPTQ and AWQ folders with and without a calibration file: mean KL divergence from the source, and perplexity, on held-out text.

    python scripts/measure_packed.py MODEL --calibration TEXT --held-out TEXT [--chunks N] [--group-size N] [--outliers N] [--only awq]

Second moments are measured on the whole calibration text, and nothing has seen the held-out one. ``--outliers N`` makes N inputs of every matrix behind a
norm, and of every ``down``, 32 times as large, and their weights as much smaller: the model predicts exactly the same, but its activations
have the outliers that large models have.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

import qconv
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.convert.packed.activation_folds import find_folds, scale_tensors
from qconv.convert.packed.folder import PackedRequest, plan_packed, run_packed
from qconv.convert.settings import Settings
from qconv.formats.base import Model
from qconv.plugins import load_plugins
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.divergence import compare_logits
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import scored_rows

CALIBRATION_CHUNKS, CONTEXT = 200, 512
OUTLIER = 32.0  # a power of 2: nothing is rounded


@dataclass(frozen=True)
class Row:
    """A way to make a folder, and whether it has the calibration file."""

    label: str
    request: PackedRequest
    calibrated: bool = True
    order: bool = False
    method: str = "plain"


def rows(size: int) -> tuple[Row, ...]:
    """Return all ways, at a group size."""
    gptq, asymmetric = PackedRequest("gptq", size), PackedRequest("gptq", size, symmetric=False)
    awq = PackedRequest("awq", size)
    return (
        Row("gptq, nearest", gptq, calibrated=False),
        Row("gptq", gptq),
        Row("gptq, activation order", gptq, order=True),
        Row("gptq, static groups", PackedRequest("gptq", size, static_groups=True), order=True),
        Row("gptq asym, nearest", asymmetric, calibrated=False),
        Row("gptq asym", asymmetric),
        Row("awq, nearest", awq, calibrated=False),
        Row("awq, unscaled", PackedRequest("awq", size, scaling=False)),
        Row("awq", awq),
        Row("awq --method gptq, unscaled", PackedRequest("awq", size, scaling=False), method="gptq"),
        Row("awq --method gptq", awq, method="gptq"),
    )


def with_outliers(model: Model, count: int) -> Model:
    """Return the same function with ``count`` large inputs, spread evenly, wherever AWQ could scale them."""
    folds = find_folds(load_network(model), frozenset(model.tensors), lambda name, expert: True)

    def scales(number: int) -> np.ndarray:
        columns = folds[number].readers[0].columns
        found = np.ones(columns, np.float32)
        found[np.linspace(0, columns, count, endpoint=False).astype(int) + columns // count // 2] = 1 / OUTLIER
        return found

    return replace(model, tensors=MappingProxyType(scale_tensors(model.tensors, folds, scales)))


def calibrate(model: Model, text: Path, output: Path) -> None:
    """Measure second moments on the first windows of a text."""
    subject, found = subject_of(model, load_plugins().registries()), read_text(text)
    windows = cut_text(subject, found, Cut(CONTEXT, None, CALIBRATION_CHUNKS))
    measure_moments(MomentJob(subject, [found], windows), output, memory=4 << 30)


def judge(model: Model, result: Path, text: Path, chunks: int, threads: int) -> tuple[float, float]:
    """Return mean divergence in nats and perplexity."""
    registries = load_plugins().registries()
    with qconv.open(result) as other:
        subject, candidate = subject_of(model, registries), subject_of(other, registries)
        windows = cut_text(subject, read_text(text), Cut(CONTEXT, None, chunks))
        pairs = zip(
            scored_rows(subject.network, windows, threads=threads),
            scored_rows(candidate.network, windows, threads=threads),
            strict=True,
        )
        found = [compare_logits(a.logits, b.logits, a.targets) for a, b in pairs]
    losses = np.concatenate([it.loss for it in found])
    return float(np.concatenate([it.divergence for it in found]).mean()), float(np.exp(losses.mean()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text")
    parser.add_argument("--held-out", type=Path, required=True, help="text")
    parser.add_argument("--chunks", type=int, default=64, help="windows of the held-out text")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--outliers", type=int, default=0, help="large inputs of each matrix")
    parser.add_argument("--only", choices=("gptq", "awq"), help="rows of one packing")
    arguments = parser.parse_args()
    registries = load_plugins().registries()
    with tempfile.TemporaryDirectory() as name, qconv.open(arguments.model) as opened:
        model = with_outliers(opened, arguments.outliers) if arguments.outliers else opened
        moments, output = Path(name) / "calibration.gguf", Path(name) / "out"
        calibrate(model, arguments.calibration, moments)
        print(f"{'':28} {'bits':>6} {'KLD':>9} {'ppl':>9} {'seconds':>8}", flush=True)
        for row in rows(arguments.group_size):
            if arguments.only not in (None, row.request.packing):
                continue
            settings = Settings(
                calibration=moments if row.calibrated else None,
                activation_order=row.order,
                method="gptq" if row.method == "gptq" else "plain",
                force=True,
            )
            planned = plan_packed(model, output, row.request, settings, registries)
            started = time.perf_counter()
            run_packed(planned, True, lambda count: None)
            seconds = time.perf_counter() - started
            lost, perplexity = judge(model, output, arguments.held_out, arguments.chunks, settings.threads)
            print(
                f"{row.label:28} {planned.bits_per_weight:6.3f} {lost:9.5f} {perplexity:9.4f} {seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
