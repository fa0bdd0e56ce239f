"""Queries that grow with the position, so that attention over long texts stays as sharp as over short ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ModelError
from ...formats.architectures import Architecture, RuntimeFacts
from ...formats.base import Model
from ...formats.getters import get_integer, get_number
from .rope_settings import RopeSettings

__all__ = ["Temperature", "read_temperature"]


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries at position p are multiplied by ``1 + slope ln(1 + floor((p + shift) / length))``, perhaps only in layers without rotation."""

    slope: float
    length: int
    shift: int = 0
    unrotated: bool = False


def read_temperature(
    model: Model, architecture: Architecture, values: Mapping[str, bool | int | float], rope: RopeSettings | None
) -> Temperature | None:
    """Return how queries grow, None where they do not; raises ModelError for no number, or no length. ``values`` are the hyper-parameters."""
    if isinstance(architecture.runtime, RuntimeFacts) and architecture.runtime.unrotated_temperature:
        return _checked(model, float(values["temperature_slope"]), int(values["temperature_length"]), 1, True)
    if rope is None or architecture.rope is None or not architecture.rope.temperature:
        return None
    prefix = f"{architecture.gguf}.attention.temperature"
    slope = float(get_number(model.metadata, f"{prefix}_scale", model.path) or 0.0)
    length = rope.original_context
    if architecture.rope.temperature_length:
        length = get_integer(model.metadata, f"{prefix}_length", model.path) or length
    return _checked(model, slope, length, 0, False)


def _checked(model: Model, slope: float, length: int, shift: int, unrotated: bool) -> Temperature | None:
    if not math.isfinite(slope) or (slope and length < 1):
        raise ModelError(
            f"attention.temperature_scale is {slope}, which needs a number and an original context", path=model.path
        )
    return Temperature(slope, length, shift, unrotated) if slope else None
