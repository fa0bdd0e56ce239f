"""Have the disk work while the job does: what is written is made durable as it comes, not all at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

__all__ = ["Flusher"]

_FLUSH_BYTES = (
    1 << 28
)  # a disk of 200 MB/s takes a second for it; a flush of less costs more in journal writes than it gains
_sync = getattr(os, "fdatasync", os.fsync)


class Flusher:
    """A thread that asks the system to write files to disk whenever a good deal was added to them.

    Without it the seal waits for everything that the page cache holds, which on a machine with much memory is most of the model.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._added = 0
        self._stop = False
        self._error: OSError | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, count: int) -> None:
        """Say that ``count`` bytes were written; any thread may call it."""
        with self._condition:
            self._added += count
            if self._added < _FLUSH_BYTES:
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
                while self._added < _FLUSH_BYTES and not self._stop:
                    self._condition.wait()
                if self._added < _FLUSH_BYTES:
                    return
                self._added = 0
            try:
                for descriptor in self._descriptors:
                    _sync(descriptor)
            except OSError as error:
                self._error = error
                return
