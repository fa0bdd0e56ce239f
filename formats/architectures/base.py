"""What an architecture's description holds: names, sizes and facts, as data that serve both directions and the runtime.

One JSON file per family says how a Hugging Face model becomes GGUF and back: which classes it answers to, how configuration keys and
GGUF keys correspond, how tensor names correspond and through which named transform, what shape each tensor has, and what a forward pass
must know. ``docs/architectures.md`` documents the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ..metadata import Scalar
from .expressions import Condition, Expression
from .per_layer import FromLayers, LayerParameter

__all__ = [
    "Alias",
    "Architecture",
    "Check",
    "Dropped",
    "HyperParameter",
    "Mark",
    "Measured",
    "Rope",
    "RuntimeFacts",
    "Stored",
    "TensorMap",
]

_DIGITS = 7  # that a float32 holds


@dataclass(frozen=True, slots=True)
class Stored:
    """How GGUF's number is made of the configuration's: ``over_root_of``, divided by the root of ``expression``, or ``quotient_of``, the divisor of it."""

    rule: Literal["over_root_of", "quotient_of"]
    expression: Expression

    def forward(self, value: float, values: Mapping[str, object]) -> float:
        """Return GGUF's number for the configuration's ``value``; ``values`` are the hyper-parameters. A quotient of 0 is 0."""
        other = self.expression.evaluate(values)
        if self.rule == "quotient_of":
            return other / value if value else 0.0
        return value / math.sqrt(other) if other > 0 else 0.0

    def inverse(self, value: float, values: Mapping[str, object]) -> int | float:
        """Return the configuration's number for GGUF's, to as many digits as GGUF's has; a quotient is whole where it can be."""
        other = self.expression.evaluate(values)
        if self.rule == "over_root_of":
            return float(f"{value * math.sqrt(max(0, other)):.{_DIGITS}g}")
        found = float(f"{other / value if value else 0.0:.{_DIGITS}g}")
        return int(found) if found.is_integer() else found


@dataclass(frozen=True, slots=True)
class Measured:
    """A size that a tensor tells better than the configuration: axis ``axis`` of the tensor called ``tensor`` (Hugging Face's name)."""

    tensor: str
    axis: int


@dataclass(frozen=True, slots=True)
class HyperParameter:
    """One number of the configuration and the GGUF keys that hold it.

    Attributes:
        name: by which expressions mention it.
        config: keys of ``config.json``, the preferred one first (it is the one written on the way back); empty for what follows from others.
        type: GGUF type: ``uint32``, ``float32`` or ``bool``; or ``presence``: true where the configuration has one of the keys, whatever it holds.
        keys: GGUF keys without the architecture's prefix (``attention.head_count``); empty where GGUF has none.
        required: whether a configuration without it is an error.
        default: used where the configuration is silent: a value, an expression over earlier hyper-parameters, or None for "absent".
        measured: the tensor that overrules the configuration, if any.
        recovered: for what GGUF has no key for: how its value follows from those that GGUF has, on the way back.
        minimum: the least that a ``uint32`` may be.
        stored: how GGUF's number is made of the configuration's, where they differ.
        from_layers: for what GGUF has no key for: the layer's number that it is, on the way back.
        counted: keys of ``config.json`` whose list, or text of one character per entry, has as many entries, where ``config`` is silent.
        from_source: whether, for want of a key, the source's own configuration is believed on the way back, where it is known.
        words: for a ``bool`` that the configuration says in words: what each means; the first of a meaning is the one written on the way back.
    """

    name: str
    config: tuple[str, ...]
    type: Literal["uint32", "float32", "bool", "presence"]
    keys: tuple[str, ...]
    required: bool
    default: bool | int | float | Expression | None = None
    measured: Measured | None = None
    recovered: Expression | Condition | None = None
    minimum: int = 1
    stored: Stored | None = None
    from_layers: FromLayers | None = None
    counted: tuple[str, ...] = ()
    from_source: bool = False
    words: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))

    def usual(self, values: Mapping[str, object]) -> bool | int | float | None:
        """Return what GGUF has where the configuration is silent, given the hyper-parameters before this one; None for nothing."""
        value = self.default.evaluate(values) if isinstance(self.default, Expression) else self.default
        return self.as_stored(value, values)

    def as_stored(self, value: bool | float | None, values: Mapping[str, object]) -> bool | int | float | None:
        """Return GGUF's number for the configuration's."""
        return value if value is None or self.stored is None else self.stored.forward(value, values)

    def as_configured(
        self, value: bool | float | None, values: Mapping[str, object]
    ) -> bool | int | float | str | None:
        """Return the configuration's number, or word, for GGUF's."""
        if self.words:
            return next((word for word, meaning in self.words.items() if meaning == value), None)
        return value if value is None or self.stored is None else self.stored.inverse(value, values)


@dataclass(frozen=True, slots=True)
class Check:
    """A configuration value that the target cannot express unless it is one of a few.

    Exactly one of ``allowed``, ``equals``, ``at_least`` and ``holds`` is set.

    Attributes:
        config: key of ``config.json``.
        problem: what goes wrong otherwise, for the message.
        severity: ``error`` stops; ``note`` tells the user.
        allowed: literal values that are fine, of a list each, the first being the one written on the way back; None alone allows none but null.
        equals: what the value must be.
        at_least: what the value must not be below.
        absent: what a missing or null key means; None passes the check.
        holds: what must hold in every layer that ``where`` speaks of, in all layers where that is None.
        where: see ``holds``.
    """

    config: str
    problem: str
    severity: Literal["error", "note"]
    allowed: tuple[Scalar | None, ...] = ()
    equals: Expression | None = None
    at_least: Expression | None = None
    absent: Scalar | None = None
    holds: Condition | None = None
    where: Condition | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions.

    Attributes:
        order: pairing of dimensions in GGUF's tensors: ``neox`` rotates (i, i + d/2), ``interleaved`` (2i, 2i + 1).
        dimensions: size of a head, of which ``partial_rotary_factor`` is rotated.
        theta: base frequency where the configuration is silent.
        scalings: kinds of scaling that the target's runtime honours.
        frequency_table: whether the target's runtime divides frequencies by ``rope_freqs.weight``.
        partial: whether a head may be rotated in part.
        share: the part that is, where the configuration is silent.
        share_of: what ``partial_rotary_factor`` is a share of, where that is more than ``dimensions``, which are then rotated whole.
        local_theta: base frequency of sliding-window layers, for families where it differs.
        local_dimensions: size of a head of sliding-window layers, where that differs: GGUF's ``rope.dimension_count_swa``.
        usual: kind of scaling where the configuration is silent.
        log_multiplier: whether yarn multiplies the logits of attention, by the square of ``1 + 0.1 mscale_all_dim ln(factor)``;
            :mod:`..yarn` has GGUF's keys for it.
        temperature: whether queries at position p are multiplied by ``1 + beta ln(1 + floor(p / original context))``, ``beta`` being
            ``llama_4_scaling_beta`` among the rotary parameters, and GGUF's ``attention.temperature_scale``.
        sections: pairs that take their position from time, height and width, in turn, where the configuration is silent. Text has one position in all
            of them, so that they change nothing; GGUF has ``rope.dimension_sections``. Empty for families without.
        temperature_length: whether GGUF has that context as ``attention.temperature_length`` once more.
    """

    order: Literal["neox", "interleaved"]
    dimensions: Expression
    theta: float
    scalings: tuple[str, ...]
    frequency_table: bool = False
    partial: bool = False
    share: float = 1.0
    share_of: Expression | None = None
    local_theta: float | None = None
    local_dimensions: Expression | None = None
    usual: str = "default"
    log_multiplier: bool = False
    temperature: bool = False
    sections: tuple[int, ...] = ()
    temperature_length: bool = False


@dataclass(frozen=True, slots=True)
class TensorMap:
    """Tensors on the Hugging Face side, the transform, and the tensors on the GGUF side.

    Names are templates: ``{layer}`` runs over the ``layers`` of the model; ``{expert}``, on the Hugging Face side, over its ``experts``, in
    order, each a further input of the transform.

    Attributes:
        gguf: canonical names.
        hf: Hugging Face names, with the prefix of the family's usual class.
        shapes: NumPy-order shape of each Hugging Face tensor.
        transform: name in :data:`transforms.TRANSFORMS`.
        arguments: the transform's arguments.
        required: whether a model without it is an error; entries that give the same GGUF name are alternatives.
        omitted_when: a ``bool`` hyper-parameter: where true, the tensor is not needed, and dropped if it is there.
        when: the entry applies only where this holds; ``layer`` is the number of the layer. None: everywhere.
        configuration: for what is not required: keys of ``config.json`` that tell of its presence, with their values, for the way back.
    """

    gguf: tuple[str, ...]
    hf: tuple[str, ...]
    shapes: tuple[tuple[Expression, ...], ...]
    transform: str
    arguments: Mapping[str, Expression]
    required: bool = True
    omitted_when: str | None = None
    when: Condition | None = None
    configuration: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def per_layer(self) -> bool:
        """Whether there is one per layer."""
        return "{layer}" in self.hf[0]

    @property
    def per_expert(self) -> bool:
        """Whether each layer has one source per expert."""
        return "{expert}" in self.hf[0]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Tensors that are left out: names that match ``pattern`` (``*`` is any text, ``{layers}`` the number of layers).

    ``reason`` is a note for the user, or None.
    """

    pattern: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a family from others that share its GGUF name: a GGUF key, without the prefix, that is at least so much."""

    key: str
    at_least: int


@dataclass(frozen=True, slots=True)
class Alias:
    """Another GGUF name, and prefix of keys, under which files of the family exist: those that bear the mark."""

    gguf: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What a forward pass must know beyond metadata and tensor names.

    Query and key norms, norms after attention and feed-forward, attention sinks, shared experts, biases and tied outputs show in the tensors
    that are there; soft caps, multipliers, epsilon and window in the metadata.

    Attributes:
        norm: ``rms`` or ``layer`` (mean removed, with bias). GGUF's weights are multiplied as they are; ``norm+1`` is a transform.
        activation: ``silu``, ``gelu`` (exact), ``gelu_tanh`` (the tanh approximation), ``relu_squared``, or ``swiglu_oai``, which joins gate and up by itself:
            ``min(gate, 7) * sigmoid(1.702 * gate) * (clip(up, -7, 7) + 1)``.
        feed_forward: ``gated`` (down(act(gate) * up)), ``gated_fused`` (``ffn_up`` holds gate, then up), or ``plain`` (down(act(up))).
        positions: ``rope``, ``learned`` (``position_embd`` added to the embedding), or ``none``.
        attention_scale: queries are divided by the square root of this, unless there is a hyper-parameter ``attention_multiplier``.
        indexer: whether each position attends to so many of those before it, which an indexer in some or all blocks chooses, and how the pairs of its
            rotated dimensions lie; ``pooled``: it rotates nothing and chooses pools of neighbouring positions; None: there is no choice.
        scale_embedding: whether token embeddings are multiplied by the square root of their length.
        sliding_period: every layer whose number, counted from 1, is a multiple attends to everything, the others to the window; None: all
            attend to everything.
        chunked: whether windows are chunks: positions see those before them in their own chunk of so many, counted from the first position.
        rotated: which layers rotate queries and keys: ``all``, or those with a ``sliding`` window, where there are such.
        rotated_when: a condition; where it does not hold, no layer rotates them. None: it always holds.
        unrotated_period: every layer whose number, counted from 1, is a multiple does not rotate them; None: there are no such.
        unrotated_temperature: whether queries of layers that do not rotate are multiplied at position p by
            ``1 + slope ln(1 + floor((p + 1) / length))``, by the hyper-parameters ``temperature_slope`` and ``temperature_length``.
        normalised_after_rotation: whether norms of queries and keys come after the rotation instead of before.
        normalised_values: whether the values of each head are normalised, without weights.
        plain_head_norms: where this holds, heads of queries and keys are normalised without weights in layers that rotate them.
        single_parts: whether every block is attention, or what stands in for it, or a feed-forward: one of them, as its tensors show.
        plain_norms: whether norms have neither weights nor biases.
        attention_norm: tensors (without ``.weight``) of the norm before attention: the first that is there; empty: there is none.
        feed_forward_norm: the same before the feed-forward.
        parallel: whether attention and feed-forward both read the block's input, and their results are added to it together; a condition,
            such as a ``bool`` hyper-parameter's name, where models differ.
        expert_gating: how router logits become weights: ``softmax_top_k_normalised`` (softmax, k largest, divided by their sum), or ``softmax`` and
            ``sigmoid`` (k largest by these, ``exp_probs_b`` added for the choice alone; hyper-parameters say whether they are divided by their
            sum, and multiplied).
        gated_attention: whether what attention gathers is multiplied by a sigmoid; ``attn_q`` then has each head's queries, and behind them its gate.
        value_heads: which value heads of a gated delta rule share a key head, where layers have one instead of attention: neighbours (``grouped``), or
            every so-manieth (``tiled``).
        expert_weighting: whether weights multiply what experts make (``results``), or what they are given (``inputs``).
        expert_groups: which groups of experts the k are chosen from, where hyper-parameters say that there are groups: those with the largest
            ``maximum``, or with the largest sum of their ``two_largest``.
    """

    norm: Literal["rms", "layer"]
    activation: Literal["silu", "gelu", "gelu_tanh", "relu_squared", "swiglu_oai"]
    feed_forward: Literal["gated", "gated_fused", "plain"]
    positions: Literal["rope", "learned", "none"]
    attention_scale: Expression
    indexer: Literal["neox", "interleaved", "pooled"] | None = None
    scale_embedding: bool = False
    sliding_period: Expression | None = None
    chunked: bool = False
    rotated: Literal["all", "sliding"] = "all"
    rotated_when: Condition | None = None
    unrotated_period: Expression | None = None
    unrotated_temperature: bool = False
    normalised_after_rotation: bool = False
    normalised_values: bool = False
    plain_head_norms: Condition | None = None
    single_parts: bool = False
    plain_norms: bool = False
    attention_norm: tuple[str, ...] = ("attn_norm",)
    feed_forward_norm: tuple[str, ...] = ("ffn_norm",)
    parallel: bool | Condition = False
    expert_gating: Literal["softmax_top_k_normalised", "softmax", "sigmoid"] | None = None
    expert_weighting: Literal["results", "inputs"] = "results"
    expert_groups: Literal["maximum", "two_largest"] = "two_largest"
    gated_attention: bool = False
    value_heads: Literal["grouped", "tiled"] | None = None


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        name: unique, lower case: what ``--as-arch`` takes.
        description: one line for ``qconv plugins`` and the documentation.
        gguf: ``general.architecture`` in GGUF, and the prefix of its keys. Families may share one (Mixtral is ``llama`` with experts).
        mark: what tells this family from others with the same ``gguf``; None for the one that is left where no mark fits.
        aliases: other GGUF names that it is read by; ``gguf`` alone is written.
        classes: Hugging Face classes (``architectures`` in ``config.json``), the usual one first.
        model_types: values of ``model_type``, the usual one first.
        chosen_where: for families that share a class with others: keys of ``config.json`` whose lists hold nothing but these words. Empty for the one
            that is left.
        config_section: key under which multimodal configurations keep the text model's (``text_config``), or None.
        prefixes: rewritings of tensor names, tried in order: a name that starts with the key gets the value in its place.
        hyper_parameters: in order of evaluation and writing.
        per_layer: numbers that differ from layer to layer, in order of evaluation and writing, after the hyper-parameters.
        full_layer_keys: keys of ``config.json`` for layers that attend to everything, each with the key that it stands for there: newer files have
            that key once per such layer, in ``per_layer_config``.
        checks: configuration values that must hold.
        rope: rotary positions, None for others.
        tensors: the name map, in the order in which a block's tensors are written.
        dropped: tensors that are left out.
        tokenizer: hints for the tokenizer's conversion (``add_space_prefix``).
        runtime: facts for a forward pass, or why there is none.
    """

    name: str
    description: str
    gguf: str
    mark: Mark | None
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    config_section: str | None
    prefixes: Mapping[str, str]
    hyper_parameters: tuple[HyperParameter, ...]
    checks: tuple[Check, ...]
    rope: Rope | None
    tensors: tuple[TensorMap, ...]
    dropped: tuple[Dropped, ...]
    tokenizer: Mapping[str, Scalar]
    runtime: RuntimeFacts | str
    chosen_where: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    per_layer: tuple[LayerParameter, ...] = ()
    full_layer_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[Alias, ...] = ()
