"""Run a plan: slabs of rows through a thread pool, from the source's bytes to the output's.

The unit of work is a slab: rows of one tensor, about a million weights (4 MiB of float32). That is small enough to stay in a core's cache
from the read to the digest and large enough that Python's share of the time does not count; memory is a few slabs per
thread, whatever the size of the model. Slabs are taken in plan order and written at their final offsets; the digest of a tensor
takes its slabs in order, so neither bytes nor digests depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EncodingError, NonFiniteError, QconvError
from ..formats.architectures.lazy import only_moves
from ..quantizers.finite import CHECKED_ENCODINGS, first_non_finite
from .output import OutputFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .plan import Plan, Step

__all__ = ["SLAB_WEIGHTS", "Executed", "execute"]

SLAB_WEIGHTS = 1 << 20
_SLABS_AHEAD = 4  # per thread: how far a fast thread may run ahead of the slowest slab that is still to be digested


@dataclass(frozen=True, slots=True)
class Executed:
    """What a run did.

    Attributes:
        digests: SHA-256 of every tensor's bytes, lower-case hexadecimal, by name.
        resumed: number of tensors that an earlier run had finished.
        replaced: number of weights that were not finite and became zero (``--allow-nonfinite``), by tensor.
    """

    digests: dict[str, str]
    resumed: int
    replaced: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Slab:
    step: Step
    index: int
    start: int
    stop: int
    last: bool


def slabs(step: Step) -> Iterator[_Slab]:
    """Cut a tensor into slabs that never cross from one expert's matrix into the next."""
    shape = step.target.shape
    columns = shape[-1] if shape else 1
    matrix_rows = shape[-2] if len(shape) > 1 else 1
    total = step.source.row_count
    rows = max(1, SLAB_WEIGHTS // max(1, columns))
    if rows >= matrix_rows and step.importance is None and step.feedback is None:
        rows = max(1, rows // matrix_rows) * matrix_rows  # whole matrices, where nothing tells them apart
        bounds = range(0, total, rows)
        cuts = [(start, min(start + rows, total)) for start in bounds]
    else:
        cuts = [
            (base + start, base + min(start + rows, matrix_rows))
            for base in range(0, total, matrix_rows)
            for start in range(0, matrix_rows, rows)
        ]
    for index, (start, stop) in enumerate(cuts):
        yield _Slab(step, index, start, stop, index == len(cuts) - 1)


def _matrix(slab: _Slab) -> int:
    """Return the number of the matrix, of a stack of experts, that a slab belongs to."""
    shape = slab.step.target.shape
    return slab.start // shape[-2] if len(shape) > 2 else 0


def _is_moved(step: Step) -> bool:
    """Whether the target's bytes are the source's, perhaps in another order."""
    return step.source.encoding.name == step.target.encoding.name and only_moves(step.source)


class _Digest:
    """SHA-256 of a tensor whose slabs arrive in any order; whoever brings the next one digests all that follow."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._waiting: dict[int, NDArray[np.uint8]] = {}
        self._next = 0
        self._busy = False
        self._count: int | None = None

    def put(self, index: int, data: NDArray[np.uint8], last: bool) -> tuple[int, bool]:
        """Take slab ``index``; return how many slabs were digested by this call and whether the tensor is complete."""
        done = 0
        with self._lock:
            self._waiting[index] = data
            if last:
                self._count = index + 1
            if self._busy:
                return 0, False
            self._busy = True
        while True:
            with self._lock:
                following = self._waiting.pop(self._next, None)
                if following is None:
                    self._busy = False
                    return done, self._next == self._count
                self._next += 1
            self._hash.update(following.data)  # releases the GIL
            done += 1

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Run:
    """State that the workers share."""

    def __init__(self, plan: Plan, files: OutputFiles, progress: Callable[[int], None]) -> None:
        self.plan = plan
        self.files = files
        self.progress = progress
        self.digests: dict[str, str] = {}
        self.replaced: dict[str, int] = {}
        self.stop = threading.Event()
        self._condition = threading.Condition()
        self._open = 0
        self._limit = max(1, plan.threads) * _SLABS_AHEAD
        self._pending: dict[str, _Digest] = {}

    def queue(self, steps: list[Step]) -> Iterator[Iterator[_Slab]]:
        """Yield what one thread is to take at a time.

        That is one slab; but all slabs of a tensor that is stored as it is to be written, for there the digest, which takes them one after
        another, is most of the work: two threads in one tensor would wait for each other, in two tensors they do not.
        """
        for step in steps:
            self._pending[step.target.name] = _Digest()
            if _is_moved(step):
                yield slabs(step)
            else:
                yield from (iter((slab,)) for slab in slabs(step))

    def claim(self, queue: Iterator[Iterator[_Slab]]) -> Iterator[_Slab] | None:
        """Return the next piece of work, or None at the end; waits while the others are too far behind."""
        with self._condition:
            while self._open >= self._limit and not self.stop.is_set():
                self._condition.wait()
            return None if self.stop.is_set() else next(queue, None)

    def work(self, queue: Iterator[Iterator[_Slab]]) -> None:
        try:
            while (piece := self.claim(queue)) is not None:
                for slab in piece:
                    if self.stop.is_set():
                        return
                    with self._condition:
                        self._open += 1
                    self._slab(slab)
        except BaseException:
            self.stop.set()
            with self._condition:
                self._condition.notify_all()
            raise

    def _slab(self, slab: _Slab) -> None:
        step = slab.step
        data = self._encode(slab)
        flat = data.reshape(-1)
        self.files.write(step.target.name, slab.start * data.shape[1], flat.data)
        done, complete = self._pending[step.target.name].put(slab.index, flat, slab.last)
        if complete:
            digest = self._pending.pop(step.target.name).hexdigest()
            with self._condition:
                self.digests[step.target.name] = digest
                self.files.journal.finish(step.target.name, digest)
        with self._condition:
            self._open -= done
            self._condition.notify_all()
            self.progress(flat.nbytes)

    def _non_finite(self, data: NDArray[np.uint8], slab: _Slab) -> bool:
        """Whether encoded rows hold NaN or infinity; raises NonFiniteError where that is not allowed."""
        source = slab.step.source
        name = source.encoding.name
        found = first_non_finite(data, name) if name in CHECKED_ENCODINGS else None
        if found is not None and not self.plan.allow_nonfinite:
            raise NonFiniteError(
                f"row {slab.start + found[0]}, column {found[1]} is not a finite number",
                tensor=source.name,
                path=source.origin or None,
                remedy="The source is damaged or was trained into overflow; --allow-nonfinite writes zeros instead.",
            )
        return found is not None

    def _encode(self, slab: _Slab) -> NDArray[np.uint8]:
        step = slab.step
        source, target = step.source, step.target.encoding
        try:
            data = np.ascontiguousarray(source.read(slab.start, slab.stop))
            non_finite = self._non_finite(data, slab)
            if source.encoding.name == target.name and not non_finite:
                return data
            rows = source.encoding.decode(data)
            if non_finite or source.encoding.is_quantized:
                rows = self._finite(rows, slab)
            encoded = None if step.feedback is None else step.feedback(rows, _matrix(slab))
            if encoded is not None:
                return encoded
            return target.encode(rows, self._importance(slab), self.plan.encode_options)
        except QconvError as error:
            if isinstance(error, EncodingError) and error.tensor is None:
                error.tensor = source.name
            raise

    def _finite(self, rows: NDArray[np.float32], slab: _Slab) -> NDArray[np.float32]:
        """Replace what is not finite by zero and count it, or refuse it."""
        bad = ~np.isfinite(rows)
        if not bad.any():
            return rows
        if not self.plan.allow_nonfinite:
            row, column = (int(index[0]) for index in np.nonzero(bad))
            raise NonFiniteError(
                f"row {slab.start + row}, column {column} decodes to a number that is not finite",
                tensor=slab.step.source.name,
                remedy="The source is damaged; --allow-nonfinite writes zeros instead.",
            )
        with self._condition:
            name = slab.step.source.name
            self.replaced[name] = self.replaced.get(name, 0) + int(bad.sum())
        return np.where(bad, np.float32(0), rows)

    def _importance(self, slab: _Slab) -> NDArray[np.float32] | None:
        if slab.step.importance is None:
            return None
        return slab.step.importance(_matrix(slab))


def execute(plan: Plan, files: OutputFiles, progress: Callable[[int], None]) -> Executed:
    """Write every tensor of ``plan`` that the journal does not hold, and return the digests of all.

    ``progress`` is called with the number of output bytes of each slab. The first error of any thread is raised after all have
    stopped; on KeyboardInterrupt what is finished stays in the journal.
    """
    run = _Run(plan, files, progress)
    workers = plan.threads + (plan.threads > 1)  # one computes while another waits for the disk
    with _alone(plan), ThreadPoolExecutor(workers, thread_name_prefix="qconv") as pool:
        _check_finished(run, pool)
        todo = [step for step in plan.steps if step.target.name not in run.digests]
        resumed = len(run.digests)
        queue = run.queue(todo)
        futures = [pool.submit(run.work, queue) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C arrives here, in the main thread
            run.stop.set()
            with run._condition:
                run._condition.notify_all()
            raise
        for future in futures:
            future.result()
    return Executed({step.target.name: run.digests[step.target.name] for step in plan.steps}, resumed, run.replaced)


def _alone(plan: Plan) -> AbstractContextManager[object]:
    """Keep BLAS, which error feedback uses, to the thread that calls it: its own would get in the way, and might add up in another order."""
    if all(step.feedback is None for step in plan.steps):
        return nullcontext()
    from threadpoolctl import threadpool_limits  # slow, and most conversions do without BLAS

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def _check_finished(run: _Run, pool: ThreadPoolExecutor) -> None:
    """Trust a tensor of an earlier run only if its bytes are really there: power may have failed before they were."""
    recorded = {} if run.files.fresh else run.files.journal.digests
    steps = [step for step in run.plan.steps if step.target.name in recorded]
    for step, digest in zip(steps, pool.map(lambda it: _digest_written(run, it), steps), strict=True):
        if digest == recorded[step.target.name]:
            run.digests[step.target.name] = digest
            run.progress(step.target.nbytes)


def _digest_written(run: _Run, step: Step) -> str:
    file, offset = run.files.reader(step.target.name)
    try:
        digest = hashlib.sha256()
        for start in range(0, step.target.nbytes, SLAB_WEIGHTS):
            digest.update(file.read(offset + start, min(SLAB_WEIGHTS, step.target.nbytes - start)))
        return digest.hexdigest()
    finally:
        file.close()
