"""Which layers have a sliding window, as GGUF says it: a period, or a truth value for each layer, which newer files have."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from ..errors import ModelError
from .architectures import Architecture, RuntimeFacts
from .base import Model
from .metadata import Field, uint32

__all__ = ["PATTERN_KEY", "period_of", "with_period"]

PATTERN_KEY: Final = "attention.sliding_window_pattern"


def period_of(field: Field) -> int | None:
    """Return the period at whose multiples, counted from 1, layers see everything; None for layers that are in no such order.

    A period that no layer reaches stands for windows everywhere.
    """
    value = field.value
    if isinstance(value, np.ndarray):
        full = np.flatnonzero(~value.astype(bool))
        period = int(full[0]) + 1 if len(full) else len(value) + 1
        regular = np.arange(1, len(value) + 1) % period != 0
        return period if np.array_equal(regular, value.astype(bool)) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def with_period(architecture: Architecture, model: Model) -> Model:
    """Return a model with the period in the place of an array, in families that go by one; raises ModelError where the array has none."""
    key = f"{architecture.gguf}.{PATTERN_KEY}"
    field = model.metadata.get(key)
    facts = architecture.runtime
    by_period = isinstance(facts, RuntimeFacts) and facts.sliding_period is not None
    if field is None or not by_period or not isinstance(field.value, np.ndarray):
        return model
    period = period_of(field)
    if period is None:
        raise ModelError(
            f"{key} has windows in other layers than all but every n-th, which the description of {architecture.name} cannot say",
            path=model.path,
        )
    return replace(model, metadata=MappingProxyType({**model.metadata, key: uint32(period)}))
