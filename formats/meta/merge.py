"""Slices of a tensor in several shards, as one lazy tensor; rows are read from the shards when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, ShapeError
from ..architectures.lazy import MovedRows
from ..architectures.transforms import TRANSFORMS, same_encoding
from ..base import Tensor
from .names import MetaTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["merge"]

_REMEDY = "The shards or params.json belong to different models; download them from one place."


def merge(wanted: MetaTensor, slices: Sequence[Tensor]) -> Tensor:
    """Return the whole tensor under its GGUF name; ``slices`` are those of all shards in order.

    Slices of several encodings become F32. Raises ShapeError where the slices do not make up the shape. Copies of key heads are compared
    when they are read, and FormatError is raised where they differ.
    """
    whole = _MERGERS[_split(wanted, slices)](wanted, slices)
    if whole.shape != wanted.shape:
        raise ShapeError(
            f"has shape {_shapes(slices)} in {len(slices)} shards, which make up {whole.shape}; params.json gives {wanted.shape}",
            tensor=wanted.meta,
            remedy=_REMEDY,
        )
    return replace(whole, name=wanted.gguf)


def _split(wanted: MetaTensor, slices: Sequence[Tensor]) -> str:
    if any(part.shape != slices[0].shape for part in slices):
        raise ShapeError(
            f"its slices have the shapes {', '.join(str(part.shape) for part in slices)}",
            tensor=wanted.meta,
            remedy=_REMEDY,
        )
    if len(slices[0].shape) != len(wanted.shape):
        raise ShapeError(f"has shape {slices[0].shape}, not {wanted.shape}", tensor=wanted.meta, remedy=_REMEDY)
    if len(slices) == 1:
        return "none"
    if wanted.split == "either":
        return "rows" if slices[0].shape[1:] == wanted.shape[1:] else "columns"
    return wanted.split


def _shapes(slices: Sequence[Tensor]) -> str:
    return " × ".join(map(str, slices[0].shape))


def _first(wanted: MetaTensor, slices: Sequence[Tensor]) -> Tensor:
    return slices[0]


def _join_rows(wanted: MetaTensor, slices: Sequence[Tensor]) -> Tensor:
    height, width = slices[0].shape
    (stacked,) = TRANSFORMS["stack"].forward(slices, {})
    return replace(stacked, shape=(len(slices) * height, width))


def _join_columns(wanted: MetaTensor, slices: Sequence[Tensor]) -> Tensor:
    parts = same_encoding(slices)
    height, width = parts[0].shape

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return np.concatenate([part.read(start, stop) for part in parts], axis=1)

    return replace(parts[0], shape=(height, len(parts) * width), read=MovedRows(read, parts))


def _join_heads(wanted: MetaTensor, slices: Sequence[Tensor]) -> Tensor:
    """Join rows; where together they are too many, adjacent shards hold copies, of which one counts."""
    rows = len(slices) * slices[0].shape[0]
    copies, rest = divmod(rows, wanted.shape[0])
    if copies < 2 or rest or len(slices) % copies:
        return _join_rows(wanted, slices)
    groups = [slices[start : start + copies] for start in range(0, len(slices), copies)]
    return _join_rows(wanted, [replace(group[0], read=_compared(wanted, group)) for group in groups])


def _compared(wanted: MetaTensor, copies: Sequence[Tensor]) -> Callable[[int, int], NDArray[np.uint8]]:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        first, *others = (copy.read(start, stop) for copy in copies)
        for copy, other in zip(copies[1:], others, strict=True):
            if not np.array_equal(first, other):
                raise FormatError(
                    f"rows {start} to {stop} differ between {copies[0].origin} and {copy.origin}, which should hold the same heads",
                    tensor=wanted.meta,
                    remedy=_REMEDY,
                )
        return first

    return read


_MERGERS: dict[str, Callable[[MetaTensor, Sequence[Tensor]], Tensor]] = {
    "none": _first,
    "rows": _join_rows,
    "columns": _join_columns,
    "heads": _join_heads,
}
