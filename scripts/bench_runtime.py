"""Speed and memory of the reference runtime's forward pass: ``python scripts/bench_runtime.py``.

Makes synthetic Llamas as ``bench_conversion.py`` does. ``speed`` lets 4 sequences of 512 tokens pass through one of 0.4 billion weights, in
F16 and Q4_K_M, in turns with llama.cpp (xllamacpp, as many threads as processors), and takes the least time of each. ``memory`` lets them pass through
a model of 6 GB in F16, ``context`` 32,768 tokens through the example; both print the largest anonymous resident set (RssAnon) of a process of
their own. It needs 13 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_conversion import EXAMPLE, LARGE, QCONV, ROOT, SMALL, Shape, make_folder, run

COUNT, LENGTH = 4, 512
REPEATS = 5
SIX_GB = Shape("six", LARGE.hidden, LARGE.feed_forward, 43, LARGE.vocabulary, LARGE.heads)
LONG = 32768


def forward_pass(path: Path, count: int, length: int) -> float:
    """Let random tokens pass through the model at ``path``, logits after each last token; return the seconds."""
    import time

    import qconv
    from qconv.runtime.forward import forward
    from qconv.runtime.network import load_network

    with qconv.open(path) as model:
        started = time.perf_counter()
        network = load_network(model)
        tokens = np.random.default_rng(0).integers(3, 1000, (count, length))
        for _ in forward(network, list(tokens), wanted=slice(-1, None)):
            pass
        return time.perf_counter() - started


def bench_speed(folder: Path, found: dict[str, float]) -> None:
    """Tokens per second in F16 and Q4_K_M, beside llama.cpp's."""
    sys.path.append(str(ROOT / "tests" / "helpers"))
    from llamacpp_models import prompt_timer

    source = make_folder(SMALL, folder)
    for type_name, bar in (("f16", 1.0), ("q4_k_m", 0.6)):
        path = folder / f"{type_name}.gguf"
        run([*QCONV, "hf-to-gguf", str(source), "-o", str(path), "--type", type_name])
        with prompt_timer(path, COUNT, LENGTH, os.cpu_count() or 1) as theirs:
            times = [(forward_pass(path, COUNT, LENGTH), theirs()) for _ in range(REPEATS)]
        ours, other = (COUNT * LENGTH / min(column) for column in zip(*times, strict=True))
        found[f"0.4 G weights in {type_name}: tokens/s"] = ours
        found[f"0.4 G weights in {type_name}: tokens/s of llama.cpp"] = other
        found[f"0.4 G weights in {type_name}: ratio (bar {bar})"] = ours / other
        path.unlink()
    shutil.rmtree(source)


def _alone(path: Path, count: int, length: int) -> tuple[float, float]:
    """Run :func:`forward_pass` in a process of its own; return seconds and megabytes."""
    seconds, memory = run([sys.executable, __file__, "--pass", str(path), str(count), str(length)])
    return seconds, memory / 1e6


def bench_memory(folder: Path, found: dict[str, float]) -> None:
    """4 times 512 tokens through 6 GB."""
    source = make_folder(SIX_GB, folder)
    path = folder / "six.gguf"
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(path), "--type", "f16"])
    shutil.rmtree(source)
    found["6 GB model: GB"] = path.stat().st_size / 1e9
    seconds, memory = _alone(path, COUNT, LENGTH)
    found["6 GB model: s"] = seconds
    found["6 GB model: peak anonymous memory, MB (bar 1500)"] = memory
    path.unlink()


def bench_context(folder: Path, found: dict[str, float]) -> None:
    """32,768 tokens through the example."""
    path = folder / "example.gguf"
    run([*QCONV, "hf-to-gguf", str(EXAMPLE), "-o", str(path), "--type", "f16"])
    seconds, memory = _alone(path, 1, LONG)
    found["32k context: s"] = seconds
    found["32k context: peak anonymous memory, MB (bar 1500)"] = memory
    path.unlink()


BENCHES = {"speed": bench_speed, "context": bench_context, "memory": bench_memory}


def main() -> None:
    """Run the benches and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="one bench; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--pass", dest="one", nargs=3, metavar=("MODEL", "COUNT", "LENGTH"), help="a single pass")
    arguments = parser.parse_args()
    if arguments.one:
        print(forward_pass(Path(arguments.one[0]), int(arguments.one[1]), int(arguments.one[2])))
        return
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only or BENCHES:
            BENCHES[name](Path(folder), found)
    for label, value in found.items():
        print(f"{label:65} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
