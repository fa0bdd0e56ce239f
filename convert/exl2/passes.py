"""The two passes that make an EXL2 model: one measures what every option costs, one quantizes with the options that were chosen.

Both go through the model stage by stage, all calibration text through one attention or feed-forward before the next, with the residual streams on disk.

* *Measuring*, a stage's inputs are those of the unquantized model. Each row of its table of options is tried: its matrices are quantized, the
  stage runs on the same inputs, and ``accuracy`` is 1 minus the mean over sequences of ``|y - y₀| / |y₀|``, ``y`` being what the residual stream becomes.
* *Quantizing*, a stage's inputs are those that the quantized stages before it give, so that it can make up for their errors: second moments come from the
  unquantized stage on these inputs, and its quantized outputs are handed on.

What is done is kept in a folder beside the output, so that a run that was interrupted continues where it stopped, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import EncodingError
from ...formats.base import Model, Tensor
from ...quantizers.rounding.exl2_options import Exl2Option
from ...quantizers.rounding.exl2_rounding import Exl2Matrix, exl2_factor, quantize_exl2
from ...quantizers.rounding.feedback import Factor
from ...runtime.building.network import Network
from ...runtime.measuring.hessian import HessianCollector
from ...runtime.measuring.perplexity import batches
from ...runtime.measuring.windows import Windows
from ...runtime.stages import Stage, embed_batch, network_stages, run_stage
from ...runtime.workers import Workers
from ..calibration.streams import Streams
from .modules import Exl2Linear, Exl2Module, Exl2Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Exl2Job", "Swaps", "measure_modules", "quantize_modules", "with_swaps"]

_LEAST_ACCURACY = 1e-6


class Swaps:
    """Weights, float32 or, of experts, float16 (rows, columns), that a pass finds in the place of a model's own: by tensor and first row."""

    def __init__(self) -> None:
        self.weights: dict[str, dict[int, NDArray[np.floating[Any]]]] = {}

    def put(self, linear: Exl2Linear, weights: Floats) -> None:
        """Exchange the weights of a matrix for float32 (outputs, inputs), in the forward pass's order of rows, which float16 holds exactly."""
        kept = weights.astype(np.float16) if linear.input[0] else weights
        self.weights.setdefault(linear.canonical, {})[linear.first] = kept


@dataclass(frozen=True)
class _SwappedTensor(Tensor):
    swaps: Swaps = field(default_factory=Swaps)

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows as float32 (stop - start, columns), not to be written to."""
        found = self.swaps.weights.get(self.name, {})
        parts = [(first, it) for first, it in found.items() if first < stop and start < first + len(it)]
        if not parts:
            return Tensor.rows(self, start, stop)
        first, array = parts[0]
        if first <= start and stop <= first + len(array):
            return array[start - first : stop - first].astype(np.float32, copy=False)
        rows = Tensor.rows(self, start, stop).copy()
        for first, array in parts:
            low, high = max(first, start), min(first + len(array), stop)
            rows[low - start : high - start] = array[low - first : high - first]
        return rows


def with_swaps(model: Model) -> tuple[Model, Swaps]:
    """Return ``model`` with tensors whose weights can be exchanged, and where to do so."""
    swaps = Swaps()
    tensors = {
        name: _SwappedTensor(it.name, it.shape, it.encoding, it.read, it.origin, it.part, swaps)
        for name, it in model.tensors.items()
    }
    return replace(model, tensors=MappingProxyType(tensors)), swaps


@dataclass(frozen=True)
class Exl2Job:
    """What the passes work on.

    Attributes:
        subject: what is quantized.
        network: of the model with exchangeable weights.
        swaps: where to exchange them.
        windows: the calibration text.
        advance: called whenever a stage has been quantized with one row of options, or has been quantized for good.
        feedback: whether errors are made up for; False: rounding to nearest, to compare with.
        unseen: told of matrices of experts that no token of the text is sent to.
    """

    subject: Exl2Subject
    network: Network
    swaps: Swaps
    windows: Windows
    advance: Callable[[], None] = lambda: None
    feedback: bool = True
    unseen: Callable[[Exl2Linear], None] = lambda linear: None

    @property
    def tokens(self) -> int:
        """Tokens of the calibration text."""
        return int(self.windows.tokens.size)


class _Pass:
    """Runs stages over all windows."""

    def __init__(self, job: Exl2Job, streams: Streams, workers: Workers) -> None:
        self.job = job
        self.streams = streams
        self.workers = workers
        self._evaluated = job.windows.evaluated

    def batches(self, number: int) -> Iterator[tuple[range, Floats]]:
        """Yield the residual streams before stage ``number``, batch by batch."""
        context = self.job.windows.context
        for batch in batches(self.job.windows):
            if number == 0:
                yield batch, embed_batch(self.job.network, [self._evaluated[it] for it in batch], self.workers)
            else:
                yield batch, self.streams.read(number, batch.start * context, batch.stop * context)

    def run(self, stage: Stage, batch: range, hidden: Floats, collector: HessianCollector | None = None) -> None:
        """Carry a batch through a stage, in place."""
        lengths = [self.job.windows.context] * len(batch)
        run_stage(self.job.network, stage, hidden, lengths, self.workers, collector)

    def factors(self, number: int, stage: Stage, linears: Sequence[Exl2Linear], keep: bool) -> dict[str, Factor]:
        """Return the factor of each matrix's inputs, one for all that share them; ``keep`` what the stage makes of the streams."""
        wanted = frozenset(linear.moment[0] for linear in linears)
        collector = HessianCollector(wanted.__contains__, skip_first=False, workers=self.workers)
        if keep:
            with self.streams.write(number + 1) as take:
                for batch, hidden in self.batches(number):
                    self.run(stage, batch, hidden, collector)
                    take(hidden)
        else:
            for batch, hidden in self.batches(number):
                self.run(stage, batch, hidden, collector)
        known: dict[int, Factor] = {}
        found = {}
        for linear in linears:
            moment = collector.moment(*linear.moment)
            if moment is None:
                if linear.moment[1] is None:
                    raise EncodingError("met no input", tensor=linear.canonical)
                self.job.unseen(linear)
                if -linear.inputs not in known:  # what ExLlamaV2 does: all inputs alike, and none goes with another
                    known[-linear.inputs] = exl2_factor(np.eye(linear.inputs, dtype=np.float32))
                found[linear.name] = known[-linear.inputs]
                continue
            if id(moment) not in known:
                known[id(moment)] = exl2_factor(moment.total / len(self.job.windows.tokens))
            found[linear.name] = known[id(moment)]
        return found

    def quantize(
        self, chosen: Sequence[tuple[Exl2Linear, Exl2Option]], factors: Mapping[str, Factor]
    ) -> list[Exl2Matrix]:
        """Return the matrices, quantized side by side."""

        def work(task: tuple[Exl2Linear, Exl2Option]) -> Exl2Matrix:
            linear, option = task
            weights = linear.weight.rows(0, linear.outputs)
            try:
                return quantize_exl2(weights, factors[linear.name], option, feedback=self.job.feedback)
            except EncodingError as error:
                raise EncodingError(str(error), tensor=linear.name) from error

        return self.workers.map(work, chosen)


def _in_pass(linear: Exl2Linear, matrix: Exl2Matrix) -> Floats:
    return linear.in_pass(matrix.weights[: linear.outputs])


def measure_modules(
    job: Exl2Job,
    streams: Streams,
    known: Mapping[str, Sequence[float]],
    done: Callable[[Exl2Module, list[float]], None],
    threads: int | None = None,
) -> None:
    """Measure the accuracy of each row of options of each module.

    Args:
        job: the model and the text.
        streams: where residual streams are kept; of modules in ``known`` that come first, they are used where they are there.
        known: accuracies by module, of those that an earlier run has measured.
        done: told each further module's, before the next begins.
        threads: worker threads.
    """
    modules = job.subject.modules
    first = _first(modules, known, streams)
    with Workers(threads) as workers:
        work = _Pass(job, streams, workers)
        for number, module in enumerate(modules):
            if number < first:
                continue
            factors = work.factors(number, module.stage, module.linears, keep=True)
            if module.name not in known:
                done(module, _accuracies(work, number, module, factors))
            streams.remove(keep=number + 1)
    streams.remove()


def _first(modules: Sequence[Exl2Module], known: Mapping[str, object], streams: Streams) -> int:
    """Return the module to begin with: the first that is not known, if its streams are there; 0, to make them anew, if not."""
    unknown = [number for number, module in enumerate(modules) if module.name not in known]
    if not unknown:
        return len(modules)
    return unknown[0] if unknown[0] == 0 or streams.has(unknown[0]) else 0


def _accuracies(work: _Pass, number: int, module: Exl2Module, factors: Mapping[str, Factor]) -> list[float]:
    job = work.job
    before: dict[str, tuple[Exl2Option, Floats]] = {}
    found = []
    try:
        for row in module.table:
            pairs = module.pairs(row)
            changed = [(it, option) for it, option in pairs if it.name not in before or before[it.name][0] != option]
            for (linear, option), matrix in zip(changed, work.quantize(changed, factors), strict=True):
                before[linear.name] = option, _in_pass(linear, matrix)
            for linear in module.linears:
                job.swaps.put(linear, before[linear.name][1])
            losses: list[float] = []
            for batch, hidden in work.batches(number):
                work.run(module.stage, batch, hidden)
                context = job.windows.context
                wanted = work.streams.read(number + 1, batch.start * context, batch.stop * context)
                losses += _losses(hidden, wanted, len(batch))
            found.append(max(_LEAST_ACCURACY, 1 - sum(losses) / len(losses)))
            job.advance()
    finally:
        job.swaps.weights = {}
    return found


def _losses(found: Floats, wanted: Floats, sequences: int) -> list[float]:
    """Return for each sequence the norm of the difference by the norm of what is wanted."""
    difference = (found.astype(np.float64) - wanted).reshape(sequences, -1)
    norms = np.linalg.norm(wanted.astype(np.float64).reshape(sequences, -1), axis=1)
    lost: list[float] = (np.linalg.norm(difference, axis=1) / np.maximum(norms, 1e-30)).tolist()
    return lost


def quantize_modules(
    job: Exl2Job,
    streams: Streams,
    strategy: Mapping[str, Sequence[Exl2Option]],
    head: Exl2Option,
    done: Callable[[Exl2Linear, Exl2Matrix], None],
    threads: int | None = None,
) -> int:
    """Quantize all modules and the output; return how many modules an earlier run had quantized, whose streams are there.

    Args:
        job: the model and the text.
        streams: where residual streams are kept.
        strategy: the options of each module's matrices, by its name.
        head: the output's.
        done: told each quantized matrix, before any of the next module.
        threads: worker threads.
    """
    modules = job.subject.modules
    first = next((number for number in range(len(modules), 0, -1) if streams.has(number)), 0)
    output = network_stages(job.network)[-1]
    with Workers(threads) as workers:
        work = _Pass(job, streams, workers)
        for number in range(first, len(modules)):
            _quantize_module(work, number, modules[number], strategy[modules[number].name], done)
            streams.remove(keep=number + 1)
            job.advance()
        factors = work.factors(len(modules), output, [job.subject.head], keep=False)
        (matrix,) = work.quantize([(job.subject.head, head)], factors)
        done(job.subject.head, matrix)
        job.advance()
    streams.remove()
    return first


def _quantize_module(
    work: _Pass,
    number: int,
    module: Exl2Module,
    row: Sequence[Exl2Option],
    done: Callable[[Exl2Linear, Exl2Matrix], None],
) -> None:
    """Quantize a module for the inputs that it really gets, and hand on what it makes of them."""
    factors = work.factors(number, module.stage, module.linears, keep=False)
    matrices = work.quantize(module.pairs(row), factors)
    swaps = work.job.swaps
    try:
        for linear, matrix in zip(module.linears, matrices, strict=True):
            done(linear, matrix)
            swaps.put(linear, _in_pass(linear, matrix))
        with work.streams.write(number + 1) as take:
            for batch, hidden in work.batches(number):
                work.run(module.stage, batch, hidden)
                take(hidden)
    finally:
        swaps.weights = {}
