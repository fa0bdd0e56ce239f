"""Speed of what calibrated quantization rests on: ``python scripts/bench_feedback.py [--only NAME]... [--json FILE]``.

Prints each figure beside the bar that the project demands.

* ``layer``: factor of a second moment of 2048 inputs, then 2048 × 2048 weights rounded with error feedback, per type, and as EXL2 at about 4 bits; on two threads,
  of which each has half of the rows (EXL2: on one). Kernels are compiled before.
* ``measurement``: an EXL2 measurement of the example's first block: Cholesky factors that are made per Hessian.
* ``solver``: types for 500 tensors out of 20 each, at three sizes; the longest.
* ``calibration``: tokens per second of ``calibrate`` beside ``perplexity``, on the example and the same text; the best of three of each, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_conversion import EXAMPLE
from bench_runtime import PROSE, Figure, write_text
from threadpoolctl import threadpool_limits

import qconv
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.calibration.streams import Streams
from qconv.convert.exl2 import passes as exl2_passes
from qconv.convert.exl2.modules import exl2_subject
from qconv.convert.measure import Cut, cut_text, open_subject
from qconv.convert.settings import Settings
from qconv.plugins import load_plugins
from qconv.quantizers.base import DEFAULT_OPTIONS, Encoding
from qconv.quantizers.budget import Options, bounds, solve
from qconv.quantizers.rounding.exl2_options import attention_options
from qconv.quantizers.rounding.exl2_rounding import exl2_factor, quantize_exl2
from qconv.quantizers.rounding.feedback import Factor, factorize
from qconv.quantizers.rounding.feedback_rounding import encode_with_feedback
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import score

REGISTRIES = load_plugins().registries()
WIDTH = 2048
THREADS = 2
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_XS", "IQ3_S")
ROUNDS = 3
TOKENS = 8192


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def encode(encoding: Encoding, weights: Any, factor: Factor) -> None:
    """Round all rows on two threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(encode_with_feedback, encoding, rows, factor, DEFAULT_OPTIONS) for rows in weights]
        for job in jobs:
            job.result()


def bench_layer(_: Path) -> Iterator[Figure]:
    """One layer, as a conversion has it: BLAS keeps to the thread that calls it."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2 * WIDTH, WIDTH)) + rng.normal(size=(2 * WIDTH, 1))
    moment = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    weights = (rng.standard_t(5, size=(WIDTH, WIDTH)) * 0.03).astype(np.float32)
    halves = np.split(weights, THREADS)
    with threadpool_limits(limits=1, user_api="blas"):
        factor = factorize(moment)
        making = timed(lambda: factorize(moment))
        yield Figure(f"layer {WIDTH} × {WIDTH}: factor, s", making)
        for name in TYPES:
            encoding = REGISTRIES.encodings[name]
            encode(encoding, [weights[:16]], factor)
            seconds = timed(partial(encode, encoding, halves, factor))
            yield Figure(f"layer {WIDTH} × {WIDTH}: {name}, factor included, s", making + seconds, at_most=4)
        option = min((row[0] for row in attention_options()), key=lambda it: abs(it.bits[0] - 4))
        ordered = exl2_factor(moment)
        quantize_exl2(weights[:32], ordered, option)
        seconds = timed(lambda: quantize_exl2(weights, exl2_factor(moment), option))
        yield Figure(f"layer {WIDTH} × {WIDTH}: EXL2 {option}, factor included, s", seconds, at_most=4)


def bench_measurement(folder: Path) -> Iterator[Figure]:
    """How often a measurement makes a factor, and how often it uses one."""
    made: list[int] = []
    used: list[int] = []

    def counted(seen: list[int], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            seen.append(1)
            return function(*args, **words)

        return call

    one = folder / "one"
    qconv.convert_model(EXAMPLE, one, to="hf", settings=Settings(prune=frozenset(range(1, 6))))
    with open_subject(one, REGISTRIES) as subject:
        model, swaps = exl2_passes.with_swaps(subject.model)
        network = load_network(model, REGISTRIES.architectures.values())
        found = exl2_subject(subject.model, network, REGISTRIES.open_context())
        windows = cut_text(subject, read_text(PROSE), Cut(64, None, 4))
        job = exl2_passes.Exl2Job(found, network, swaps, windows)
        streams = Streams(folder / "all", job.tokens, network.configuration.hidden)
        names = {"exl2_factor": made, "quantize_exl2": used}
        kept = {name: getattr(exl2_passes, name) for name in names}
        for name, seen in names.items():
            setattr(exl2_passes, name, counted(seen, kept[name]))
        try:
            exl2_passes.measure_modules(job, streams, {}, lambda module, rows: None)
        finally:
            for name, function in kept.items():
                setattr(exl2_passes, name, function)
    hessians = 2 * len(found.modules)  # query, key and value share one, gate and up another
    yield Figure("EXL2 measurement of a block: Cholesky factors per Hessian", len(made) / hessians, at_most=1)
    yield Figure("EXL2 measurement of a block: matrices quantized per factor", len(used) / len(made))


def bench_solver(_: Path) -> Iterator[Figure]:
    """500 tensors × 20 types, with sizes and errors as types have them."""
    rng = np.random.default_rng(0)
    tensors = []
    for _number in range(500):
        bits, weights = np.sort(rng.uniform(1.5, 8.5, 20)), int(rng.integers(1, 60)) << 20
        noise = rng.lognormal(sigma=0.4, size=20)
        tensors.append(Options((weights * bits / 8).astype(np.int64), rng.lognormal() * weights * 4.0**-bits * noise))
    least, most = bounds(tensors)
    seconds = [timed(partial(solve, tensors, least + int(share * (most - least)))) for share in (0.2, 0.4, 0.7)]
    yield Figure("solver, 500 tensors × 20 types, s", max(seconds), at_most=5)


def bench_calibration(folder: Path) -> Iterator[Figure]:
    """Second moments beside perplexity."""
    rates: dict[str, list[float]] = {"perplexity": [], "calibrate": []}
    with open_subject(EXAMPLE, REGISTRIES) as subject:
        text = read_text(write_text(folder, TOKENS))
        windows = cut_text(subject, text, Cut(256, None, TOKENS // 256))
        job = MomentJob(subject, [text], windows)
        assert job.facts  # reads every byte, once
        output = folder / "cal.gguf"
        for _ in range(ROUNDS):
            for name, function in (
                ("perplexity", lambda: list(score(subject.network, windows))),
                ("calibrate", lambda: measure_moments(job, output, memory=1 << 30, force=True)),
            ):
                rates[name].append(windows.tokens.size / timed(function))
    for name, values in rates.items():
        yield Figure(f"{name}, {windows.tokens.size:,} tokens, tokens/s", max(values))
    ratio = max(rates["calibrate"]) / max(rates["perplexity"])
    yield Figure("calibrate, times the rate of perplexity", ratio, at_least=0.5)


BENCHES: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "layer": bench_layer,
    "measurement": bench_measurement,
    "solver": bench_solver,
    "calibration": bench_calibration,
}


def main() -> None:
    """Run the benches and print their figures; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="one bench; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    found = []
    for name in arguments.only or BENCHES:
        with tempfile.TemporaryDirectory() as folder:
            for figure in BENCHES[name](Path(folder)):
                mark = "" if not figure.bar else "MISSED" if figure.missed else "ok"
                print(f"{figure.label:72} {figure.value:10.3f}   {figure.bar:14} {mark}", flush=True)
                found.append(figure)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(it) for it in found], indent=2) + "\n")
    sys.exit(any(it.missed for it in found))


if __name__ == "__main__":
    main()
