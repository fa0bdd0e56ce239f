"""The threads of a forward pass: whole tasks side by side, each with a BLAS of one thread.

BLAS's own threads wait for each other in every product, which for attention's small products costs more than they gain, and on a busy machine
several times as much. Tasks of a millisecond or more that each decode, multiply and apply a function need no such meeting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["Workers"]

T = TypeVar("T")
Result = TypeVar("Result")

_LEAST_ROWS = 64  # fewer rows than this are not worth another task


class Workers:
    """A pool of threads; warnings of floating-point overflow and the like are off in them, since results are checked as a whole.

    Args:
        threads: size of the pool; None for the number of processors.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1
        quiet = partial(np.seterr, all="ignore")
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="forward", initializer=quiet)
        self._blas = ThreadpoolController()

    def map(self, function: Callable[[T], Result], items: Iterable[T]) -> list[Result]:
        """Return ``function`` of every item, in their order; an error of one drops those that have not begun."""
        tasks = list(items)
        with self._blas.limit(limits=1, user_api="blas"):
            if len(tasks) == 1:  # handing it over would take longer than some of them
                with np.errstate(all="ignore"):
                    return [function(tasks[0])]
            futures = [self._pool.submit(function, item) for item in tasks]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def map_rows(self, function: Callable[[slice], None], rows: int) -> None:
        """Call ``function`` with slices that cover ``rows`` rows."""
        step = max(_LEAST_ROWS, -(-rows // self.threads))
        self.map(function, [slice(start, min(start + step, rows)) for start in range(0, rows, step)])

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
