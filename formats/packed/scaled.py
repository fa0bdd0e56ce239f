"""Weights of eight bits under scales: one for a tensor, a matrix, a row, or a rectangle of a matrix (128 × 128 in DeepSeek's models).

A weight is the product of its number (E4M3, E5M2 or an integer, less the zero point where there is one) and its scale; the scale of weight
(n, k) is at (n // rows, k // columns) of the scales, whose last row and column may serve fewer weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, ShapeError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..stored import StoredTensor
from .access import as_float32, expect, row_slab
from .float8 import FLOAT8, decode_float8
from .rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["plain_tensor", "product_encoding", "scaled_tensor"]

_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_WEIGHT_DTYPES = ("F8_E4M3", "F8_E5M2", "I8")
_POWERS = 24
_CHUNK = 1 << 18  # weights per step: the intermediate results stay in the cache
_PADDED_TO = (4, 8, 16, 32, 64, 128)  # multiples to which kernels want the number of scales filled up


def _numbers(values: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    """Return what codes or numbers read from a tensor of ``dtype`` stand for, as float32; each is exact."""
    return decode_float8(values.astype(np.uint8), dtype) if dtype in FLOAT8 else as_float32(values, dtype)


def product_encoding(scales: StoredTensor, encodings: Mapping[str, Encoding]) -> Encoding:
    """Return the encoding of the scales' own precision; for powers of two it is BF16, in which their products with 8-bit numbers are exact."""
    return encodings[scales.dtype if scales.dtype in ("F32", "F16") else "BF16"]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the scales of a weight lie.

    Attributes:
        scales: (…, rows of scales, columns of scales).
        height: rows of a matrix of weights, or of all of them where one row of scales serves the whole tensor.
        rows: rows of weights to a row of scales.
        columns: columns of weights to a column of scales.
    """

    scales: StoredTensor
    height: int
    rows: int
    columns: int

    def apply(self, operation: np.ufunc, weights: NDArray[np.float32], stored: StoredTensor, start: int) -> None:
        """Change rows ``start`` and following of the weights by the numbers of ``stored``, whose shape is that of the scales."""
        rows, width = weights.shape
        matrix, row = np.divmod(np.arange(start, start + rows), self.height)
        places = matrix * self.scales.shape[-2] + row // self.rows
        first, last = int(places[0]), int(places[-1]) + 1
        # U8 stands for E8M0 in scales, for themselves in zero points
        dtype = "F8_E8M0" if stored.dtype == "U8" and stored is self.scales else stored.dtype
        found = _numbers(row_slab(stored, first, last), dtype).take(places - first, axis=0)
        whole = width // self.columns
        blocks = weights[:, : whole * self.columns].reshape(rows, whole, self.columns)
        operation(blocks, found[:, :whole, None], out=blocks)
        rest = weights[:, whole * self.columns :]
        if rest.size:
            operation(rest, found[:, whole : whole + 1], out=rest)


def scaled_tensor(
    name: str,
    weight: StoredTensor,
    scales: StoredTensor,
    encoding: Encoding,
    block: tuple[int, int] | None = None,
    zeros: StoredTensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """Return the products of a weight, F8_E4M3, F8_E5M2 or I8 (…, rows, columns), and its scales, in ``encoding``.

    Products are computed in float32 and rounded to ``encoding`` once. ``block``: rows and columns of a rectangle, where the shapes leave it open.
    ``zeros``, an integer tensor of the scales' shape, is subtracted from the weights. ``divisor``: the products are divided by it. Raises
    FormatError or ShapeError.
    """
    expect(weight, _WEIGHT_DTYPES, (None,) * max(2, len(weight.shape)))
    grid = _grid(weight, scales, block)
    if zeros is not None:
        expect(zeros, ("I8", "U8", "I32"), scales.shape, f"{scales.name}")
        zeros = _as(zeros, grid.scales.shape)
    width = weight.shape[-1]
    factor = np.float32(1 / divisor)

    def products(start: int, stop: int) -> NDArray[np.float32]:
        found = _numbers(row_slab(weight, start, stop), weight.dtype)
        if zeros is not None:
            grid.apply(np.subtract, found, zeros, start)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is for later checks to name
            grid.apply(np.multiply, found, grid.scales, start)
            if divisor != 1:
                found *= factor
        return found

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        out = np.empty((stop - start, encoding.row_bytes(width)), np.uint8)
        step = max(1, _CHUNK // width)
        for first in range(start, stop, step):
            last = min(stop, first + step)
            out[first - start : last - start] = rounded(products(first, last), encoding)
        return out

    return Tensor(name, weight.shape, encoding, read, f"{weight.file.path.name}: {weight.name}")


def plain_tensor(name: str, weight: StoredTensor, encoding: Encoding) -> Tensor:
    """Return a tensor of F8_E4M3 or F8_E5M2 numbers that have no scale, in ``encoding``."""
    expect(weight, _WEIGHT_DTYPES[:2], (None,) * len(weight.shape))

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return rounded(_numbers(row_slab(weight, start, stop), weight.dtype), encoding)

    return Tensor(name, weight.shape, encoding, read, f"{weight.file.path.name}: {weight.name}")


def _grid(weight: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> _Grid:
    """Return how scales lie over a weight; raises FormatError or ShapeError."""
    *stack, height, width = weight.shape
    found = scales.shape
    expect(scales, _SCALE_DTYPES, (None,) * len(found))
    if prod(found) == 1:
        everything = prod(weight.shape[:-1])
        return _Grid(_as(scales, (1, 1)), everything, everything, width)
    if stack and found in ((*stack,), (*stack, 1), (*stack, 1, 1)):
        return _Grid(_as(scales, (*stack, 1, 1)), height, height, width)
    if found in ((*stack, height), (*stack, height, 1)):
        return _Grid(_as(scales, (*stack, height, 1)), height, 1, width)
    if len(found) == len(weight.shape) and found[:-2] == tuple(stack):
        asked = block or (0, 0)
        rows, columns = _side(height, found[-2], asked[0]), _side(width, found[-1], asked[1])
        if rows and columns:
            return _Grid(scales, height, rows, columns)
    raise ShapeError(
        f"has shape {found}, which fits {weight.name} of shape {weight.shape} neither by tensor, row nor block"
        + (f" of {block[0]} × {block[1]}" if block else ""),
        path=scales.file.path,
        tensor=scales.name,
        remedy="The tensors and the quantizer's settings belong to different models, or a file is damaged.",
    )


def _as(stored: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Return the tensor with other axes over the same elements; raises FormatError where these do not follow one another."""
    if stored.strides is not None:
        raise FormatError(
            "its elements do not follow one another in the file",
            path=stored.file.path,
            tensor=stored.name,
            remedy="Save the model as safetensors.",
        )
    return replace(stored, shape=shape)


def _side(size: int, count: int, asked: int) -> int:
    """Return how many of ``size`` weights share each of ``count`` scales, or 0 where nothing fits.

    What was asked for comes first; then powers of two, since blocks usually are; then what was asked for, with scales to spare; then equal shares.
    """
    if asked and -(-size // asked) == count:
        return asked
    power = next((1 << bits for bits in range(_POWERS) if -(-size // (1 << bits)) == count), 0)
    if power:
        return power
    needed = -(-size // asked) if asked else 0
    if any(-(-needed // multiple) * multiple == count for multiple in _PADDED_TO):
        return asked
    return size // count if size % count == 0 else 0
