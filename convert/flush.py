"""Have the disk work while the job does: what is written is made durable as it comes, not all at the end."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence

__all__ = ["Flusher"]

_START_BYTES = 1 << 22  # a few slabs: what one request to the disk is made of
_FLUSH_BYTES = (
    1 << 28
)  # a disk of 200 MB/s takes a second for it; a flush of less costs more in journal writes than it gains
_sync = getattr(os, "fdatasync", os.fsync)


class Flusher:
    """A thread that has the system write files to disk while they grow.

    Without it the seal waits for everything that the page cache holds, which on a machine with much memory is most of the model.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._ranges: deque[tuple[int, int, int]] = deque()
        self._waiting = 0
        self._unflushed = 0
        self._stop = False
        self._error: OSError | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, descriptor: int, offset: int, count: int) -> None:
        """Say that ``count`` bytes from ``offset`` on were written; any thread may call it."""
        with self._condition:
            self._ranges.append((descriptor, offset, count))
            self._waiting += count
            if self._waiting < _START_BYTES:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qconv-flush", daemon=True)
                self._thread.start()
            self._condition.notify()

    def close(self) -> None:
        """Stop; raises OSError where a flush failed: the system reports a failed write only once, so a later one would not see it."""
        with self._condition:
            self._stop = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._condition:
                while self._waiting < _START_BYTES and not self._stop:
                    self._condition.wait()
                if self._waiting < _START_BYTES:
                    return
                ranges = list(self._ranges)
                self._ranges.clear()
                self._unflushed += self._waiting
                self._waiting = 0
            try:
                for written in ranges:
                    _start_writing(*written)
                if self._unflushed >= _FLUSH_BYTES:
                    self._unflushed = 0
                    for descriptor in self._descriptors:
                        _sync(descriptor)
            except OSError as error:
                self._error = error
                return


def _start_writing(descriptor: int, offset: int, count: int) -> None:
    """Have the system begin to write a range to disk, without waiting for it.

    Linux begins so where it is told that nobody needs the range in memory; what is not on disk yet it keeps. Elsewhere nothing happens.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        advise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)
