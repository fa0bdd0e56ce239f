"""Matrices that are decoded slab by slab where they are multiplied, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..formats.base import Tensor
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Linear", "Matrix", "Vector", "product", "products"]

SLAB_WEIGHTS = 1 << 19
"""Weights of a slab, 2 MiB of float32, which is decoded and multiplied by one thread."""

SLAB_ROWS = 256
"""Rows that a slab has at least (a shorter matrix apart), so that BLAS comes within a few percent of its full speed."""


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

    def slabs(self) -> list[slice]:
        """Return the matrix cut into slabs of about :data:`SLAB_WEIGHTS` weights, as slices of its rows."""
        step = max(SLAB_ROWS, SLAB_WEIGHTS // self.columns)
        return [slice(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def decode(self, rows: slice) -> Floats:
        """Read and return some rows, float32 (rows, columns)."""
        return self.tensor.rows(self.first + rows.start, self.first + rows.stop)


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements ``first`` to ``first + size`` of a row of a tensor: a norm's weights, or a bias or a part of one; an expert's or a head's row."""

    tensor: Tensor
    first: int
    size: int
    row: int = 0

    def decode(self) -> Floats:
        """Read and return the elements, float32 (size,)."""
        values: Floats = self.tensor.rows(self.row, self.row + 1)[0, self.first : self.first + self.size]
        return values


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection: ``x @ matrix.T + bias``."""

    matrix: Matrix
    bias: Vector | None = None

    def apply(self, inputs: Floats, rows: slice, out: Floats) -> None:
        """Fill ``out`` (n, rows) with some columns of the projection of ``inputs`` (n, columns): those of ``rows`` of the matrix."""
        np.matmul(inputs, self.matrix.decode(rows).T, out=out)
        if self.bias is not None:
            out += self.bias.decode()[rows]


def products(workers: Workers, pairs: Sequence[tuple[Floats, Linear]]) -> list[Floats]:
    """Return for each (inputs, projection) float32 (n, rows), the projection of ``inputs`` (n, columns); every slab is decoded once."""
    results = [np.empty((len(inputs), linear.matrix.rows), np.float32) for inputs, linear in pairs]

    def multiply(task: tuple[int, slice]) -> None:
        number, rows = task
        inputs, linear = pairs[number]
        linear.apply(inputs, rows, results[number][:, rows])

    workers.map(
        multiply, [(number, rows) for number, (_, linear) in enumerate(pairs) for rows in linear.matrix.slabs()]
    )
    return results


def product(workers: Workers, inputs: Floats, linear: Linear) -> Floats:
    """Return float32 (n, rows): the projection of ``inputs`` (n, columns)."""
    return products(workers, [(inputs, linear)])[0]
