"""Measure second moments: all windows of a text through one stage of the model after another, each stage's moments written as it is done.

Beside the moments of a stage, or as many of them as the memory allows (the rest in further rounds over the same stage), nothing is held but one batch of
windows; the residual streams lie on disk (:mod:`.streams`). A run that is interrupted continues with the stage that was not finished,
and its result is byte for byte that of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ... import __version__
from ...errors import DiskFullError, QconvError, UsageError
from ...formats.base import OutputTensor
from ...formats.calibration import CalibrationFacts, Entry, lay_out_calibration, pack_triangle
from ...formats.metadata import string
from ...runtime.hooks import Collector, ProductInput
from ...runtime.measuring.hessian import HessianCollector, SecondMoment, moment_bytes
from ...runtime.measuring.identity import Text, weights_digest
from ...runtime.measuring.perplexity import BATCH_TOKENS, batches
from ...runtime.measuring.windows import Windows, token_digest
from ...runtime.stages import Stage, embed_batch, network_stages, run_stage, stage_inputs
from ...runtime.workers import Workers
from ..journal import Journal
from ..measure import Subject
from ..output import OutputFiles, check_output, finish_renames, journal_path, temporary_names
from .streams import Streams

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Measured", "MomentJob", "measure_moments"]

_SLAB = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class MomentJob:
    """What to measure.

    Attributes:
        subject: the model.
        texts: what the windows come from.
        windows: the tokens, BOS in place.
        wanted: whether a tensor is measured, by name.
    """

    subject: Subject
    texts: Sequence[Text]
    windows: Windows
    wanted: Callable[[str], bool] = lambda name: True

    @cached_property
    def stages(self) -> tuple[tuple[Stage, tuple[Entry, ...]], ...]:
        """The stages to run, each with the entries that it gives; what comes behind the last entry is left out.

        Raises UsageError where nothing is measured.
        """
        network = self.subject.network
        found = [
            (
                stage,
                tuple(
                    Entry(it.names, it.columns, it.experts)
                    for it in stage_inputs(network, stage)
                    if any(map(self.wanted, it.names))
                ),
            )
            for stage in network_stages(network)
        ]
        while found and not found[-1][1]:
            found.pop()
        if not found:
            raise UsageError("no tensor is left to measure", remedy="Loosen --include-weights and --exclude-weights.")
        return tuple(found)

    @cached_property
    def facts(self) -> CalibrationFacts:
        """What the file will say about itself; the first use reads every byte of the model."""
        subject, windows = self.subject, self.windows
        names = [entry.names for _, entries in self.stages for entry in entries]
        parts = [__version__, subject.identity.digest, token_digest(windows), windows.context, windows.bos]
        return CalibrationFacts(
            weights=weights_digest(subject.model),
            model=subject.identity.digest,
            tokenizer=subject.tokenizer.digest(),
            texts=tuple(text.sha256 for text in self.texts),
            datasets=tuple(text.name for text in self.texts),
            bos="none" if windows.bos is None else "left out",
            chunks=len(windows.tokens),
            context=windows.context,
            job=hashlib.sha256(json.dumps([*parts, BATCH_TOKENS, names]).encode()).hexdigest(),
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a finished run leaves.

    Attributes:
        counts: float64, by entry: tokens that each of its matrices met.
        nbytes: size of the file.
        resumed: stages taken over from an earlier run.
    """

    counts: dict[tuple[str, ...], NDArray[np.float64]]
    nbytes: int
    resumed: int


def measure_moments(
    job: MomentJob,
    output: Path,
    *,
    memory: int,
    force: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    move: Callable[[float], None] = lambda windows: None,
    threads: int | None = None,
) -> Measured:
    """Carry a job out; nothing appears under the name ``output`` before it is whole.

    Args:
        job: what to measure.
        output: the file to write (:mod:`qconv.formats.calibration`).
        memory: bytes that the moments of one round may take; one moment is taken at least.
        force: replace an existing file.
        advance: called with the number of windows that have passed a stage.
        move: called, within rounds too, with the number of windows through a stage that what was just done amounts to.
        threads: how many work side by side; None for the number of processors.

    Raises OutputExistsError, DiskFullError or BusyError, and what a forward pass raises.
    """
    entries = [entry for _, found in job.stages for entry in found]
    layout = lay_out_calibration(output, entries, job.facts, {"qconv.version": string(__version__)})
    windows = job.windows
    streams = Streams(output, windows.tokens.size, job.subject.network.configuration.hidden)
    check_output(layout, job.subject.model.files, force)
    journal = Journal(journal_path(layout), job.facts.job, temporary_names(layout))
    if journal.sealed:
        finish_renames(layout)
        streams.remove()
        journal.remove()
        return Measured({}, layout.size, len(job.stages))
    try:
        files = OutputFiles(layout, journal)
    except QconvError:
        journal.close()
        raise
    try:
        run = _Run(job, files, streams, memory, advance, move)
        first = run.resume()
        needed = streams.nbytes * (1 if streams.has(first) else 2)
        if shutil.disk_usage(output.parent).free < needed:
            raise DiskFullError(
                f"residual streams take {needed:,} bytes until the end",
                path=output.parent,
                remedy="Free some space, use fewer --chunks, or choose a folder on another disk.",
            )
        with Workers(threads) as workers:
            for number in range(first, len(job.stages)):
                run.stage(number, workers)
    except QconvError:
        files.discard()
        streams.remove()
        raise
    except BaseException:
        files.keep()
        raise
    files.seal(journal.digests)
    streams.remove()
    return Measured(run.counts, layout.size, first)


class _Run:
    """A job at work."""

    def __init__(
        self,
        job: MomentJob,
        files: OutputFiles,
        streams: Streams,
        memory: int,
        advance: Callable[[int], None],
        move: Callable[[float], None],
    ) -> None:
        self.job = job
        self.files = files
        self.streams = streams
        self.memory = memory
        self.advance = advance
        self.move = move
        self.counts: dict[tuple[str, ...], NDArray[np.float64]] = {}
        self._evaluated = job.windows.evaluated

    def resume(self) -> int:
        """Return the number of the stage to begin with: the first without whole moments, if its streams are there, otherwise 0."""
        first = 0
        recorded = {} if self.files.fresh else self.files.journal.digests
        for _, entries in self.job.stages:
            if not all(self._is_written(entry, recorded) for entry in entries):
                break
            first += 1
        if first and first < len(self.job.stages) and not self.streams.has(first):
            first = 0
        self.streams.remove(keep=first)
        self.advance(first * len(self._evaluated))
        return first

    def _is_written(self, entry: Entry, recorded: dict[str, str]) -> bool:
        """Whether the bytes of an entry are there as recorded: power may have failed before they were."""
        for tensor in entry.tensors():
            if tensor.name not in recorded:
                return False
            if self._digest(tensor) != recorded[tensor.name]:
                return False
        counts = entry.tensors()[-1]
        file, offset = self.files.reader(counts.name)
        with closing(file):
            self.counts[entry.names] = np.frombuffer(file.read(offset, counts.nbytes), "<f8").astype(np.float64)
        return True

    def _digest(self, tensor: OutputTensor) -> str:
        """Return the SHA-256 of what is written of a tensor."""
        file, offset = self.files.reader(tensor.name)
        found = hashlib.sha256()
        with closing(file):
            for start in range(0, tensor.nbytes, _SLAB):
                found.update(file.read(offset + start, min(_SLAB, tensor.nbytes - start)))
        return found.hexdigest()

    def stage(self, number: int, workers: Workers) -> None:
        """Run all windows through a stage, as often as its moments need rounds; write them, and the streams behind it."""
        stage, entries = self.job.stages[number]
        writers = {entry.names: _Writer(entry, self.files) for entry in entries}
        rounds = list(_rounds(entries, self.memory)) or [[]]
        for chosen in rounds:
            last = chosen is rounds[-1] and number + 1 < len(self.job.stages)
            collector = HessianCollector(
                lambda name: True, skip_first=self.job.windows.bos is not None, workers=workers
            )
            with self.streams.write(number + 1) if last else nullcontext() as keep:
                for batch in batches(self.job.windows):
                    hidden = self._read(number, batch, workers)
                    lengths = [self.job.windows.context] * len(batch)
                    run_stage(self.job.subject.network, stage, hidden, lengths, workers, _only(chosen, collector))
                    if keep is not None:
                        keep(hidden)
                    self.move(len(batch) / len(rounds))
                    if chosen is rounds[-1]:
                        self.advance(len(batch))
            for entry, matrix in chosen:
                expert = None if entry.experts is None else matrix
                writers[entry.names].add(collector.moment(entry.names[0], expert))
        for writer in writers.values():
            self.counts[writer.entry.names] = writer.finish()
        self.streams.remove(keep=number + 1)

    def _read(self, number: int, batch: range, workers: Workers) -> NDArray[np.float32]:
        """Return the residual streams of a batch of windows before a stage."""
        if number == 0:
            return embed_batch(self.job.subject.network, [self._evaluated[it] for it in batch], workers)
        context = self.job.windows.context
        return self.streams.read(number, batch.start * context, batch.stop * context)


def _rounds(entries: Sequence[Entry], memory: int) -> Iterator[list[tuple[Entry, int]]]:
    """Cut the matrices of a stage, in order, into lists that fit the memory."""
    chosen: list[tuple[Entry, int]] = []
    taken = 0
    for entry in entries:
        for matrix in range(entry.matrices):
            size = moment_bytes(entry.columns)
            if chosen and taken + size > memory:
                yield chosen
                chosen, taken = [], 0
            chosen.append((entry, matrix))
            taken += size
    if chosen:
        yield chosen


def _only(chosen: Sequence[tuple[Entry, int]], collector: Collector) -> Collector:
    """Return a collector that hears of these matrices alone."""
    matrices = {(entry.names, None if entry.experts is None else matrix) for entry, matrix in chosen}

    def collect(found: ProductInput) -> None:
        if (found.names, found.expert) in matrices:
            collector(found)

    return collect


class _Writer:
    """Writes an entry, matrix after matrix, and tells the journal when it is whole."""

    def __init__(self, entry: Entry, files: OutputFiles) -> None:
        self.entry = entry
        self._files = files
        self._hashes = [hashlib.sha256() for _ in entry.tensors()]
        self._counts: list[int] = []

    def add(self, moment: SecondMoment | None) -> None:
        """Write the next matrix; None: zeros, for an expert that no token was sent to."""
        found = SecondMoment(self.entry.columns) if moment is None else moment
        rows = (
            pack_triangle(found.mean()).astype("<f4", copy=False).tobytes(),
            found.diagonal.astype("<f4").tobytes(),
            np.array([found.count], "<f8").tobytes(),
        )
        for tensor, raw, digest in zip(self.entry.tensors(), rows, self._hashes, strict=True):
            data = memoryview(raw)
            self._files.write(tensor.name, len(self._counts) * len(data), data)
            digest.update(data)
        self._counts.append(found.count)

    def finish(self) -> NDArray[np.float64]:
        """Tell the journal; return the counts."""
        for tensor, digest in zip(self.entry.tensors(), self._hashes, strict=True):
            self._files.journal.finish(tensor.name, digest.hexdigest())
            self._files.journal.digests[tensor.name] = digest.hexdigest()
        return np.array(self._counts, np.float64)
