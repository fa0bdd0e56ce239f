"""What a GGUF file keeps of its source so that the way back is exact: vectors that lost bits when they were computed, and rows that were left out."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ..architectures.elementwise import Rounded
from ..architectures.rows import Skipped
from ..base import Model
from ..metadata import Field, ValueType, numbers, strings
from ..rounded import EXACT_NAMES, EXACT_VALUES, SKIPPED_NAMES, SKIPPED_VALUES

__all__ = ["keep_originals"]

_PLAIN = ("F32", "F16", "BF16")
_ROWS_MAX = 4  # that are worth their place in the metadata


def keep_originals(model: Model) -> Model:
    """Return ``model`` with the original values, as metadata, of vectors that lose bits where they are computed, and of rows left out.

    Norms lose bits where 1 is added to them: all of a float32 checkpoint, and of a 16-bit one those with a weight below 2^-16. Reads such vectors and the rows.
    """
    kept = _rounded_vectors(model) | _skipped_rows(model)
    return replace(model, metadata=MappingProxyType({**model.metadata, **kept})) if kept else model


def _rounded_vectors(model: Model) -> dict[str, Field]:
    names: list[str] = []
    values: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    for tensor in model.tensors.values():
        computed = tensor.read
        if not isinstance(computed, Rounded) or 1 not in (tensor.row_count, tensor.columns):
            continue
        source = computed.source
        if source.encoding.name not in _PLAIN:
            continue
        back = computed.step.inverse(tensor.rows(0, tensor.row_count))
        if not np.array_equal(source.encoding.encode(back), source.read(0, source.row_count)):
            names.append(tensor.name)
            values.append(source.rows(0, source.row_count).reshape(-1))
    if not names:
        return {}
    return {EXACT_NAMES: strings(names), EXACT_VALUES: numbers(np.concatenate(values), ValueType.FLOAT32)}


def _skipped_rows(model: Model) -> dict[str, Field]:
    skipped = {name: it.read for name, it in model.tensors.items() if isinstance(it.read, Skipped)}
    counts = {it.first for it in skipped.values()}
    if len(counts) != 1 or max(counts) > _ROWS_MAX:
        return {}
    values = np.concatenate([it.source.rows(0, it.first).reshape(-1) for it in skipped.values()])
    return {SKIPPED_NAMES: strings(list(skipped)), SKIPPED_VALUES: numbers(values, ValueType.FLOAT32)}
