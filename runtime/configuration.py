"""What a forward pass needs to know: GGUF metadata, completed by the architecture's description."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError, UnknownArchitectureError
from ..formats.architectures import Architecture, Expression, HyperParameter, RuntimeFacts, built_in_architectures
from ..formats.base import Model
from ..formats.getters import get_flag, get_integer, get_number, get_string

__all__ = ["Configuration", "RopeSettings", "read_configuration"]

Values = Mapping[str, bool | int | float]

_THETA = 10000.0  # GGUF's meaning of a missing rope.freq_base
_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # yarn's own


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


@dataclass(frozen=True, slots=True)
class Configuration:
    """Sizes and constants of a model.

    Attributes:
        architecture: name of the description that fits.
        facts: what it says about the forward pass.
        layers: number of blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; each serves ``heads // kv_heads`` query heads.
        head_size: dimensions of a head.
        context: the context that the model was trained for.
        epsilon: added to variances in norms.
        attention_scale: attention logits are multiplied by it.
        attention_soft_cap: attention logits x become ``cap * tanh(x / cap)``; None: no cap.
        final_soft_cap: the same for the model's logits.
        window: positions that a layer with a sliding window sees, its own included; 0: there are no such layers.
        sliding_period: every layer whose number, from 1, is a multiple sees everything; 0: all do.
        experts: number of experts, 0 for a dense model.
        experts_used: experts per token.
        rope: rotary positions, None for learned ones.
        local_rope: those of layers with a sliding window, where they differ.
    """

    architecture: str
    facts: RuntimeFacts
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    epsilon: float
    attention_scale: float
    attention_soft_cap: float | None
    final_soft_cap: float | None
    window: int
    sliding_period: int
    experts: int
    experts_used: int
    rope: RopeSettings | None
    local_rope: RopeSettings | None

    def layer_window(self, layer: int) -> int | None:
        """Return how many positions a layer (counted from 0) sees, None for all."""
        if not self.window or not self.sliding_period or (layer + 1) % self.sliding_period == 0:
            return None
        return self.window

    def layer_rope(self, layer: int) -> RopeSettings | None:
        """Return the rotary settings of a layer (counted from 0)."""
        if self.local_rope is not None and self.layer_window(layer) is not None:
            return self.local_rope
        return self.rope


def read_configuration(model: Model, architectures: Iterable[Architecture] | None = None) -> Configuration:
    """Return the configuration of ``model``; ``architectures`` are those to choose from, the built-in ones where None.

    Raises UnknownArchitectureError where none fits, FormatError for metadata of a wrong type, ModelError for metadata that are absent or absurd.
    """
    known = built_in_architectures() if architectures is None else tuple(architectures)
    architecture = _choose(model, known)
    values = _hyper_parameters(model, architecture)

    def size(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and default is None):
            raise ModelError(f"the model's {name} is {value!r}, which must be a whole number above 0", path=model.path)
        return value

    facts = architecture.runtime
    heads, hidden = size("heads"), size("hidden")
    kv_heads = size("kv_heads", heads)
    head_size = size("head_dim", hidden // heads)
    if not kv_heads or heads % kv_heads or not head_size:
        raise ModelError(f"{heads} query heads cannot share {kv_heads} key and value heads", path=model.path)
    experts = size("experts", 0)
    experts_used = size("experts_used", 0)
    if experts and not 0 < experts_used <= experts:
        raise ModelError(f"{experts_used} of {experts} experts cannot be used", path=model.path)
    epsilon = values.get("epsilon")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise ModelError(f"the model's epsilon is {epsilon!r}, which must be between 0 and 1", path=model.path)
    rope = _rope(model, architecture, head_size, size("context", 0))
    return Configuration(
        architecture=architecture.name,
        facts=facts,
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context=size("context", 0),
        epsilon=epsilon,
        attention_scale=1.0 / math.sqrt(facts.attention_scale.evaluate(values)),
        attention_soft_cap=_cap(values, "attention_soft_cap"),
        final_soft_cap=_cap(values, "final_soft_cap"),
        window=size("window", 0),
        sliding_period=0 if facts.sliding_period is None else facts.sliding_period.evaluate(values),
        experts=experts,
        experts_used=experts_used,
        rope=rope,
        local_rope=_local_rope(model, architecture, rope),
    )


def _choose(model: Model, known: tuple[Architecture, ...]) -> Architecture:
    """Return the description: by ``general.architecture``, and where two families share it, by whether there are experts."""
    name = model.architecture
    fitting = [item for item in known if item.gguf == name]
    if len(fitting) > 1:
        mixture = bool(get_integer(model.metadata, f"{name}.expert_count", model.path))
        fitting = [item for item in fitting if (item.runtime.expert_gating is not None) == mixture]
    if len(fitting) != 1:
        raise UnknownArchitectureError(
            f"the architecture {name!r} has no description that a forward pass could follow",
            path=model.path,
            remedy=f"Known: {', '.join(sorted({item.gguf for item in known}))}.",
        )
    return fitting[0]


def _hyper_parameters(model: Model, architecture: Architecture) -> dict[str, bool | int | float]:
    """Return values by the names that expressions use: from metadata, else the description's default."""
    values: dict[str, bool | int | float] = {}
    for parameter in architecture.hyper_parameters:
        value = _metadata_value(model, architecture, parameter)
        if value is None:
            default = parameter.default
            value = default.evaluate(values) if isinstance(default, Expression) else default
        if value is not None:
            values[parameter.name] = value
    return values


def _metadata_value(model: Model, architecture: Architecture, parameter: HyperParameter) -> bool | int | float | None:
    get = {"uint32": get_integer, "float32": get_number, "bool": get_flag}[parameter.type]
    read = [get(model.metadata, f"{architecture.gguf}.{key}", model.path) for key in parameter.keys]
    found = {value for value in read if value is not None}
    if len(found) > 1:
        raise ModelError(
            f"{' and '.join(parameter.keys)} are {' and '.join(map(str, sorted(found)))}, which must be equal in this architecture",
            path=model.path,
        )
    value = next(iter(found), None)
    return float(value) if value is not None and parameter.type == "float32" else value


def _cap(values: Values, name: str) -> float | None:
    value = values.get(name)
    return float(value) if value else None


def _rope(model: Model, architecture: Architecture, head_size: int, context: int) -> RopeSettings | None:
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
    factor = number("scaling.factor", number("scale_linear", 0.0)) if kind != "none" else 0.0
    return RopeSettings(
        order=rope.order,
        dimensions=dimensions,
        theta=theta,
        factor=factor or 1.0,
        yarn=kind == "yarn",
        original_context=int(number("scaling.original_context_length", context)),
        attention_factor=number("scaling.attn_factor", 1.0),
        beta_fast=number("scaling.yarn_beta_fast", _BETA_FAST),
        beta_slow=number("scaling.yarn_beta_slow", _BETA_SLOW),
    )


def _local_rope(model: Model, architecture: Architecture, rope: RopeSettings | None) -> RopeSettings | None:
    if rope is None or architecture.rope is None or architecture.rope.local_theta is None:
        return None
    theta = get_number(model.metadata, f"{architecture.gguf}.rope.freq_base_swa", model.path)
    return RopeSettings(rope.order, rope.dimensions, architecture.rope.local_theta if theta is None else float(theta))
