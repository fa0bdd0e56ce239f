"""Parts of stored tensors as arrays: whole rows, or whole columns where a layout runs along the input."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, ShapeError
from ..stored import StoredTensor, read_rows
from ..strided import StridedView, contiguous_strides, gather_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_float32", "column_block", "column_slab", "expect", "row_slab", "whole"]

# BF16 is read as the upper half of a float32; the 8-bit floats as their codes
_DTYPES = {
    "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "BOOL": "u1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


def expect(
    stored: StoredTensor, dtypes: tuple[str, ...], shape: tuple[int | None, ...], why: str = ""
) -> tuple[int, ...]:
    """Return the tensor's shape; raises FormatError for another dtype, ShapeError for another shape.

    None in ``shape`` stands for any size above 0. ``why`` says what the shape follows from.
    """
    if stored.dtype not in dtypes:
        raise FormatError(
            f"its dtype is {stored.dtype}, this packing has {' or '.join(dtypes)} there",
            path=stored.file.path,
            tensor=stored.name,
            remedy="The folder is of another kind than its configuration says, or damaged.",
        )
    found = stored.shape
    if len(found) != len(shape) or any(
        size < 1 or (wanted is not None and size != wanted) for size, wanted in zip(found, shape, strict=True)
    ):
        asked = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(
            f"has shape {found}, not ({asked})" + (f", which follows from {why}" if why else ""),
            path=stored.file.path,
            tensor=stored.name,
            remedy="The tensors and the quantizer's settings belong to different models, or a file is damaged.",
        )
    return found


def row_slab(stored: StoredTensor, start: int, stop: int) -> NDArray[np.generic]:
    """Return rows ``start`` to ``stop`` over all leading axes, (stop - start, columns) in the tensor's dtype."""
    dtype = np.dtype(_DTYPES[stored.dtype])
    return read_rows(stored, dtype.itemsize, start, stop).view(dtype)


def column_slab(stored: StoredTensor, start: int, stop: int) -> NDArray[np.generic]:
    """Return columns ``start`` to ``stop`` of a matrix, transposed: (stop - start, rows) in the tensor's dtype, C-contiguous.

    Beside the result at most 4 MiB are held.
    """
    dtype = np.dtype(_DTYPES[stored.dtype])
    height, width = stored.shape
    down, right = stored.strides or contiguous_strides(stored.shape)
    view = StridedView(stored.file, stored.offset, (width, height), (right, down), dtype.itemsize, stored.name)
    return gather_rows(view, start, stop).view(dtype)


def column_block(stored: StoredTensor, start: int, stop: int) -> NDArray[np.generic]:
    """Return columns ``start`` to ``stop`` of a matrix: (rows, stop - start) in the tensor's dtype, C-contiguous."""
    dtype = np.dtype(_DTYPES[stored.dtype])
    height, _ = stored.shape
    down, right = stored.strides or contiguous_strides(stored.shape)
    offset = stored.offset + start * right * dtype.itemsize
    view = StridedView(stored.file, offset, (height, stop - start), (down, right), dtype.itemsize, stored.name)
    return gather_rows(view, 0, height).view(dtype)


def whole(stored: StoredTensor) -> NDArray[np.generic]:
    """Return all of a tensor in its dtype and shape; for indices and scales, which are small beside the weights."""
    return row_slab(stored, 0, prod(stored.shape[:-1])).reshape(stored.shape)


def as_float32(values: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    """Return numbers read from a tensor of dtype F16, BF16 or F32 as float32, each of them exactly."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
