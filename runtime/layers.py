"""What a block is made of: projections, norms and experts, as places of weights in tensors. Nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass

from .weights import Linear, Matrix, Vector

__all__ = ["Attention", "Block", "Dense", "Experts", "HeadNorm", "Indexer", "LatentAttention", "Norm"]


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
        query: (heads * head size, hidden).
        key: (kv heads * head size, hidden).
        value: (kv heads * head size, hidden).
        output: (hidden, heads * head size).
        query_norm: of the heads of queries.
        key_norm: of the heads of keys.
        sinks: for each head the logit of one more position, which has no value.
        after: of the result.
    """

    norm: Norm | None
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    sinks: Vector | None = None
    after: Norm | None = None


@dataclass(frozen=True, slots=True)
class Indexer:
    """What chooses the positions that a block attends to, see :mod:`.indexer`.

    Attributes:
        query: (heads * size, query rank).
        key: (size, hidden).
        key_norm: of keys, the mean removed whatever the family's norms are.
        weights: (heads, hidden): what the scores of heads are multiplied by.
    """

    query: Linear
    key: Linear
    key_norm: Norm
    weights: Linear


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


@dataclass(frozen=True, slots=True)
class Dense:
    """A feed-forward: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where there is no gate."""

    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture.

    Attributes:
        router: (experts, hidden).
        experts: one feed-forward each.
        choice_bias: added to the router's scores for the choice of experts alone.
        shared: a feed-forward for every token beside those of its experts.
        shared_gate: (1, hidden): the shared one's result is multiplied by the sigmoid of this.
    """

    router: Linear
    experts: tuple[Dense, ...]
    choice_bias: Vector | None = None
    shared: Dense | None = None
    shared_gate: Linear | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. ``index`` counts from 0; ``after`` normalises the feed-forward's result."""

    index: int
    attention: Attention | LatentAttention
    feed_forward_norm: Norm | None
    feed_forward: Dense | Experts
    after: Norm | None
