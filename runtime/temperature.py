"""Queries that grow with the position, so that attention over long texts stays as sharp as over short ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from ..formats.architectures import Architecture
from ..formats.base import Model
from ..formats.getters import get_integer, get_number
from .rope_settings import RopeSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .run import Run

__all__ = ["Temperature", "query_temperature", "read_temperature"]


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries at position p are multiplied by ``1 + slope ln(1 + floor(p / length))``."""

    slope: float
    length: int


def read_temperature(model: Model, architecture: Architecture, rope: RopeSettings | None) -> Temperature | None:
    """Return how queries grow, None where they do not; raises ModelError for no number, or no length."""
    if rope is None or architecture.rope is None or not architecture.rope.temperature:
        return None
    prefix = f"{architecture.gguf}.attention.temperature"
    slope = float(get_number(model.metadata, f"{prefix}_scale", model.path) or 0.0)
    length = rope.original_context
    if architecture.rope.temperature_length:
        length = get_integer(model.metadata, f"{prefix}_length", model.path) or length
    if not math.isfinite(slope) or (slope and length < 1):
        raise ModelError(
            f"attention.temperature_scale is {slope}, which needs a number and an original context", path=model.path
        )
    return Temperature(slope, length) if slope else None


def query_temperature(run: Run) -> NDArray[np.float32] | None:
    """Return float32 (rows,): what queries are multiplied by, None for nothing."""
    temperature = run.configuration.attention_temperature
    if temperature is None:
        return None
    lengths = run.hooks.positions // temperature.length
    return (1.0 + temperature.slope * np.log1p(lengths)).astype(np.float32)
