"""Scales beside tensors: ``blk.0.ffn_up.scale``, by which runtimes multiply what they compute with ``blk.0.ffn_up.weight``.

NVFP4 checkpoints scale each tensor by a float32 for which GGUF's NVFP4 blocks have no room, and llama.cpp takes it from such a tensor: F32, one
number, or one for each expert of a stack. Whoever wants the weights themselves asks for :func:`fold_scales`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from ..quantizers.catalog import BUILT_IN
from .base import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fold_scales", "folded", "scale_name", "scale_of"]

_F32 = next(encoding for encoding in BUILT_IN if encoding.name == "F32")
_SCALED = "NVFP4"  # the one encoding whose weights have such scales


def scale_name(weight: str) -> str:
    """Return the name of the scale of the tensor ``weight``.

    >>> scale_name("blk.0.ffn_up.weight")
    'blk.0.ffn_up.scale'
    """
    return f"{weight.removesuffix('.weight')}.scale"


def scale_of(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return the scale that belongs to the tensor ``name``, or None where it has none."""
    tensor, scale = tensors[name], tensors.get(scale_name(name))
    if scale is None or tensor.encoding.name != _SCALED or not name.endswith(".weight"):
        return None
    return scale


def folded(tensor: Tensor, scale: Tensor) -> Tensor:
    """Return the product of a tensor and its scale, in F32: one multiplication and one rounding per weight.

    ``scale`` has one number, or one for each matrix of a stack. Raises ShapeError for any other number of them.
    """
    matrices = prod(tensor.shape[:-2])
    count = prod(scale.shape)
    if count not in (1, matrices):
        raise ShapeError(
            f"has {count} numbers, and {tensor.name} has {matrices} {'matrix' if matrices == 1 else 'matrices'}",
            tensor=scale.name,
            remedy="The file is damaged or was made by another convention; convert the original again.",
        )
    rows_per_number = max(1, tensor.row_count // count)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        numbers = scale.rows(0, scale.row_count).reshape(-1)
        rows = tensor.rows(start, stop)
        rows *= numbers[np.arange(start, stop) // rows_per_number, None]
        return rows.view(np.uint8)

    return replace(tensor, encoding=_F32, read=read)


def fold_scales(tensors: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors, in the same order, with the scales of those called ``names``, of all if None, folded into the weights."""
    found = dict(tensors)
    for name in tensors if names is None else names:
        scale = scale_of(tensors, name)
        if scale is not None:
            found[name] = folded(tensors[name], scale)
            del found[scale.name]
    return found
