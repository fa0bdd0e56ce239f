"""What metadata say of rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import ModelError
from ...formats.architectures import Architecture
from ...formats.base import Model
from ...formats.getters import get_integer, get_number, get_string
from ...formats.yarn import ATTENTION, BETAS, LOG_MULTIPLIER, Magnitudes, yarn_magnitudes

__all__ = ["RopeSettings", "logit_multiplier", "read_local_rope", "read_rope"]

_THETA = 10000.0  # GGUF's meaning of a missing rope.freq_base
(_, _BETA_FAST), (_, _BETA_SLOW) = BETAS
_YARN_SLOPE = 0.1  # yarn multiplies by one plus so many times the logarithm of the factor


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """Rotary positions of one kind of layer.

    Attributes:
        order: ``neox`` rotates dimensions (i, i + d/2), ``interleaved`` (2i, 2i + 1).
        dimensions: how many leading dimensions of a head are rotated.
        theta: base of the frequencies.
        factor: frequencies are divided by it (linear), or the low ones are (yarn).
        yarn: whether high frequencies keep their value, with a ramp between ``beta_fast`` and ``beta_slow`` turns over the original context.
        original_context: context of the first training.
        attention_factor: cosines and sines are multiplied by it (yarn multiplies by ``1 + 0.1 ln factor`` on top).
        beta_fast: turns above which yarn keeps a frequency.
        beta_slow: turns below which yarn divides it by the whole factor.
    """

    order: Literal["neox", "interleaved"]
    dimensions: int
    theta: float
    factor: float = 1.0
    yarn: bool = False
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = _BETA_FAST
    beta_slow: float = _BETA_SLOW


def read_rope(model: Model, architecture: Architecture, head_size: int, context: int) -> RopeSettings | None:
    """Return the settings of layers that see everything, None for a family without rotary positions; raises ModelError for absurd ones."""
    rope = architecture.rope
    if rope is None:
        return None

    def number(key: str, default: float) -> float:
        value = get_number(model.metadata, f"{architecture.gguf}.rope.{key}", model.path)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ModelError(f"rope.{key} is {value}, which must be a number from 0", path=model.path)
        return default if value is None else float(value)

    dimensions = int(number("dimension_count", head_size))
    if dimensions % 2 or not 0 < dimensions <= head_size:
        raise ModelError(f"{dimensions} of {head_size} dimensions of a head cannot be rotated", path=model.path)
    theta = number("freq_base", _THETA)
    if theta <= 1:
        raise ModelError(f"rope.freq_base is {theta}, which must be above 1", path=model.path)
    kind = get_string(model.metadata, f"{architecture.gguf}.rope.scaling.type", model.path)
    if kind not in (None, "none", "linear", "yarn", "longrope"):
        raise ModelError(f"the rotary scaling {kind!r} is not known", path=model.path)
    # the second key is that of files from before scaling had types
    factor = (number("scaling.factor", number("scale_linear", 0.0)) if kind != "none" else 0.0) or 1.0
    attention_factor = number("scaling.attn_factor", 1.0)
    if kind == "yarn":
        turned = _magnitudes(model, architecture, factor, attention_factor).turned
        attention_factor = turned / (1.0 + _YARN_SLOPE * math.log(factor))
    return RopeSettings(
        order=rope.order,
        dimensions=dimensions,
        theta=theta,
        factor=factor,
        yarn=kind == "yarn",
        original_context=int(number("scaling.original_context_length", context)),
        attention_factor=attention_factor,
        beta_fast=number("scaling.yarn_beta_fast", _BETA_FAST),
        beta_slow=number("scaling.yarn_beta_slow", _BETA_SLOW),
    )


def read_local_rope(
    model: Model, architecture: Architecture, rope: RopeSettings | None, values: Mapping[str, object]
) -> RopeSettings | None:
    """Return the settings of layers with a sliding window where they differ from ``rope``, else None; raises ModelError for absurd ones.

    ``values`` are the hyper-parameters, which tell the size of these layers' heads where that differs.
    """
    described = architecture.rope
    if rope is None or described is None or described.local_theta is None:
        return None
    theta = get_number(model.metadata, f"{architecture.gguf}.rope.freq_base_swa", model.path)
    dimensions = rope.dimensions
    if described.local_dimensions is not None:
        size = described.local_dimensions.evaluate(values)
        stated = get_integer(model.metadata, f"{architecture.gguf}.rope.dimension_count_swa", model.path)
        dimensions = size if stated is None else stated
        if dimensions % 2 or not 0 < dimensions <= size:
            raise ModelError(f"{dimensions} of {size} dimensions of a head cannot be rotated", path=model.path)
    return RopeSettings(rope.order, dimensions, described.local_theta if theta is None else float(theta))


def logit_multiplier(model: Model, architecture: Architecture, rope: RopeSettings | None) -> float:
    """Return what yarn multiplies the logits of attention by, in families where it does."""
    if rope is None:
        return 1.0
    stated = get_number(model.metadata, f"{architecture.gguf}.{ATTENTION}", model.path)
    attention = 1.0 if stated is None else float(stated)
    return _magnitudes(model, architecture, rope.factor, attention, yarn=rope.yarn).logits


def _magnitudes(
    model: Model, architecture: Architecture, factor: float, attention: float, *, yarn: bool = True
) -> Magnitudes:
    multiplier = get_number(model.metadata, f"{architecture.gguf}.{LOG_MULTIPLIER}", model.path)
    return yarn_magnitudes(architecture, factor, attention, float(multiplier or 0.0), yarn=yarn)
