"""Print perplexities of EXL2 models of several rates, with error feedback and rounded to nearest, made from the same measurement.

python scripts/measure_exl2.py MODEL CALIBRATION-TEXT HELD-OUT-TEXT
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qconv.convert.exl2.folder import Exl2Request, write_exl2
from qconv.convert.measure import Cut, Subject, cut_text, open_subject
from qconv.plugins.manager import load_plugins
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import score

RATES = (3.0, 4.0, 5.0, 6.0)
CALIBRATION = Cut(context=512, limit=24)
HELD_OUT = Cut(context=512, limit=48)


def perplexity(subject: Subject, text: Path) -> float:
    """Return the perplexity on the second halves of the first windows of a text."""
    windows = cut_text(subject, read_text(text), HELD_OUT)
    losses = np.concatenate([np.asarray(it.losses, np.float64) for it in score(subject.network, windows)])
    return float(np.exp(losses.mean()))


def main(model: Path, calibration: Path, held_out: Path) -> None:
    """Make and measure the models, one after another."""
    registries = load_plugins().registries()

    def quiet(label: str, total: int) -> Callable[[], None]:
        return lambda: None

    with tempfile.TemporaryDirectory() as name, open_subject(model, registries) as subject:
        windows = cut_text(subject, read_text(calibration), CALIBRATION)
        print(f"{windows.tokens.size:,} tokens of calibration; source: perplexity {perplexity(subject, held_out):.4f}")
        print("target  achieved  feedback  to nearest  seconds")
        for rate in RATES:
            found = []
            started = time.monotonic()
            for feedback in (True, False):
                output = Path(name, f"{rate}-{feedback}")
                request = Exl2Request(rate, measurement=Path(name, "measurement.json"), feedback=feedback)
                result = write_exl2(subject, registries, windows, output, request, quiet)
                with open_subject(output, registries) as quantized:
                    found.append(perplexity(quantized, held_out))
            print(
                f"{rate:6.2f}  {result.bits_per_weight:8.3f}  {found[0]:8.4f}  {found[1]:10.4f}  {time.monotonic() - started:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
