"""What a block is made of: projections, norms and experts, as places of weights in tensors. Nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass

from ..weights import Linear, Matrix, Vector

__all__ = [
    "Alternating",
    "Attention",
    "Beside",
    "Block",
    "DeltaNet",
    "Dense",
    "Experts",
    "HeadNorm",
    "HyperConnection",
    "Indexer",
    "KimiDelta",
    "LatentAttention",
    "LayerInput",
    "Mamba2",
    "Norm",
]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's weights and its bias, where it has them."""

    weight: Vector | None
    bias: Vector | None = None


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A norm of queries or keys: the same for every head, one of its own for each, or one over all heads together."""

    norms: tuple[Norm, ...]
    together: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections of a block's attention.

    Attributes:
        norm: of the block's input, None where it is read as it is.
        query: (heads * head size, hidden); twice as many rows in families with gated attention: each head's queries, then its gate.
        key: (kv heads * head size, hidden); None where the block reads the keys and values of another.
        value: (kv heads * head size, hidden); None where values are what the keys' projection gives.
        output: (hidden, heads * head size).
        query_norm: of the heads of queries.
        key_norm: of the heads of keys.
        sinks: for each head the logit of one more position, which has no value.
        after: of the result.
    """

    norm: Norm | None
    query: Linear
    key: Linear | None
    value: Linear | None
    output: Linear
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    sinks: Vector | None = None
    after: Norm | None = None

    @property
    def projections(self) -> tuple[Linear, ...]:
        """What reads the block's input: of queries, keys and values those that there are."""
        return tuple(linear for linear in (self.query, self.key, self.value) if linear is not None)


@dataclass(frozen=True, slots=True)
class Indexer:
    """What chooses the positions that a block attends to, see :mod:`.indexer`.

    Attributes:
        query: (heads * size, query rank).
        key: (size, hidden).
        key_norm: of keys, the mean removed whatever the family's norms are.
        weights: (heads, hidden): what the scores of heads are multiplied by.
        gate: (size, hidden): what a position's key weighs among those of its pool, dimension by dimension; None: there are no pools.
        place_gate: (pool, size): added to it, for each place in the pool.
    """

    query: Linear
    key: Linear
    key_norm: Norm
    weights: Linear
    gate: Linear | None = None
    place_gate: Matrix | None = None

    @property
    def entering(self) -> tuple[Linear, ...]:
        """What reads the block's input."""
        return (self.key, self.weights) if self.gate is None else (self.key, self.weights, self.gate)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Projections of latent attention (DeepSeek-V2, arXiv:2405.04434), see :class:`~.configuration.Latent`.

    Attributes:
        norm: of the block's input.
        query_down: (query rank, hidden), where queries too come from a short vector, else None.
        query_down_norm: of that vector.
        query: (heads * key size, query rank, or hidden).
        down: (rank + rotated, hidden): the latent, then the rotated part of keys, which all heads share.
        latent_norm: of the latent.
        keys: for each head (rank, key size - rotated): queries are taken to the latent's side.
        values: for each head (value size, rank).
        output: (hidden, heads * value size).
        after: of the result.
        whole: the matrix of which keys and values are parts, where the file has them in one.
        indexer: of sparse attention, None in others, and where a block before has chosen.
    """

    norm: Norm | None
    query_down: Linear | None
    query_down_norm: Norm | None
    query: Linear
    down: Linear
    latent_norm: Norm
    keys: tuple[Linear, ...]
    values: tuple[Linear, ...]
    output: Linear
    after: Norm | None = None
    whole: Matrix | None = None
    indexer: Indexer | None = None

    @property
    def entering(self) -> tuple[Linear, ...]:
        """What reads the block's input."""
        found = (self.query if self.query_down is None else self.query_down, self.down)
        return found if self.indexer is None else (*found, *self.indexer.entering)


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Projections of linear attention by the gated delta rule (arXiv:2412.06464), see :class:`~.configuration.DeltaHeads`.

    Attributes:
        norm: of the block's input.
        mixed: (channels, hidden): queries and keys of all key heads, then values.
        gate: (value heads * size, hidden).
        rates: (value heads, hidden) each: how much is corrected, and how far a head steps; or both in one, for each key head those of its value heads.
        kernels: (channels, length) of the convolution.
        decay: a negative number for every value head.
        step_bias: added to steps.
        head_norm: of what every head reads.
        output: (hidden, value heads * size).
        after: of the result.
    """

    norm: Norm | None
    mixed: Linear
    gate: Linear
    rates: tuple[Linear, ...]
    kernels: Matrix
    decay: Vector
    step_bias: Vector
    head_norm: Norm
    output: Linear
    after: Norm | None = None


@dataclass(frozen=True, slots=True)
class KimiDelta:
    """Projections of Kimi's linear attention (arXiv:2510.26692), see :class:`~.configuration.KimiHeads`.

    Attributes:
        norm: of the block's input.
        query: (heads * size, hidden).
        key: the same.
        value: the same.
        kernels: (channels, length) each, of the convolutions of queries, keys and values.
        forget: (size, hidden), then (heads * size, size): how far every dimension steps.
        rate: (heads, hidden): how much is corrected.
        gate: (size, hidden), then (heads * size, size): of what every head reads.
        decay: a negative number for every head.
        step_bias: added to steps.
        head_norm: of what every head reads.
        output: (hidden, heads * size).
        after: of the result.
    """

    norm: Norm | None
    query: Linear
    key: Linear
    value: Linear
    kernels: tuple[Matrix, ...]
    forget: tuple[Linear, Linear]
    rate: Linear
    gate: tuple[Linear, Linear]
    decay: Vector
    step_bias: Vector
    head_norm: Norm
    output: Linear
    after: Norm | None = None

    @property
    def entering(self) -> tuple[Linear, ...]:
        """What reads the block's input."""
        return (self.query, self.key, self.value, self.forget[0], self.rate, self.gate[0])


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Projections of a state space layer (Mamba-2, arXiv:2405.21060), see :class:`~.configuration.StateSpace`.

    Attributes:
        norm: of the block's input.
        entering: (inner + channels + heads, hidden): gates, what is convolved, steps.
        kernels: (channels, length) of the convolution.
        kernel_bias: (channels,), where there is one.
        decay: (heads, 1), negative.
        skip: (heads, 1): how much of a position's own values is added to what it reads.
        step_bias: added to steps.
        group_norm: (groups, inner / groups): weights of the norm of each group's heads together.
        output: (hidden, inner).
        after: of the result.
    """

    norm: Norm | None
    entering: Linear
    kernels: Matrix
    kernel_bias: Vector | None
    decay: Matrix
    skip: Matrix
    step_bias: Vector
    group_norm: Matrix
    output: Linear
    after: Norm | None = None


@dataclass(frozen=True, slots=True)
class Dense:
    """A feed-forward: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where there is no gate."""

    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Beside:
    """Experts that read the residual stream by themselves, as Gemma 4's do.

    Attributes:
        norm: of what the experts read.
        router_scale: the router reads the stream normalised without weights, times this, over the root of its width.
        weights: the weight of each expert in a token's sum is multiplied by its own.
        after: of the experts' result.
        shared_after: of the shared feed-forward's result.
    """

    norm: Norm
    router_scale: Vector
    weights: Vector | None
    after: Norm
    shared_after: Norm


@dataclass(frozen=True, slots=True)
class LayerInput:
    """How a block takes up what its tokens mean to it alone.

    Attributes:
        gate: (width, hidden): of the residual stream; activated, it is multiplied by the block's input of the token.
        projection: (hidden, width).
        after: of the result, which is added to the stream.
    """

    gate: Linear
    projection: Linear
    after: Norm


@dataclass(frozen=True, slots=True)
class Alternating:
    """How a block of several residual streams predicts and corrects them, and what it learns beside attention.

    Attributes:
        router: (streams, hidden): of the active stream, normalised.
        router_norm: see ``router``.
        predict: (streams * streams, streams): how streams are mixed before the block.
        correct: (streams, streams): how much of the block's change each takes up.
        scale: of the active stream where it is gated by the block's own input.
        left: (rank, hidden): of attention's input.
        right: (hidden, rank).
        learned_after: of that product.
    """

    router: Linear
    router_norm: Norm
    predict: Linear
    correct: Linear
    scale: Vector
    left: Linear
    right: Linear
    learned_after: Norm


@dataclass(frozen=True, slots=True)
class HyperConnection:
    """What a part of a block reads of several residual streams, and how it and they go on (see :mod:`.hyper_connections`).

    Attributes:
        mixing: (2 * streams + streams * streams, streams * hidden): shares in what is read, in what is written, and of streams in streams.
        base: added to them.
        scale: what each of the three kinds is multiplied by before.
    """

    mixing: Linear
    base: Vector
    scale: Vector


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture.

    Attributes:
        router: (experts, hidden).
        experts: one feed-forward each.
        choice_bias: added to the router's scores for the choice of experts alone.
        shared: a feed-forward for every token beside those of its experts.
        shared_gate: (1, hidden): the shared one's result is multiplied by the sigmoid of this.
        beside: what is done where experts read the residual stream by themselves, beside the shared feed-forward; None: they read what that reads.
        enter: (latent, hidden): what experts, but not the shared one, are given of a token; None: all of it.
        leave: (hidden, latent): what is made of their sum.
    """

    router: Linear
    experts: tuple[Dense, ...]
    choice_bias: Vector | None = None
    shared: Dense | None = None
    shared_gate: Linear | None = None
    beside: Beside | None = None
    enter: Linear | None = None
    leave: Linear | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One layer, which may be attention or a feed-forward alone. ``index`` counts from 0; ``after`` normalises the feed-forward's result; at the end the
    stream is multiplied by ``scale``. ``alternating`` is there where there are several streams of which one is computed; ``connections`` of attention and
    feed-forward where they compute mixtures of them.
    """

    index: int
    attention: Attention | LatentAttention | DeltaNet | KimiDelta | Mamba2 | None
    feed_forward_norm: Norm | None
    feed_forward: Dense | Experts | None
    after: Norm | None
    layer_input: LayerInput | None = None
    scale: Vector | None = None
    alternating: Alternating | None = None
    connections: tuple[HyperConnection, HyperConnection] | None = None
