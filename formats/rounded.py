"""Vectors that a file holds transformed and rounded, and their original values in its metadata.

============================== ======= ==========================================================================
``qconv.source.exact_names``   strings tensors whose values would not come back to the bit
``qconv.source.exact_values``  float32 the original values of each, one vector after another
============================== ======= ==========================================================================

Nobody has to believe them: a value counts only where transforming it gives what the file holds.
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

__all__ = ["EXACT_NAMES", "EXACT_VALUES", "exact_values"]

EXACT_NAMES: Final = "qconv.source.exact_names"
EXACT_VALUES: Final = "qconv.source.exact_values"


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
        found[name] = values[start : start + tensors[name].columns]
        start += tensors[name].columns
    return found if start == len(values) else {}
