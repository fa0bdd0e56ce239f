"""Transforms of tensors that have scales beside them: the scales go along where rows only move, and are folded in where more happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..architectures import TRANSFORMS
from ..architectures.transforms import constant
from ..base import Tensor
from ..scales import folded

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["transform_scaled"]

# transforms of one tensor whose results hold its rows, whole and nothing else
_ROWS = frozenset({"copy", "permute_rotary", "split_rows", "separate_rows", "gather_groups"})


def transform_scaled(
    transform: str, sources: Sequence[Tensor], scales: Mapping[str, Tensor], arguments: Mapping[str, int]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return what a transform makes of ``sources``, and the scale that all of it has, or None.

    ``scales``: those of some of the sources, by name: F32, one number or one for each matrix of a stack.
    """
    forward = TRANSFORMS[transform].forward
    own = [scales.get(source.name) for source in sources]
    if not any(own):
        return forward(sources, arguments), None
    scale = _common(transform, sources, own)
    if scale is not None:
        results = forward(sources, arguments)
        if all(result.encoding.name == source.encoding.name for result in results for source in sources):
            return results, scale
    plain = [source if each is None else folded(source, each) for source, each in zip(sources, own, strict=True)]
    return forward(plain, arguments), None


def _common(transform: str, sources: Sequence[Tensor], own: Sequence[Tensor | None]) -> Tensor | None:
    """Return the scale of the results, or None where they cannot have one."""
    if transform in _ROWS and len(sources) == 1:
        return own[0]
    numbers = [np.ones(1, np.float32) if each is None else _numbers(each) for each in own]
    if transform == "stack" and all(each.size == 1 for each in numbers):
        first = next(each for each in own if each is not None)
        return constant(first.name, np.concatenate(numbers), first.origin)
    if transform == "fuse_rows" and all(np.array_equal(each, numbers[0]) for each in numbers):
        return own[0]
    return None


def _numbers(scale: Tensor) -> NDArray[np.float32]:
    return scale.rows(0, scale.row_count).reshape(-1)
