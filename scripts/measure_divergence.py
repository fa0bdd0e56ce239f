"""How far a model's predictions move when its matrices are encoded, by qconv and by llama.cpp, with and without importance.

    python scripts/measure_divergence.py examples/prose-llama-7m --calibration A.txt --held-out B.txt [--types Q4_K,IQ2_S]

Every matrix of every block is encoded in one type; the embedding and the output stay as they are. The figure is the mean Kullback-Leibler
divergence from the unencoded model, over the second halves of windows of the held-out text. Importance is measured on the calibration
text, cut into as many parts as ``--matrices`` says: each gives a matrix, and so a rounding of its own, and the table has the mean over
them with its standard error. Chance alone moves a single rounding by one to two percent. Needs the package xllamacpp.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from qconv.convert.measure import Cut, Subject, cut_text, open_subject
from qconv.plugins.manager import load_plugins
from qconv.quantizers.base import EncodeOptions, Encoding, ImportanceUse
from qconv.quantizers.importance import ImportanceMatrix
from qconv.runtime.building.network import Network, load_network
from qconv.runtime.forward import forward
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.importance import ImportanceCollector
from qconv.runtime.measuring.perplexity import batches, scored_rows
from qconv.runtime.measuring.windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
    Quantize = Callable[[FloatArray, int, FloatArray | None], NDArray[np.uint8]]
    Recode = Callable[[FloatArray, FloatArray | None], FloatArray]

ROOT = Path(__file__).parents[1]
FAMILIES = ("legacy", "k-quant", "i-quant")


@dataclass(frozen=True)
class Divergence:
    """Mean divergence of one encoding in nats, and its standard error over the importance matrices (0 for one of them)."""

    encoding: str
    importance: bool
    ours: float
    ours_error: float
    llamacpp: float
    llamacpp_error: float


def oracle() -> Quantize:
    """Return llama.cpp's quantizer from the helper that the tests use."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from ggml_oracle import ggml_quantize

    return ggml_quantize


class Laboratory:
    """A model with its weights in memory, and the predictions of it that all others are compared with."""

    def __init__(self, subject: Subject, held_out: Windows) -> None:
        self._subject, self._held_out = subject, held_out
        self._encodings = load_plugins().registries().encodings
        self.weights = {name: tensor.rows(0, tensor.row_count) for name, tensor in subject.model.tensors.items()}
        self.matrices = [name for name, tensor in subject.model.tensors.items() if _is_block_matrix(name, tensor.shape)]
        self._base = [
            (log_probabilities(rows.logits), rows.targets) for rows in scored_rows(self._network({}), held_out)
        ]

    def importance(self, windows: Windows) -> ImportanceMatrix:
        """Measure an importance matrix."""
        collector = ImportanceCollector(self._subject.model, skip_first=windows.bos is not None)
        network = self._network({})
        for batch in batches(windows):
            sequences = [windows.evaluated[number] for number in batch]
            for _ in forward(network, sequences, wanted=slice(0), collector=collector):
                pass
        return ImportanceMatrix(collector.entries(), (), len(windows.tokens), windows.context)

    def divergence(self, recode: Recode, importance: ImportanceMatrix | None) -> float:
        """Return the mean divergence where all matrices are replaced by what ``recode`` makes of them."""
        changed = {}
        for name in self.matrices:
            rows = self.weights[name]
            changed[name] = recode(rows, None if importance is None else importance.vector(name, rows.shape[1]))
        found = scored_rows(self._network(changed), self._held_out)
        pairs = zip(self._base, found, strict=True)
        return float(np.concatenate([compare(base, it.logits, to).divergence for (base, to), it in pairs]).mean())

    def _network(self, changed: Mapping[str, FloatArray]) -> Network:
        model, f32 = self._subject.model, self._encodings["F32"]
        tensors = {}
        for name, tensor in model.tensors.items():
            data = np.ascontiguousarray(changed.get(name, self.weights[name])).view(np.uint8)
            tensors[name] = replace(tensor, encoding=f32, read=partial(_slice, data))
        return load_network(replace(model, tensors=tensors))


def _slice(data: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
    return data[start:stop]


def _is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("blk.") and len(shape) > 1


def parts(windows: Windows, count: int) -> list[Windows]:
    """Cut windows into ``count`` runs."""
    return [replace(windows, tokens=tokens) for tokens in np.array_split(windows.tokens, count)]


def measure(
    laboratory: Laboratory, encoding: Encoding, matrices: Sequence[ImportanceMatrix], options: EncodeOptions
) -> Iterator[Divergence]:
    """Measure one encoding without and with importance, as far as it goes."""
    quantize = oracle()

    def ours(rows: FloatArray, importance: FloatArray | None) -> FloatArray:
        return encoding.decode(encoding.encode(rows, importance, options))

    def theirs(rows: FloatArray, importance: FloatArray | None) -> FloatArray:
        assert encoding.type_id is not None
        return encoding.decode(quantize(rows, encoding.type_id, importance))

    cases: list[Sequence[ImportanceMatrix | None]] = []
    if encoding.importance is not ImportanceUse.REQUIRED:
        cases.append([None])
    if encoding.importance is not ImportanceUse.UNUSED:
        cases.append(matrices)
    for case in cases:
        # the same matrix, as each of the two reads it
        found = [
            [laboratory.divergence(recode, matrix and replace(matrix, compat=compat)) for matrix in case]
            for recode, compat in ((ours, False), (theirs, True))
        ]
        (our_mean, our_error), (their_mean, their_error) = (_mean(values) for values in found)
        yield Divergence(encoding.name, case[0] is not None, our_mean, our_error, their_mean, their_error)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


def table(results: Sequence[Divergence]) -> Table:
    """Return the measurements for a terminal; a gain is the divergence with importance over that without."""
    made = Table("type", "importance", "qconv", "±", "llama.cpp", "±", "ratio", "gain")
    without = {result.encoding: result.ours for result in results if not result.importance}
    for result in results:
        gain = (
            f"{result.ours / without[result.encoding]:.3f}" if result.importance and result.encoding in without else ""
        )
        made.add_row(
            *(result.encoding, "yes" if result.importance else "no"),
            *(f"{result.ours:.5f}", f"{result.ours_error:.5f}" if result.importance else ""),
            *(f"{result.llamacpp:.5f}", f"{result.llamacpp_error:.5f}" if result.importance else ""),
            *(f"{result.ours / result.llamacpp:.3f}", gain),
        )
    return made


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Divergence of a model's predictions by encoding, beside llama.cpp's.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text to measure importance on")
    parser.add_argument("--held-out", type=Path, required=True, help="text to measure the divergence on")
    parser.add_argument("--types", help="comma-separated names; all that llama.cpp quantizes to without it")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=100, help="windows of the held-out text")
    parser.add_argument(
        "--calibration-chunks", type=int, default=200, help="windows of each part of the calibration text"
    )
    parser.add_argument("--matrices", type=int, default=4, help="importance matrices, each of another part of the text")
    parser.add_argument("--effort", choices=("fast", "default", "best"), default="default")
    parser.add_argument("--objective", choices=("ggml", "plain", "importance"), default="ggml")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    arguments = parser.parse_args()
    registries, console = load_plugins().registries(), Console(stderr=True)
    known = registries.encodings
    names = arguments.types.upper().split(",") if arguments.types else [n for n in known if known[n].family in FAMILIES]
    options = EncodeOptions(arguments.effort, arguments.objective)
    wanted = arguments.matrices * arguments.calibration_chunks
    results: list[Divergence] = []
    with open_subject(arguments.model, registries) as subject:
        held_out = cut_text(subject, read_text(arguments.held_out), Cut(arguments.context, limit=arguments.chunks))
        calibration = cut_text(subject, read_text(arguments.calibration), Cut(arguments.context, limit=wanted))
        laboratory = Laboratory(subject, held_out)
        matrices = [laboratory.importance(part) for part in parts(calibration, arguments.matrices)]
        for name in names:
            for result in measure(laboratory, known[name], matrices, options):
                console.print(result, style="dim")
                results.append(result)
    output = Console()
    # a file or pipe has no width of its own to wrap at
    Console(width=None if output.is_terminal else 120).print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
