"""What a GGUF file keeps beside shifted norms, so that they can be shifted back to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ..architectures.matrices import Shifted
from ..base import Model
from ..metadata import ValueType, numbers, strings
from ..rounded import EXACT_NAMES, EXACT_VALUES

__all__ = ["keep_rounded_norms"]

_PLAIN = ("F32", "F16", "BF16")


def keep_rounded_norms(model: Model) -> Model:
    """Return ``model`` with the original values, as metadata, of the norms that lose bits where 1 is added to them.

    Those are all of a float32 checkpoint, and of a 16-bit one those with a weight below 2^-16. Reads the norms.
    """
    names: list[str] = []
    values: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    for tensor in model.tensors.values():
        shifted = tensor.read
        if not isinstance(shifted, Shifted) or tensor.row_count != 1:
            continue
        source = shifted.source
        if source.encoding.name not in _PLAIN:
            continue
        back = tensor.rows(0, 1) - np.float32(shifted.amount)
        if not np.array_equal(source.encoding.encode(back), source.read(0, 1)):
            names.append(tensor.name)
            values.append(source.rows(0, 1)[0])
    if not names:
        return model
    kept = {EXACT_NAMES: strings(names), EXACT_VALUES: numbers(np.concatenate(values), ValueType.FLOAT32)}
    return replace(model, metadata=MappingProxyType({**model.metadata, **kept}))
