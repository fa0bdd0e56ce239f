"""What a forward pass needs to know: sizes and constants of a model and of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ...formats.architectures import RuntimeFacts
from ..attention.rope_settings import RopeSettings
from ..attention.temperature import Temperature

__all__ = ["Configuration", "DeltaHeads", "KimiHeads", "Latent", "Routing", "Sparse", "StateSpace", "StreamMixing"]

Layered = Mapping[str, tuple[int | float, ...]]


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values of all heads come from one short vector per position.

    Attributes:
        rank: length of that vector.
        key_size: dimensions of a head's keys as they are compared, the shared ones among them.
        value_size: dimensions of a head's values.
        shared: dimensions of keys that all heads have in common, behind the others: those that are rotated, in families that rotate.
    """

    rank: int
    key_size: int
    value_size: int
    shared: int


@dataclass(frozen=True, slots=True)
class Sparse:
    """Sizes of an indexer (see :mod:`.indexer`).

    Attributes:
        heads: of its queries.
        size: dimensions of its keys, of which the leading ones are rotated as many as in attention.
        top: how many positions it chooses.
        order: how the pairs of rotated dimensions lie; None: none are rotated.
        pool: it chooses so many neighbouring positions together, see :mod:`.pooled_indexer`; 1: each by itself.
    """

    heads: int
    size: int
    top: int
    order: Literal["neox", "interleaved"] | None
    pool: int = 1

    @property
    def cached(self) -> int:
        """Numbers of a position that are cached: its key, and with pools what its key weighs among those of its pool."""
        return self.size if self.pool == 1 else 2 * self.size


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
class KimiHeads:
    """Heads of linear attention whose every dimension forgets at its own pace (Kimi Linear, arXiv:2510.26692).

    Attributes:
        count: heads of queries, keys and values.
        size: dimensions of a head.
        limit: the logarithm of the least that is kept of a dimension from one position to the next; None: there is no limit.
    """

    count: int
    size: int
    limit: float | None


@dataclass(frozen=True, slots=True)
class StreamMixing:
    """How residual streams are mixed (see :mod:`.hyper_connections`).

    Attributes:
        rounds: how often rows and columns of the shares are brought to a sum of 1.
        epsilon: added to shares, and to sums that something is divided by.
    """

    rounds: int
    epsilon: float


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
        kimi_heads: those of layers with Kimi's linear attention, None where there are no such layers.
        state_space: sizes of state space layers, None where there are no such layers.
        rope: rotary positions, None for learned ones.
        local_rope: those of layers with a sliding window, where they differ.
        keys_as_values: whether layers that see everything have no projection of values: they are what that of keys gives.
        streams: residual streams, of which blocks compute the first, or mixtures.
        stream_mixing: how they are mixed, None where blocks compute the first.
        activation_limit: gates of feed-forwards go up to this, what they are multiplied by from minus this to this; None: they are not limited.
        layer_input: width of what every block learns of a token by itself, 0: there is no such input.
        layered: numbers that differ from layer to layer, by the names of the architecture's description; one entry per layer.
        notes: what the user should know: metadata that the pass does not understand.
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
    kimi_heads: KimiHeads | None
    state_space: StateSpace | None
    rope: RopeSettings | None
    local_rope: RopeSettings | None
    keys_as_values: bool = False
    streams: int = 1
    stream_mixing: StreamMixing | None = None
    activation_limit: float | None = None
    layer_input: int = 0
    layered: Layered = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

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
