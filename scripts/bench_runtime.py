"""Speed, memory and start-up of the reference runtime: ``python scripts/bench_runtime.py [--only NAME]... [--json FILE]``.

Makes synthetic Llamas as ``bench_conversion.py`` does, and prints each figure beside the bar that the project demands.

* ``start``: whole commands on the example, the least of several: importing qconv, and a perplexity of 16 tokens.
* ``speed``: 4 sequences of 512 tokens through 0.31 billion weights in F16 and Q4_K_M, in turns with llama.cpp (xllamacpp, as many threads as processors);
  the medians.
* ``context``: ``qconv perplexity -c 32768`` of the example.
* ``memory``: ``qconv perplexity -c 512`` of 4 windows of a folder of 6 GB.

Memory is the largest anonymous resident set (RssAnon) of the command. On two quiet cores it takes four minutes, and 7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench_conversion import EXAMPLE, LARGE, QCONV, ROOT, SMALL, Shape, best, make_folder, run

COUNT, LENGTH = 4, 512
ROUNDS = 3
STARTS = 5
MIDDLE = Shape("middle", SMALL.hidden, SMALL.feed_forward, 18, SMALL.vocabulary, SMALL.heads)
SIX_GB = Shape("six", LARGE.hidden, LARGE.feed_forward, 43, LARGE.vocabulary, LARGE.heads)
LONG = 32768
CHARACTERS_PER_TOKEN = 6  # of the example's tokenizer, at most
PROSE = ROOT / "tests" / "helpers" / "prose.txt"


@dataclass(frozen=True)
class Figure:
    """A measured number, and what it must be at least or at most, if anything."""

    label: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bar(self) -> str:
        """The bar for people."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def missed(self) -> bool:
        """Whether the bar is not reached."""
        return (self.at_least is not None and self.value < self.at_least) or (
            self.at_most is not None and self.value > self.at_most
        )


def perplexity(model: Path, text: Path, context: int, chunks: int) -> list[str]:
    """Return the command."""
    return [*QCONV, "perplexity", str(model), "--text", str(text), "-c", str(context), "--chunks", str(chunks)]


def write_text(folder: Path, tokens: int) -> Path:
    """Write a text of at least so many tokens of the example's tokenizer: this project's own prose, again and again."""
    prose = PROSE.read_text(encoding="utf-8")
    path = folder / f"{tokens}.txt"
    path.write_text(prose * -(-tokens * CHARACTERS_PER_TOKEN // len(prose)), encoding="utf-8")
    return path


def bench_start(folder: Path) -> list[Figure]:
    """From nothing to a result."""
    text = write_text(folder, 64)
    found = [
        Figure("import qconv, s", best(STARTS, partial(run, [sys.executable, "-c", "import qconv"]))[0], None, 0.15)
    ]
    for type_name in ("f16", "q4_k_m"):
        path = folder / f"{type_name}.gguf"
        run([*QCONV, "hf-to-gguf", str(EXAMPLE), "-o", str(path), "--type", type_name])
        command = perplexity(path, text, 16, 1)
        run(command)  # compiles what is not compiled yet
        seconds = best(STARTS, partial(run, command))[0]
        found.append(Figure(f"16 tokens of the example in {type_name}, whole command, s", seconds, None, 1.0))
    return found


def forward_pass(path: Path, count: int, length: int) -> float:
    """Let random tokens pass through the model at ``path``, logits after each last token; return the seconds."""
    import qconv
    from qconv.runtime.building.network import load_network
    from qconv.runtime.forward import forward

    with qconv.open(path) as model:
        started = time.perf_counter()
        network = load_network(model)
        tokens = np.random.default_rng(0).integers(3, 1000, (count, length))
        for _ in forward(network, list(tokens), wanted=slice(-1, None)):
            pass
        return time.perf_counter() - started


def bench_speed(folder: Path) -> list[Figure]:
    """Tokens per second in F16 and Q4_K_M, beside llama.cpp's."""
    sys.path.append(str(ROOT / "tests" / "helpers"))
    from llamacpp_models import prompt_timer

    source = make_folder(MIDDLE, folder)
    weights = sum(int(np.prod(size)) for size in MIDDLE.tensors().values())
    found = [Figure("weights of the model for speed, millions", weights / 1e6, 300)]
    for type_name, bar in (("f16", 1.0), ("q4_k_m", 0.6)):
        path = folder / f"{type_name}.gguf"
        run([*QCONV, "hf-to-gguf", str(source), "-o", str(path), "--type", type_name])
        with prompt_timer(path, COUNT, LENGTH, os.cpu_count() or 1) as theirs:
            forward_pass(path, 1, 16)  # compiles what is not compiled yet
            times = [(forward_pass(path, COUNT, LENGTH), theirs()) for _ in range(ROUNDS)]
        ours, other = (COUNT * LENGTH / statistics.median(column) for column in zip(*times, strict=True))
        found.append(Figure(f"{type_name}, tokens/s", ours))
        found.append(Figure(f"{type_name}, tokens/s of llama.cpp", other))
        found.append(Figure(f"{type_name}, ratio", ours / other, bar))
        path.unlink()
    shutil.rmtree(source)
    return found


def _whole_command(label: str, command: list[str]) -> list[Figure]:
    seconds, memory = run(command)
    return [
        Figure(f"{label}, s", seconds),
        Figure(f"{label}, largest anonymous memory, MB", memory / 1e6, None, 1500),
    ]


def bench_context(folder: Path) -> list[Figure]:
    """One long window."""
    return _whole_command("32k context", perplexity(EXAMPLE, write_text(folder, 2 * LONG), LONG, 1))


def bench_memory(folder: Path) -> list[Figure]:
    """4 times 512 tokens through 6 GB."""
    source = make_folder(SIX_GB, folder)
    size = Figure("6 GB model, GB", (source / "model.safetensors").stat().st_size / 1e9, 6)
    found = _whole_command("6 GB model", perplexity(source, write_text(folder, 2 * COUNT * LENGTH), LENGTH, COUNT))
    shutil.rmtree(source)
    return [size, *found]


BENCHES: dict[str, Callable[[Path], list[Figure]]] = {
    "start": bench_start,
    "speed": bench_speed,
    "context": bench_context,
    "memory": bench_memory,
}


def main() -> None:
    """Run the benches and print their figures; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="one bench; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    started = time.perf_counter()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only or BENCHES:
            for figure in BENCHES[name](Path(folder)):
                mark = "" if not figure.bar else "MISSED" if figure.missed else "ok"
                print(f"{figure.label:55} {figure.value:10.3f}   {figure.bar:14} {mark}", flush=True)
                found.append(figure)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(it) for it in found], indent=2) + "\n")
    sys.exit(any(it.missed for it in found))


if __name__ == "__main__":
    main()
