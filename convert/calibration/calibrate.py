"""Measure an importance matrix: windows of text through the model, with a checkpoint from which an interrupted run continues.

The checkpoint lies beside the output as ``OUT.qconv-checkpoint`` and holds the float64 sums of all finished batches of windows. It is used by a run
that would do exactly the same (model, tokens, options, version), whose result is then bit for bit that of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...errors import OutputError
from ...formats.imatrix import gguf_imatrix, legacy_imatrix
from ...formats.imatrix_provenance import Provenance
from ...formats.metadata import string
from ...formats.whole_file import whole_file
from ...quantizers.importance import ImportanceMatrix
from ...runtime.forward import forward
from ...runtime.measuring.identity import Text
from ...runtime.measuring.importance import ImportanceCollector
from ...runtime.measuring.perplexity import BATCH_TOKENS, batches
from ...runtime.measuring.windows import Windows, token_digest
from ..measure import Subject

__all__ = ["Calibration", "checkpoint_path", "measure_importance", "save_importance"]

_SAVE_EVERY = 5.0  # seconds between checkpoints


@dataclass(frozen=True)
class Calibration:
    """What to measure.

    Attributes:
        subject: the model.
        texts: what the windows come from.
        windows: the tokens, BOS in place.
        keep_bos: count the row of BOS, as llama.cpp does.
        output: collect the output's input as well.
    """

    subject: Subject
    texts: Sequence[Text]
    windows: Windows
    keep_bos: bool = False
    output: bool = False

    @property
    def provenance(self) -> Provenance:
        """What the file will say about itself."""
        bos = "none" if self.windows.bos is None else "kept" if self.keep_bos else "left out"
        return Provenance(
            (self.subject.identity.digest,),
            self.subject.tokenizer.digest(),
            tuple(text.sha256 for text in self.texts),
            bos,
        )

    def fingerprint(self) -> str:
        """Return a digest of everything that the result depends on."""
        parts = [
            __version__,
            self.subject.identity.digest,
            token_digest(self.windows),
            self.windows.context,
            self.windows.bos,
            self.keep_bos,
            self.output,
            BATCH_TOKENS,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def checkpoint_path(output: Path) -> Path:
    """Return the name of an output's checkpoint."""
    return output.with_name(output.name + ".qconv-checkpoint")


def measure_importance(
    job: Calibration,
    checkpoint: Path,
    advance: Callable[[int], None],
    threads: int | None = None,
    move: Callable[[float], None] = lambda windows: None,
) -> ImportanceMatrix:
    """Return the importance matrix of a job, continuing from ``checkpoint`` where it fits.

    ``advance`` is called with the number of windows that were finished, ``move``, within windows too, with the number that what was just done amounts
    to. The checkpoint stays until the caller has saved the result. Raises as
    :func:`qconv.runtime.forward.forward`.
    """
    network, windows = job.subject.network, job.windows
    skip_first = windows.bos is not None and not job.keep_bos
    collector = ImportanceCollector(job.subject.model, skip_first=skip_first, output=job.output)
    fingerprint = job.fingerprint()
    done = _restore(checkpoint, fingerprint, collector)
    advance(done)
    evaluated, saved = windows.evaluated, time.monotonic()
    wanted = slice(None) if job.output else slice(0)
    for batch in batches(windows):
        if batch.start < done:
            continue
        sequences = [evaluated[number] for number in batch]
        progress = partial(_moved, move, len(batch))
        for _ in forward(network, sequences, wanted=wanted, collector=collector, threads=threads, progress=progress):
            pass  # the collector has seen everything; logits are a by-product
        advance(len(batch))
        if time.monotonic() - saved > _SAVE_EVERY:
            _save(checkpoint, fingerprint, collector, batch.stop)
            saved = time.monotonic()
    names = tuple(text.name for text in job.texts)
    return ImportanceMatrix(collector.entries(), names, len(windows.tokens), windows.context)


def _moved(move: Callable[[float], None], windows: int, share: float) -> None:
    move(windows * share)


def save_importance(path: Path, matrix: ImportanceMatrix, provenance: Provenance | None, form: str) -> None:
    """Write a file, whole or not at all; ``form`` is ``gguf`` or ``dat``. Raises OutputError as the system does."""
    keys = {"qconv.version": string(__version__)} | ({} if provenance is None else provenance.fields())
    data = gguf_imatrix(matrix, keys) if form == "gguf" else legacy_imatrix(matrix)
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", path=path) from error


def _save(path: Path, fingerprint: str, collector: ImportanceCollector, done: int) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {"fingerprint": np.array(fingerprint), "done": np.array(done)}
    np.savez(buffer, allow_pickle=False, **arrays, **collector.state())
    with whole_file(path) as file:
        file.write(buffer.getvalue())


def _restore(path: Path, fingerprint: str, collector: ImportanceCollector) -> int:
    """Return how many windows a checkpoint of the same job has finished; 0 where there is none, or a damaged one."""
    if not path.is_file():
        return 0
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["fingerprint"]) != fingerprint:
                return 0
            done = int(file["done"])
            state = {key: file[key] for key in file.files if key not in ("fingerprint", "done")}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return 0
    collector.restore(state)
    return done
