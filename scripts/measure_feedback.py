"""What error feedback gains: mean KL divergence from the source on held-out text, with and without ``--method gptq``.

    python scripts/measure_feedback.py MODEL --calibration TEXT --held-out TEXT [--types Q2_K ...] [--activation-order]

One calibration file serves all columns: ``plain`` takes its diagonals as the importance matrix, ``gptq`` its second moments. Every matrix gets the same
type (``--pure``). The source's predictions are worked out once; a row then takes two conversions and two runs of the text.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from held_out import CHUNKS, CONTEXT, HeldOut

import qconv
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Cut, cut_text, open_subject
from qconv.convert.settings import Settings
from qconv.plugins import load_plugins
from qconv.runtime.measuring.identity import read_text

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ3_S", "IQ4_XS")
CALIBRATION_CHUNKS = 200


def calibrate(model: Path, text: Path, output: Path, chunks: int = CALIBRATION_CHUNKS) -> None:
    """Measure second moments on the first windows of a text."""
    with open_subject(model, load_plugins().registries()) as subject:
        found = read_text(text)
        windows = cut_text(subject, found, Cut(CONTEXT, None, chunks))
        measure_moments(MomentJob(subject, [found], windows), output, memory=4 << 30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text")
    parser.add_argument("--held-out", type=Path, required=True, help="text")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"windows of {CONTEXT} tokens of the held-out text")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--activation-order", action="store_true", help="a third column: with activation order")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        moments, output = Path(name) / "calibration.gguf", Path(name) / "out.gguf"
        calibrate(arguments.model, arguments.calibration, moments)
        held_out = HeldOut(arguments.model, arguments.held_out, arguments.chunks)
        plain = Settings(calibration=moments, pure=True, force=True)
        feedback = replace(plain, method="gptq")
        columns = {"plain": plain, "gptq": feedback}
        if arguments.activation_order:
            columns["ordered"] = replace(feedback, activation_order=True)
        print("type     " + "".join(f"{title:>9} {'ratio':>6} " for title in columns), flush=True)
        for kind in arguments.types:
            print(f"{kind:8}", end=" ")
            first = 0.0
            for settings in columns.values():
                qconv.quantize(arguments.model, output, kind, settings=settings)
                found = held_out.divergence(output)
                first = first or found
                print(f"{found:9.5f} {found / first:6.3f}", end=" ", flush=True)
            print()


if __name__ == "__main__":
    main()
