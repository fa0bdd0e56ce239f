"""Matrices as slabs of rows, decoded ahead of their use by a pool of threads, each slab once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ..formats.base import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Matrix", "Vector", "WeightStream", "vector_values"]

SLAB_WEIGHTS = 1 << 22
"""Weights of a slab, 16 MiB of float32: long enough for BLAS at full speed, small beside a layer."""

AHEAD_BYTES = 96 << 20
"""Float32 bytes that are decoded before they are asked for."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows ``first`` to ``first + rows`` of a tensor: all of it, one part of a fused projection, or one expert of a stack."""

    tensor: Tensor
    first: int
    rows: int

    @property
    def name(self) -> str:
        """The tensor's canonical name."""
        return self.tensor.name

    @property
    def columns(self) -> int:
        """Weights per row."""
        return self.tensor.columns

    def window(self, start: int, stop: int) -> Matrix:
        """Return rows ``start`` to ``stop`` of this matrix."""
        return Matrix(self.tensor, self.first + start, stop - start)

    def slabs(self) -> list[Matrix]:
        """Return the matrix cut into windows of about :data:`SLAB_WEIGHTS` weights."""
        count = max(1, -(-self.rows * self.columns // SLAB_WEIGHTS))
        step = -(-self.rows // count)
        return [self.window(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def decode(self) -> Floats:
        """Read and return the rows, float32 (rows, columns)."""
        return self.tensor.rows(self.first, self.first + self.rows)


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements ``first`` to ``first + size`` of a one-dimensional tensor: a norm's weights, or a bias or a part of one."""

    tensor: Tensor
    first: int
    size: int


def vector_values(vector: Vector) -> Floats:
    """Read and return the elements, float32 (size,)."""
    values: Floats = vector.tensor.rows(0, 1)[0, vector.first : vector.first + vector.size]
    return values


class WeightStream:
    """Decodes slabs in the order in which they are announced, some of them ahead of their use.

    :meth:`expect` and :meth:`take` are for one thread, that of the forward pass; reading and decoding happen in the pool.

    Args:
        threads: size of the pool; None for the number of processors.
        ahead_bytes: float32 bytes to hold beyond the slab in use.
    """

    def __init__(self, threads: int | None = None, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="weights")
        self._announced: deque[Matrix] = deque()
        self._decoding: deque[tuple[Matrix, Future[Floats]]] = deque()
        self._room = ahead_bytes

    def expect(self, slabs: Iterable[Matrix]) -> None:
        """Announce slabs that will be taken, in this order, after those announced before."""
        self._announced.extend(slabs)
        self._start()

    def take(self, slab: Matrix) -> Floats:
        """Return the weights of ``slab``, float32 (rows, columns); it must be the next one announced."""
        if not self._decoding:
            self._start(at_least=1)
        announced, future = self._decoding.popleft() if self._decoding else (None, None)
        assert future is not None and announced == slab, f"{slab.name} is not the next matrix"
        weights = future.result()
        self._room += weights.nbytes
        self._start()
        return weights

    def multiply(self, inputs: Floats, slab: Matrix, out: Floats) -> None:
        """Fill ``out`` (n, rows) with ``inputs`` (n, columns) times the transposed slab, the next one announced."""
        np.matmul(inputs, self.take(slab).T, out=out)

    def product(self, inputs: Floats, matrix: Matrix, out: Floats | None = None) -> Floats:
        """Return ``inputs`` (n, columns) times the transposed matrix, float32 (n, rows); its slabs are the next ones announced."""
        result = np.empty((len(inputs), matrix.rows), np.float32) if out is None else out
        for slab in matrix.slabs():
            start = slab.first - matrix.first
            self.multiply(inputs, slab, result[:, start : start + slab.rows])
        return result

    def _start(self, at_least: int = 0) -> None:
        while self._announced:
            nbytes = 4 * self._announced[0].rows * self._announced[0].columns
            if nbytes > self._room and at_least <= 0:
                return
            slab = self._announced.popleft()
            self._room -= nbytes
            at_least -= 1
            self._decoding.append((slab, self._pool.submit(slab.decode)))

    def close(self) -> None:
        """Drop what was announced and end the threads."""
        self._announced.clear()
        for _, future in self._decoding:
            future.cancel()
        self._decoding.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
