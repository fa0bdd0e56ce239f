"""What error feedback gains: mean KL divergence from the source on held-out text, with and without ``--method gptq``.

    python scripts/measure_feedback.py MODEL --calibration TEXT --held-out TEXT [--chunks N] [--types Q2_K ...]

One calibration file serves all columns: ``plain`` takes its diagonals as the importance matrix, ``gptq`` its second moments, ``ordered`` also
``--activation-order``. Every matrix gets the same type (``--pure``).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from measure_budget import divergence

import qconv
from qconv.convert.measure import Cut, cut_text, open_subject
from qconv.convert.second_moments import MomentJob, measure_moments
from qconv.convert.settings import Settings
from qconv.plugins import load_plugins
from qconv.runtime.identity import read_text

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ3_S", "IQ4_NL", "IQ4_XS")


def calibrate(model: Path, text: Path, output: Path) -> None:
    """Measure second moments on a whole text."""
    with open_subject(model, load_plugins().registries()) as subject:
        found = read_text(text)
        measure_moments(MomentJob(subject, [found], cut_text(subject, found, Cut(512))), output, memory=4 << 30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text")
    parser.add_argument("--held-out", type=Path, required=True, help="text")
    parser.add_argument("--chunks", type=int, default=64, help="windows of the held-out text")
    parser.add_argument("--types", nargs="+", default=TYPES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        moments, output = Path(name) / "calibration.gguf", Path(name) / "out.gguf"
        calibrate(arguments.model, arguments.calibration, moments)
        plain = Settings(calibration=moments, pure=True, force=True)
        feedback = replace(plain, method="gptq")
        print(f"{'type':8} {'plain':>9} {'gptq':>9} {'ratio':>6} {'ordered':>9} {'ratio':>6}", flush=True)
        for kind in arguments.types:
            found = []
            for settings in (plain, feedback, replace(feedback, activation_order=True)):
                qconv.quantize(arguments.model, output, kind, settings=settings)
                found.append(
                    divergence(arguments.model, output, arguments.held_out, arguments.chunks, settings.threads)
                )
            before, after, ordered = found
            print(
                f"{kind:8} {before:9.5f} {after:9.5f} {after / before:6.3f} {ordered:9.5f} {ordered / before:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
