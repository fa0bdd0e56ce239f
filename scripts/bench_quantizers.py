"""Speed and error of every encoder against llama.cpp's, in one run on one machine: tables, JSON and a figure.

    python scripts/bench_quantizers.py [--types Q4_K,Q6_K] [--only speed|compile] [--effort best] [--json FILE] [--figure STEM]

Weights are Student's t with 6 degrees of freedom times 0.02, times log-normal factors of rows (0.25) and columns (0.15); importance is
exp(1.2 N) per column. Speeds of one core are processor time of the thread, the least of several runs in which the two sides take turns;
those of all cores are the least wall time of a thread pool over slices of rows, of as many copies of the weights as take one core a fifth of a second,
and the gain is how many times faster that is than one thread of such a pool. Errors are root mean squares relative to llama.cpp's: plain, and
weighted by the importance where it is given. ``--figure`` writes STEM.png and STEM.svg.

The second table has what the first use of an encoding costs: the seconds in which ``qconv warmup`` compiles it into an empty folder, those of its whole
process, and those of a second process, which loads what the first one left. ``--only`` leaves out one of the tables.

Needs the packages xllamacpp and, for the figure, matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from qconv.quantizers.base import EncodeOptions, Encoding, ImportanceUse
from qconv.quantizers.catalog import BUILT_IN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
    Quantize = Callable[[FloatArray, int, FloatArray | None], NDArray[np.uint8]]

ROOT = Path(__file__).parents[1]
BUSY = 0.2
"""Seconds of one core's work that all cores share in a measurement; less would measure how threads start."""

TURN = 0.02
"""Seconds of each side's turn: a fast encoder is not judged by a single millisecond."""

LARGEST = 1 << 26
"""Weights in it at most."""


@dataclass(frozen=True)
class Measurement:
    """One encoding with or without importance; speeds in million weights per second, errors relative to llama.cpp's.

    ``gain``: our speed with a thread per core over that with one; ``error`` is weighted by the importance where there is one;
    ``relative_rmse`` is ours over the weights' own root mean square.
    """

    encoding: str
    importance: bool
    ours: float
    llamacpp: float
    ours_all_cores: float
    llamacpp_all_cores: float
    gain: float
    decode: float
    error: float
    plain_error: float
    relative_rmse: float

    @property
    def speedup(self) -> float:
        """How many times llama.cpp's speed, on one core."""
        return self.ours / self.llamacpp


def oracle() -> Quantize:
    """Return llama.cpp's quantizer from the helper that the tests use."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from ggml_oracle import ggml_quantize

    return ggml_quantize


def sample(rows: int, columns: int) -> tuple[FloatArray, FloatArray]:
    """Return weights (rows, columns) and an importance vector."""
    rng = np.random.default_rng(0)
    scale = 0.02 * np.exp(0.25 * rng.standard_normal((rows, 1))) * np.exp(0.15 * rng.standard_normal((1, columns)))
    weights = (scale * rng.standard_t(6, (rows, columns))).astype(np.float32)
    return weights, np.exp(1.2 * rng.standard_normal(columns)).astype(np.float32)


def best_times(
    calls: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Return the least time of each call; calls take turns, each for at least ``TURN`` seconds, so that a disturbance meets all alike."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for place, call in enumerate(calls):
            began = clock()
            while (start := clock()) - began < TURN:
                call()
                best[place] = min(best[place], clock() - start)
    return best


def rms(weights: FloatArray, decoded: FloatArray, importance: FloatArray | None = None) -> float:
    """Return the root of the sum of squared errors, weighted by ``importance`` where there is one."""
    squares = (decoded.astype(np.float64) - weights) ** 2
    return float(np.sqrt((squares if importance is None else squares * importance).sum()))


def pooled_rates(
    encode: Callable[[FloatArray], object], weights: FloatArray, rate: float, repeats: int, threads: Sequence[int]
) -> list[float]:
    """Return million weights per second of wall time for each number of ``threads``; ``rate`` is that of one core."""
    copies = max(1, min(round(BUSY * rate * 1e6), LARGEST) // weights.size)
    many = np.tile(weights, (copies, 1))
    slices = np.array_split(many, min(4 * max(threads), len(many)))
    pools = [ThreadPoolExecutor(count) for count in threads]
    calls = [lambda pool=pool: list(pool.map(encode, slices)) for pool in pools]
    try:
        return [many.size / seconds / 1e6 for seconds in best_times(calls, repeats, time.perf_counter)]
    finally:
        for pool in pools:
            pool.shutdown()


def measure(
    encoding: Encoding, weights: FloatArray, importance: FloatArray | None, options: EncodeOptions, repeats: int
) -> Measurement:
    """Measure one encoding against llama.cpp."""
    assert encoding.type_id is not None
    type_id, quantize, cores = encoding.type_id, oracle(), os.cpu_count() or 1

    def ours(rows: FloatArray) -> NDArray[np.uint8]:
        return encoding.encode(rows, importance, options)

    def theirs(rows: FloatArray) -> NDArray[np.uint8]:
        return quantize(rows, type_id, importance)

    one_core = best_times([lambda: ours(weights), lambda: theirs(weights)], repeats)
    ours_rate, theirs_rate = (weights.size / seconds / 1e6 for seconds in one_core)
    ours_one, ours_all = pooled_rates(ours, weights, ours_rate, repeats, (1, cores))
    (theirs_all,) = pooled_rates(theirs, weights, theirs_rate, repeats, (cores,))
    data = ours(weights)
    decoded, reference = encoding.decode(data), encoding.decode(theirs(weights))
    decode, out = encoding.codec().decode, np.empty_like(weights)
    (decoding,) = best_times([lambda: decode(data, out)], 4 * repeats)
    plain = rms(weights, decoded)
    return Measurement(
        encoding.name,
        importance is not None,
        *(ours_rate, theirs_rate, ours_all, theirs_all, ours_all / ours_one, weights.size / decoding / 1e6),
        error=rms(weights, decoded, importance) / rms(weights, reference, importance),
        plain_error=plain / rms(weights, reference),
        relative_rmse=plain / float(np.sqrt((weights.astype(np.float64) ** 2).sum())),
    )


def table(results: Sequence[Measurement]) -> Table:
    """Return the measurements for a terminal."""
    cores = os.cpu_count() or 1
    columns = ("type", "importance", "Mw/s", "llama.cpp", "times", f"{cores} cores", "llama.cpp", "gain", "decode Gw/s")
    made = Table(*columns, "error", "plain error")
    for result in results:
        made.add_row(
            *(result.encoding, "yes" if result.importance else "no"),
            *(f"{result.ours:.0f}", f"{result.llamacpp:.1f}", f"{result.speedup:.1f}"),
            *(f"{result.ours_all_cores:.0f}", f"{result.llamacpp_all_cores:.1f}", f"{result.gain:.2f}"),
            *(f"{result.decode / 1e3:.1f}", f"{result.error:.4f}", f"{result.plain_error:.4f}"),
        )
    return made


@dataclass(frozen=True)
class Compilation:
    """Seconds of wall time: of compiling one encoding, of the process that does it, and of one that finds it done."""

    encoding: str
    compile: float
    first: float
    second: float


def measure_compilation(encoding: Encoding) -> Compilation:
    """Compile one encoding into a folder of its own."""
    command = [sys.executable, "-m", "qconv", "warmup", encoding.name, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        times, printed = [], []
        for _ in range(2):
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
            printed.append(json.loads(done.stdout)["seconds"][encoding.name])
    return Compilation(encoding.name, printed[0], *times)


def compilation_table(results: Sequence[Compilation]) -> Table:
    """Return the seconds for a terminal."""
    made = Table("type", "compile, s", "first process, s", "second process, s")
    for result in results:
        made.add_row(result.encoding, f"{result.compile:.2f}", f"{result.first:.2f}", f"{result.second:.2f}")
    return made


def draw(results: Sequence[Measurement], stem: Path) -> None:
    """Write the figure: speeds above, errors below, a pair of bars for each type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = [f"{r.encoding}\nimportance" if r.importance else r.encoding for r in results]
    places = np.arange(len(results))
    figure, (speeds, errors) = plt.subplots(2, 1, figsize=(max(8.0, 0.55 * len(results)), 9), sharex=True)
    bars: list[tuple[str, list[float], float, str]] = [
        ("qconv, one core", [r.ours for r in results], -0.3, "tab:blue"),
        ("qconv, all cores", [r.ours_all_cores for r in results], -0.1, "tab:cyan"),
        ("llama.cpp, one core", [r.llamacpp for r in results], 0.1, "tab:gray"),
        ("llama.cpp, all cores", [r.llamacpp_all_cores for r in results], 0.3, "lightgray"),
    ]
    for label, heights, shift, color in bars:
        speeds.bar(places + shift, heights, 0.2, label=label, color=color)
    speeds.set_yscale("log")
    speeds.set_ylabel("million weights per second")
    speeds.legend()
    errors.bar(places, [r.error for r in results], 0.6, color="tab:blue")
    errors.axhline(1.0, color="black", linewidth=0.8)
    errors.set_ylim(min(0.8, *(r.error for r in results)) - 0.05, max(1.02, *(r.error for r in results)))
    errors.set_ylabel("error relative to llama.cpp's")
    errors.set_xticks(places, labels, rotation=90)
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150, bbox_inches="tight")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Speed and error of every encoder against llama.cpp's.")
    parser.add_argument("--types", help="comma-separated names; all encoders without it")
    parser.add_argument("--only", choices=("speed", "compile"), help="leave out the other table")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--effort", choices=("fast", "default", "best"), default="default")
    parser.add_argument("--objective", choices=("ggml", "plain", "importance"), default="ggml")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    parser.add_argument("--figure", type=Path, help="write STEM.png and STEM.svg")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    wanted = arguments.types.upper().split(",") if arguments.types else None
    options = EncodeOptions(arguments.effort, arguments.objective)
    chosen = [
        it for it in BUILT_IN if it.is_quantized and it.load is not None and (wanted is None or it.name in wanted)
    ]
    weights, importance = sample(arguments.rows, arguments.columns)
    results: list[Measurement] = []
    compilations: list[Compilation] = []
    for encoding in chosen:
        console.print(encoding.name, style="dim")
        if arguments.only != "speed":
            compilations.append(measure_compilation(encoding))
        if arguments.only == "compile" or encoding.codec().encode is None:
            continue
        for vector in (None, importance):
            impossible = ImportanceUse.REQUIRED if vector is None else ImportanceUse.UNUSED
            if encoding.importance is not impossible:
                results.append(measure(encoding, weights, vector, options, arguments.repeats))
    output = Console()
    # a file or pipe has no width of its own to wrap at
    printer = Console(width=None if output.is_terminal else 130)
    if results:
        printer.print(table(results))
    if compilations:
        printer.print(compilation_table(compilations))
    if arguments.json:
        arguments.json.write_text(json.dumps([*map(asdict, results), *map(asdict, compilations)], indent=2) + "\n")
    if arguments.figure and results:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
