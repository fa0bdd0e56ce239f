"""Vectors that a file holds transformed and rounded, and rows that it does not hold: the original values in its metadata.

================================ ======= ========================================================================
``qconv.source.exact_names``     strings tensors whose values would not come back to the bit
``qconv.source.exact_values``    float32 the original values of each, one vector after another
``qconv.source.skipped_names``   strings matrices that lack their first rows
``qconv.source.skipped_values``  float32 those rows, one after another; as many of each matrix
================================ ======= ========================================================================

Nobody has to believe exact values: one counts only where transforming it gives what the file holds. Rows that are skipped are no part of what models compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .base import Tensor
from .getters import get_numbers, get_strings
from .metadata import Field, ValueType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXACT_NAMES", "EXACT_VALUES", "SKIPPED_NAMES", "SKIPPED_VALUES", "exact_values", "skipped_rows"]

EXACT_NAMES: Final = "qconv.source.exact_names"
EXACT_VALUES: Final = "qconv.source.exact_values"
SKIPPED_NAMES: Final = "qconv.source.skipped_names"
SKIPPED_VALUES: Final = "qconv.source.skipped_values"


def exact_values(
    metadata: Mapping[str, Field], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, NDArray[np.generic]]:
    """Return the original values by tensor name; empty where the keys do not fit the tensors. Raises FormatError for keys of wrong types."""
    names: Sequence[str] = get_strings(metadata, EXACT_NAMES, path) or ()
    values = get_numbers(metadata, EXACT_VALUES, (ValueType.FLOAT32,), path)
    if values is None or any(name not in tensors for name in names):
        return {}
    found: dict[str, NDArray[np.generic]] = {}
    start = 0
    for name in names:
        size = tensors[name].row_count * tensors[name].columns
        found[name] = values[start : start + size]
        start += size
    return found if start == len(values) else {}


def skipped_rows(
    metadata: Mapping[str, Field], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, NDArray[np.generic]]:
    """Return the rows that matrices lack, (rows, columns), by tensor name; empty where the keys do not fit the tensors, raises FormatError."""
    names: Sequence[str] = get_strings(metadata, SKIPPED_NAMES, path) or ()
    values = get_numbers(metadata, SKIPPED_VALUES, (ValueType.FLOAT32,), path)
    if values is None or not names or any(name not in tensors for name in names):
        return {}
    width = sum(tensors[name].columns for name in names)
    count, rest = divmod(len(values), width) if width else (0, 1)
    if rest:
        return {}
    found: dict[str, NDArray[np.generic]] = {}
    start = 0
    for name in names:
        columns = tensors[name].columns
        found[name] = values[start : start + count * columns].reshape(count, columns)
        start += count * columns
    return found
