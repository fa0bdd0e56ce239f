"""Tensors moved from GGUF files into others, byte for byte: what ``qconv split`` and ``qconv merge`` do.

The system copies the bytes (``copy_file_range``) without their passing through this process, and where it cannot, they are read and
written. SHA-256 digests that the source carries stay true and are carried over; only where it has none are the bytes read, to be digested.
A digest is that of the source's bytes, so that an error of the copy would show in ``qconv verify``.

The output is whole or absent, as that of every conversion. A killed job begins anew: to look whether copied bytes are there takes as long as
to copy them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...errors import QconvError
from ...formats.base import Layout, OutputTensor, Tensor
from ...formats.positional import ContiguousRows
from ..journal import Journal
from ..output import OutputFiles, check_output, finish_renames, journal_path, temporary_names

__all__ = ["Transfer", "Transferred", "output_tensor", "run_transfer"]

_PIECE = 8 << 20  # bytes: large enough that calls cost nothing, small enough that progress moves
_NONE = "0" * 64


@dataclass(frozen=True)
class Transfer:
    """What is to be moved where.

    Attributes:
        layout: the output's files.
        tensors: the source's tensors; each has a place of the same name, shape and encoding in ``layout``.
        sources: the files that they come from.
        digests: SHA-256 of tensors by name, where the source carries them.
        digested: whether the output carries digests, so that those that are missing must be computed.
    """

    layout: Layout
    tensors: tuple[Tensor, ...]
    sources: tuple[Path, ...]
    digests: Mapping[str, str]
    digested: bool

    def fingerprint(self) -> str:
        """Return a digest of everything that the output's bytes depend on; source files count by size and time of change."""
        sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources]
        known = {tensor.name: self.digests.get(tensor.name, _NONE) for tensor in self.tensors}
        headers = [(part.path.name, hashlib.sha256(part.header(known)).hexdigest()) for part in self.layout.parts]
        return hashlib.sha256(json.dumps(["transfer", __version__, sources, headers]).encode()).hexdigest()


@dataclass(frozen=True)
class Transferred:
    """What a finished transfer leaves: the output's files, its bytes, the wall time, and how many of the bytes the system copied by itself."""

    paths: tuple[Path, ...]
    bytes: int
    seconds: float
    copied_by_system: int


def output_tensor(tensor: Tensor) -> OutputTensor:
    """Return the tensor to be written that is like ``tensor``."""
    return OutputTensor(tensor.name, tensor.shape, tensor.encoding)


def run_transfer(transfer: Transfer, force: bool, threads: int, progress: Callable[[int], None]) -> Transferred:
    """Carry it out; ``progress`` is called with the number of bytes just moved, by one thread at a time.

    Raises OutputExistsError, DiskFullError, BusyError, or TruncatedError where a source has become shorter.
    """
    started = time.monotonic()
    layout = transfer.layout
    if not layout.parts[0].path.parent.is_dir():
        check_output(layout, transfer.sources, force)
    journal = Journal(journal_path(layout), transfer.fingerprint(), temporary_names(layout))
    paths = tuple(part.path for part in layout.parts)
    if journal.sealed:  # killed between the seal and the last rename
        finish_renames(layout)
        journal.remove()
        return Transferred(paths, layout.size, time.monotonic() - started, 0)
    journal.restart()
    try:
        check_output(layout, transfer.sources, force)
        files = OutputFiles(layout, journal)
    except QconvError:
        journal.remove()
        raise
    try:
        work = _Work(transfer, files, progress)
        work.run(threads)
    except BaseException:
        files.discard()
        raise
    files.seal(work.digests)
    return Transferred(paths, layout.size, time.monotonic() - started, work.copied)


class _Work:
    """State that the threads share."""

    def __init__(self, transfer: Transfer, files: OutputFiles, progress: Callable[[int], None]) -> None:
        self.transfer = transfer
        self.files = files
        self.progress = progress
        self.digests = {tensor.name: transfer.digests.get(tensor.name, _NONE) for tensor in transfer.tensors}
        self.copied = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, threads: int) -> None:
        """Move every tensor; raises the first error of any thread after all have stopped."""
        with ThreadPoolExecutor(threads, thread_name_prefix="qconv") as pool:
            futures = [pool.submit(self._move, tensor) for tensor in self.transfer.tensors]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _move(self, tensor: Tensor) -> None:
        digest = None
        if self.transfer.digested and tensor.name not in self.transfer.digests:
            digest = hashlib.sha256()
        width = tensor.nbytes // tensor.row_count
        rows = max(1, _PIECE // width)
        for start in range(0, tensor.row_count, rows):
            if self._stop.is_set():
                return
            stop = min(start + rows, tensor.row_count)
            copied = self._copy(tensor, start * width, (stop - start) * width)
            if digest is not None or not copied:
                data = tensor.read(start, stop).reshape(-1).data
                if digest is not None:
                    digest.update(data)
                if not copied:
                    self.files.write(tensor.name, start * width, data)
            with self._lock:
                self.copied += (stop - start) * width if copied else 0
                self.progress((stop - start) * width)
        if digest is not None:
            self.digests[tensor.name] = digest.hexdigest()

    def _copy(self, tensor: Tensor, offset: int, count: int) -> bool:
        """Have the system copy bytes of a tensor; return whether it did."""
        rows = tensor.read
        if not isinstance(rows, ContiguousRows):
            return False
        return self.files.copy(tensor.name, offset, rows.file, rows.offset + offset, count)
