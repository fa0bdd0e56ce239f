"""What a forward pass needs to know: GGUF metadata, completed by the architecture's description."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ..errors import ModelError, UnknownArchitectureError
from ..formats.architectures import (
    Architecture,
    Expression,
    HyperParameter,
    Mark,
    RuntimeFacts,
    built_in_architectures,
)
from ..formats.base import Model
from ..formats.getters import get_flag, get_integer, get_number
from ..formats.huggingface.out.values import recover_values
from .rope_settings import RopeSettings, logit_multiplier, read_local_rope, read_rope
from .temperature import Temperature, read_temperature

__all__ = ["Configuration", "DeltaHeads", "Latent", "Routing", "Sparse", "StateSpace", "read_configuration"]

Values = Mapping[str, bool | int | float]
Layered = Mapping[str, tuple[int | float, ...]]


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values of all heads come from one short vector per position.

    Attributes:
        rank: length of that vector.
        key_size: dimensions of a head's keys as they are compared, the rotated ones among them.
        value_size: dimensions of a head's values.
    """

    rank: int
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class Sparse:
    """Sizes of an indexer (see :mod:`.indexer`).

    Attributes:
        heads: of its queries.
        size: dimensions of its keys, of which the leading ones are rotated as many as in attention.
        top: how many positions it chooses.
        order: how the pairs of rotated dimensions lie.
    """

    heads: int
    size: int
    top: int
    order: Literal["neox", "interleaved"]


@dataclass(frozen=True, slots=True)
class DeltaHeads:
    """Heads of linear attention by the gated delta rule (arXiv:2412.06464).

    Attributes:
        keys: heads of queries and keys.
        values: heads of values, each with a memory of its own; so many share a key head.
        size: dimensions of a head.
        tiled: whether value head v reads key head v modulo ``keys``, or neighbours share one.
    """

    keys: int
    values: int
    size: int
    tiled: bool


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Sizes of state space layers (Mamba-2, arXiv:2405.21060).

    Attributes:
        heads: each with a memory of its own.
        size: dimensions of a head's values.
        groups: neighbouring heads share what is written and read.
        state: dimensions of what is written and read.
    """

    heads: int
    size: int
    groups: int
    state: int

    @property
    def inner(self) -> int:
        """Numbers of all heads together."""
        return self.heads * self.size

    @property
    def channels(self) -> int:
        """Numbers per position that are convolved: values, what is written, and what is read."""
        return self.inner + 2 * self.groups * self.state


@dataclass(frozen=True, slots=True)
class Routing:
    """How a router's logits become experts and weights.

    Attributes:
        gating: how logits become scores.
        used: experts per token.
        normalised: whether the weights of a token's experts are divided by their sum.
        scale: they are multiplied by it.
        groups: experts are in so many groups of equal size.
        groups_used: a token's experts come from so many of them.
        by_maximum: whether groups are chosen by their best expert, or by the sum of their two best.
        of_inputs: whether weights multiply what experts are given, or what they make.
    """

    gating: Literal["softmax", "sigmoid"]
    used: int
    normalised: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    by_maximum: bool = False
    of_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """Sizes and constants of a model.

    Attributes:
        architecture: name of the description that fits.
        facts: what it says about the forward pass.
        layers: number of blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads, the most of any layer; each serves ``heads // kv_heads`` query heads.
        head_size: dimensions of a head's queries and keys, the most of any layer.
        value_size: dimensions of a head's values, the most of any layer.
        context: the context that the model was trained for.
        epsilon: added to variances in norms.
        parallel: whether attention and feed-forward both read a block's input.
        embedding_scale: token embeddings are multiplied by it.
        residual_scale: what attention and feed-forward add is multiplied by it.
        logit_scale: the model's logits are multiplied by it.
        attention_scale: attention logits are multiplied by it.
        attention_temperature: how queries grow with the position, None where they do not.
        attention_soft_cap: attention logits x become ``cap * tanh(x / cap)``; None: no cap.
        attention_clamp: numbers of queries, keys and values go from minus this to this; None: they are not limited.
        final_soft_cap: the same as attention_soft_cap for the model's logits.
        window: positions that a layer with a sliding window sees, its own included, or a chunk's; 0: there are no such layers.
        sliding_period: every layer whose number, from 1, is a multiple sees everything; 0: all do.
        unrotated_period: every layer whose number, from 1, is a multiple does not rotate; 0: there are no such.
        plain_head_norms: whether layers that rotate normalise heads of queries and keys without weights.
        experts: number of experts, 0 for a dense model.
        dense_layers: leading blocks without experts.
        expert_period: of the others, every block whose number, from 1, is a multiple has experts.
        routing: how experts are chosen, None for a dense model.
        latent: sizes of latent attention, None for others. ``head_size`` and ``value_size`` are then those of what is cached.
        sparse: sizes of the indexer of sparse attention, whose keys are cached behind the latents; None for others.
        delta_heads: those of layers with linear attention, None where there are no such layers.
        state_space: sizes of state space layers, None where there are no such layers.
        rope: rotary positions, None for learned ones.
        local_rope: those of layers with a sliding window, where they differ.
        keys_as_values: whether layers that see everything have no projection of values: they are what that of keys gives.
        streams: residual streams, of which blocks compute the first.
        layer_input: width of what every block learns of a token by itself, 0: there is no such input.
        layered: numbers that differ from layer to layer, by the names of the architecture's description; one entry per layer.
    """

    architecture: str
    facts: RuntimeFacts
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    context: int
    epsilon: float
    parallel: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    attention_scale: float
    attention_temperature: Temperature | None
    attention_soft_cap: float | None
    attention_clamp: float | None
    final_soft_cap: float | None
    window: int
    sliding_period: int
    unrotated_period: int
    plain_head_norms: bool
    experts: int
    dense_layers: int
    expert_period: int
    routing: Routing | None
    latent: Latent | None
    sparse: Sparse | None
    delta_heads: DeltaHeads | None
    state_space: StateSpace | None
    rope: RopeSettings | None
    local_rope: RopeSettings | None
    keys_as_values: bool = False
    streams: int = 1
    layer_input: int = 0
    layered: Layered = field(default_factory=lambda: MappingProxyType({}))

    @property
    def experts_used(self) -> int:
        """Experts per token, 0 for a dense model."""
        return 0 if self.routing is None else self.routing.used

    def has_experts(self, layer: int) -> bool:
        """Whether a layer (counted from 0) has experts."""
        return self.routing is not None and layer >= self.dense_layers and (layer + 1) % self.expert_period == 0

    def layer_kv_heads(self, layer: int) -> int:
        """Return the key and value heads of a layer (counted from 0)."""
        return self._own("kv_heads", layer, self.kv_heads)

    def layer_head_size(self, layer: int) -> int:
        """Return the dimensions of a head's queries and keys in a layer (counted from 0)."""
        return self._own("head_dim", layer, self.head_size)

    def layer_value_size(self, layer: int) -> int:
        """Return the dimensions of a head's values in a layer (counted from 0)."""
        usual = self.layer_head_size(layer) if "head_dim" in self.layered else self.value_size
        return self._own("value_dim", layer, usual)

    def keys_from(self, layer: int) -> int:
        """Return the layer whose keys and values a layer (counted from 0) reads: itself, or one before it."""
        return self._own("keys_from", layer, layer)

    def layer_sparsity(self, layer: int) -> float:
        """Return the share of a feed-forward's gate that a layer (counted from 0) leaves out, if it is normally distributed."""
        return float(self.layered["sparsity"][layer]) if "sparsity" in self.layered else 0.0

    def lends_keys(self, layer: int) -> bool:
        """Whether a later layer reads the keys and values of this one (counted from 0)."""
        return layer in self.layered.get("keys_from", ())[layer + 1 :]

    def _own(self, name: str, layer: int, usual: int) -> int:
        return int(self.layered[name][layer]) if name in self.layered else usual

    def layer_window(self, layer: int) -> int | None:
        """Return how many positions a layer (counted from 0) sees, None for all."""
        if self.window and "sliding" in self.layered:
            return self.window if self.layered["sliding"][layer] else None
        if not self.window or not self.sliding_period or (layer + 1) % self.sliding_period == 0:
            return None
        return self.window

    def layer_rope(self, layer: int) -> RopeSettings | None:
        """Return the rotary settings of a layer (counted from 0), None where it does not rotate."""
        if self.unrotated_period and (layer + 1) % self.unrotated_period == 0:
            return None
        if self.layer_window(layer) is None:
            return self.rope if self.facts.rotated == "all" or not self.window else None
        return self.rope if self.local_rope is None else self.local_rope


def read_configuration(model: Model, architectures: Iterable[Architecture] | None = None) -> Configuration:
    """Return the configuration of ``model``; ``architectures`` are those to choose from, the built-in ones where None.

    Raises UnknownArchitectureError where none fits, FormatError for metadata of a wrong type, ModelError for metadata that are absent or absurd.
    """
    known = built_in_architectures() if architectures is None else tuple(architectures)
    architecture = _choose(model, known)
    facts = architecture.runtime
    if isinstance(facts, str):
        raise ModelError(
            f"there is no forward pass for the architecture {architecture.name}: {facts}",
            path=model.path,
            remedy="Convert and quantize it as any other; measure it with a program that runs such models, llama.cpp for one.",
        )
    values, layered = _hyper_parameters(model, architecture)

    def size(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and default is None):
            raise ModelError(f"the model's {name} is {value!r}, which must be a whole number above 0", path=model.path)
        return value

    heads, hidden = size("heads"), size("hidden")
    all_kv_heads = layered.get("kv_heads") or (size("kv_heads", heads),)
    head_sizes = layered.get("head_dim") or (size("head_dim", hidden // heads),)
    for kv_heads in filter(None, all_kv_heads):  # layers without attention have none
        if heads % kv_heads or not min(head_sizes):
            raise ModelError(f"{heads} query heads cannot share {kv_heads} key and value heads", path=model.path)
    _check_lent_keys(model, layered)
    head_size = int(max(head_sizes))
    experts = size("experts", 0)
    epsilon = values.get("epsilon")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise ModelError(f"the model's epsilon is {epsilon!r}, which must be between 0 and 1", path=model.path)
    rotated = facts.rotated_when is None or facts.rotated_when.holds(values)
    rope = (
        read_rope(model, architecture, _rotated_size(architecture, values, head_size), size("context", 0))
        if rotated
        else None
    )
    embedding_scale = _multiplier(model, values, "embedding_multiplier")
    scale = _multiplier(model, values, "attention_multiplier", 0.0) or facts.attention_scale.evaluate(values) ** -0.5
    parallel = facts.parallel
    sparse = _sparse(model, facts, values, rope)
    return Configuration(
        architecture=architecture.name,
        facts=facts,
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=int(max(all_kv_heads)),
        head_size=head_size + (0 if sparse is None else sparse.size),
        value_size=head_size if "head_dim" in layered else size("value_dim", head_size),
        context=size("context", 0),
        epsilon=epsilon,
        parallel=parallel if isinstance(parallel, bool) else parallel.holds(values),
        embedding_scale=embedding_scale * (math.sqrt(hidden) if facts.scale_embedding else 1.0),
        residual_scale=_multiplier(model, values, "residual_multiplier"),
        logit_scale=_multiplier(model, values, "logit_multiplier") / _multiplier(model, values, "logit_divisor"),
        attention_scale=scale * logit_multiplier(model, architecture, rope),
        attention_temperature=read_temperature(model, architecture, values, rope),
        attention_soft_cap=_cap(values, "attention_soft_cap"),
        attention_clamp=_cap(values, "attention_clamp"),
        final_soft_cap=_cap(values, "final_soft_cap"),
        window=size("window", 0),
        sliding_period=0 if facts.sliding_period is None else facts.sliding_period.evaluate(values),
        unrotated_period=0 if facts.unrotated_period is None else facts.unrotated_period.evaluate(values),
        plain_head_norms=facts.plain_head_norms is not None and facts.plain_head_norms.holds(values),
        experts=experts,
        dense_layers=size("dense_layers", 0),
        expert_period=size("expert_period", 1) or 1,
        routing=_routing(model, facts, values, experts),
        latent=_latent(model, values, rope),
        sparse=sparse,
        delta_heads=_delta_heads(model, facts, values),
        state_space=_state_space(model, values),
        rope=rope,
        local_rope=read_local_rope(model, architecture, rope, values),
        keys_as_values=bool(values.get("keys_as_values")),
        streams=size("streams", 1),
        layer_input=size("layer_input", 0),
        layered=MappingProxyType(layered),
    )


def _check_lent_keys(model: Model, layered: Layered) -> None:
    """Raise ModelError where a layer would read the keys of one that has none, or another kind of them."""
    sources = layered.get("keys_from", ())
    for layer, source in enumerate(sources):
        alike = 0 <= source <= layer and all(
            layered[name][layer] == layered[name][int(source)]
            for name in ("kv_heads", "head_dim", "sliding")
            if name in layered
        )
        if not alike or sources[int(source)] != source:
            raise ModelError(
                f"layer {layer} cannot read the keys and values of layer {source}",
                path=model.path,
                remedy="attention.shared_kv_layers and attention.sliding_window_pattern do not fit each other.",
            )


def _rotated_size(architecture: Architecture, values: Values, head_size: int) -> int:
    """Return the size of heads that rotary positions count on: those of layers that see everything, where layers differ."""
    if not architecture.per_layer or architecture.rope is None:
        return head_size
    return architecture.rope.dimensions.evaluate(values)


def _choose(model: Model, known: tuple[Architecture, ...]) -> Architecture:
    """Return the description: by ``general.architecture``, and where families share it, by the mark of one, or the one without."""
    name = model.architecture
    fitting = [item for item in known if item.gguf == name]
    if len(fitting) > 1:
        marked = [item for item in fitting if item.mark is not None and _bears(model, name, item.mark)]
        fitting = marked or [item for item in fitting if item.mark is None]
    if all(isinstance(item.runtime, str) for item in fitting):
        fitting = fitting[:1]  # none of them runs, for reasons of their own
    if len(fitting) != 1:
        raise UnknownArchitectureError(
            f"the architecture {name!r} has no description that a forward pass could follow",
            path=model.path,
            remedy=f"Known: {', '.join(sorted({item.gguf for item in known}))}.",
        )
    return fitting[0]


def _bears(model: Model, name: str, mark: Mark) -> bool:
    return (get_integer(model.metadata, f"{name}.{mark.key}", model.path) or 0) >= mark.at_least


def _hyper_parameters(model: Model, architecture: Architecture) -> tuple[Values, Layered]:
    """Return values by the names that expressions use, and those that differ from layer to layer."""
    if not architecture.per_layer:
        return _model_values(model, architecture), {}
    found = recover_values(architecture, model)
    return (
        {name: value for name, value in found.items() if not isinstance(value, tuple)},
        {name: value for name, value in found.items() if isinstance(value, tuple)},
    )


def _model_values(model: Model, architecture: Architecture) -> Values:
    """Return values of the whole model: from metadata, else the description's default."""
    values: dict[str, bool | int | float] = {}
    for parameter in architecture.hyper_parameters:
        if parameter.recovered is not None:
            continue
        value = _metadata_value(model, architecture, parameter)
        if value is None:
            value = parameter.usual(values)
        if value is not None:
            values[parameter.name] = value
    for parameter in architecture.hyper_parameters:
        if isinstance(parameter.recovered, Expression):
            values[parameter.name] = parameter.recovered.evaluate(values)
        elif parameter.recovered is not None:
            values[parameter.name] = parameter.recovered.holds(values)
    return values


def _metadata_value(model: Model, architecture: Architecture, parameter: HyperParameter) -> bool | int | float | None:
    get = {"uint32": get_integer, "float32": get_number}.get(parameter.type, get_flag)
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


def _multiplier(model: Model, values: Values, name: str, default: float = 1.0) -> float:
    value = float(values.get(name, default))
    if not (math.isfinite(value) and (value > 0 or value == default)):
        raise ModelError(f"the model's {name} is {value!r}, which must be a number above 0", path=model.path)
    return value


def _routing(model: Model, facts: RuntimeFacts, values: Values, experts: int) -> Routing | None:
    if facts.expert_gating is None or not experts:
        return None
    used, groups = int(values.get("experts_used", 0)), int(values.get("expert_group_count", 1)) or 1
    groups_used = int(values.get("expert_group_used_count", groups)) or groups
    if not 0 < used <= experts:
        raise ModelError(f"{used} of {experts} experts cannot be used", path=model.path)
    if experts % groups or groups_used > groups or used > experts // groups * groups_used:
        raise ModelError(
            f"{used} of {experts} experts cannot come from {groups_used} of {groups} groups", path=model.path
        )
    return Routing(
        "sigmoid" if facts.expert_gating == "sigmoid" else "softmax",
        used,
        facts.expert_gating == "softmax_top_k_normalised" or bool(values.get("expert_weights_norm")),
        _multiplier(model, values, "expert_weights_scale"),
        groups,
        groups_used,
        facts.expert_groups == "maximum",
        facts.expert_weighting == "inputs",
    )


def _latent(model: Model, values: Values, rope: RopeSettings | None) -> Latent | None:
    if "kv_rank" not in values:
        return None
    latent = Latent(*(int(values.get(name, 0)) for name in ("kv_rank", "mla_key_dim", "mla_value_dim")))
    rotated = 0 if rope is None else rope.dimensions
    if latent.rank < 1 or latent.value_size < 1 or not 0 < rotated < latent.key_size:
        raise ModelError(
            f"latent attention with {latent.rank} dimensions, keys of {latent.key_size} of which {rotated} are rotated, "
            f"and values of {latent.value_size} is none",
            path=model.path,
        )
    return latent


def _sparse(model: Model, facts: RuntimeFacts, values: Values, rope: RopeSettings | None) -> Sparse | None:
    if facts.indexer is None:
        return None
    heads, size, top = (int(values.get(name, 0)) for name in ("index_heads", "index_dim", "index_top"))
    rotated = 0 if rope is None else rope.dimensions
    if heads < 1 or top < 1 or not 0 < rotated <= size:
        raise ModelError(
            f"an indexer of {heads} heads of {size} dimensions, of which {rotated} are rotated, that chooses {top} positions is none",
            path=model.path,
        )
    return Sparse(heads, size, top, facts.indexer)


def _delta_heads(model: Model, facts: RuntimeFacts, values: Values) -> DeltaHeads | None:
    if facts.value_heads is None:
        return None
    keys, heads, size = (int(values.get(name, 0)) for name in ("key_groups", "value_heads", "state"))
    if keys < 1 or heads < 1 or heads % keys or size < 1:
        raise ModelError(f"{heads} value heads of {size} dimensions cannot share {keys} key heads", path=model.path)
    return DeltaHeads(keys, heads, size, facts.value_heads == "tiled")


def _state_space(model: Model, values: Values) -> StateSpace | None:
    if "state_heads" not in values:
        return None
    heads, inner, groups, state = (int(values.get(name, 0)) for name in ("state_heads", "inner", "groups", "state"))
    if heads < 1 or inner < 1 or groups < 1 or state < 1 or inner % heads or heads % groups:
        raise ModelError(
            f"a state space of {inner} numbers in {heads} heads and {groups} groups, with {state} dimensions, is none",
            path=model.path,
        )
    return StateSpace(heads, inner // heads, groups, state)
