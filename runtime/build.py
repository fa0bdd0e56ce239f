"""From names to layers: which tensors a block of a family has, and what they are for."""

from __future__ import annotations

from ..formats.architectures import TRANSFORMS
from .configuration import Latent
from .layers import Attention, Block, Dense, Experts, HeadNorm, Indexer, LatentAttention, Norm
from .place import Place
from .weights import Linear, Matrix

__all__ = ["build_block"]

_AFTER_ATTENTION, _AFTER_FEED_FORWARD = "post_attention_norm", "post_ffw_norm"


def build_block(place: Place, index: int) -> Block:
    """Return block ``index``. Raises MissingTensorError or ShapeError with the name of a tensor."""
    configuration, prefix = place.configuration, f"blk.{index}."
    facts = configuration.facts
    return Block(
        index,
        _attention(place, prefix, index) if configuration.latent is None else _latent_attention(place, prefix, index),
        place.first_norm(facts.feed_forward_norm, prefix, configuration.hidden),
        _experts(place, prefix) if configuration.has_experts(index) else _dense(place, prefix),
        place.norm_if_there(prefix + _AFTER_FEED_FORWARD, configuration.hidden),
    )


def _after_attention(place: Place, prefix: str) -> Norm | None:
    """Return the norm of attention's result. Where a family gives its name to the norm before the feed-forward, there is none."""
    if _AFTER_ATTENTION in place.configuration.facts.feed_forward_norm:
        return None
    return place.norm_if_there(prefix + _AFTER_ATTENTION, place.configuration.hidden)


def _attention(place: Place, prefix: str, index: int) -> Attention:
    configuration = place.configuration
    plain = HeadNorm((Norm(None),)) if configuration.plain_head_norms and configuration.layer_rope(index) else None
    hidden, head = configuration.hidden, configuration.head_size
    sizes = (configuration.heads * head, configuration.kv_heads * head, configuration.kv_heads * head)
    if f"{prefix}attn_qkv.weight" in place.model.tensors:
        query, key, value = place.parts(prefix + "attn_qkv", sizes, hidden)
    else:
        query, key, value = (
            place.linear(prefix + kind, rows, hidden)
            for kind, rows in zip(("attn_q", "attn_k", "attn_v"), sizes, strict=True)
        )
    return Attention(
        norm=place.first_norm(configuration.facts.attention_norm, prefix, hidden),
        query=query,
        key=key,
        value=value,
        output=place.linear(prefix + "attn_output", hidden, sizes[0]),
        query_norm=plain or place.head_norm(prefix + "attn_q_norm", configuration.heads, head),
        key_norm=plain or place.head_norm(prefix + "attn_k_norm", configuration.kv_heads, head),
        sinks=place.vector(prefix + "attn_sinks.weight", configuration.heads),
        after=_after_attention(place, prefix),
    )


def _latent_attention(place: Place, prefix: str, index: int) -> LatentAttention:
    configuration, latent, rope = place.configuration, place.configuration.latent, place.configuration.rope
    assert latent is not None
    assert rope is not None
    hidden, heads, plain = configuration.hidden, configuration.heads, latent.key_size - rope.dimensions
    query_down, query_norm, query_columns, query_name = None, None, hidden, "attn_q"
    if f"{prefix}attn_q_a.weight" in place.model.tensors:
        query_columns, query_name = place.model.tensors[f"{prefix}attn_q_a.weight"].shape[0], "attn_q_b"
        query_down = place.linear(prefix + "attn_q_a", query_columns, hidden)
        query_norm = place.norm(prefix + "attn_q_a_norm", query_columns)
    whole, keys, values = _latent_parts(place, prefix, latent, plain)
    return LatentAttention(
        norm=place.first_norm(configuration.facts.attention_norm, prefix, hidden),
        query_down=query_down,
        query_down_norm=query_norm,
        query=place.linear(prefix + query_name, heads * latent.key_size, query_columns),
        down=place.linear(prefix + "attn_kv_a_mqa", latent.rank + rope.dimensions, hidden),
        latent_norm=place.norm(prefix + "attn_kv_a_norm", latent.rank),
        keys=keys,
        values=values,
        output=place.linear(prefix + "attn_output", hidden, heads * latent.value_size),
        after=_after_attention(place, prefix),
        whole=whole,
        indexer=_indexer(place, prefix, query_columns, index),
    )


def _indexer(place: Place, prefix: str, query_columns: int, index: int) -> Indexer | None:
    """Return the indexer of a block; the first one must have one, others may leave the choice to a block before."""
    sparse, hidden = place.configuration.sparse, place.configuration.hidden
    if sparse is None or (index and f"{prefix}indexer.attn_k.weight" not in place.model.tensors):
        return None
    return Indexer(
        query=place.linear(prefix + "indexer.attn_q_b", sparse.heads * sparse.size, query_columns),
        key=place.linear(prefix + "indexer.attn_k", sparse.size, hidden),
        key_norm=place.norm(prefix + "indexer.k_norm", sparse.size),
        weights=place.linear(prefix + "indexer.proj", sparse.heads, hidden),
    )


def _latent_parts(
    place: Place, prefix: str, latent: Latent, plain: int
) -> tuple[Matrix | None, tuple[Linear, ...], tuple[Linear, ...]]:
    """Return what makes keys and values of a latent: the matrix of both, where the file has it, and each head's (rank, plain) and (value size, rank)."""
    heads, name = place.configuration.heads, prefix + "attn_kv_b.weight"
    if name not in place.model.tensors:
        keys = place.stack(prefix + "attn_k_b", (heads, latent.rank, plain))
        return None, keys, place.stack(prefix + "attn_v_b", (heads, latent.value_size, latent.rank))
    whole = place.tensor(name, (heads * (plain + latent.value_size), latent.rank))
    sizes = {"heads": heads, "key": plain, "value": latent.value_size}
    parts = [
        tuple(Linear(Matrix(part, head * part.shape[1], part.shape[1])) for head in range(heads))
        for part in TRANSFORMS["split_latent"].forward([whole], sizes)
    ]
    return Matrix(whole, 0, whole.shape[0]), parts[0], parts[1]


def _dense(place: Place, prefix: str) -> Dense:
    hidden = place.configuration.hidden
    down = place.linear(prefix + "ffn_down", hidden, None)
    width = down.matrix.columns
    match place.configuration.facts.feed_forward:
        case "plain":
            return Dense(None, place.linear(prefix + "ffn_up", width, hidden), down)
        case "gated_fused":
            gate, up = place.parts(prefix + "ffn_up", (width, width), hidden)
            return Dense(gate, up, down)
        case _:
            return Dense(
                place.linear(prefix + "ffn_gate", width, hidden), place.linear(prefix + "ffn_up", width, hidden), down
            )


def _experts(place: Place, prefix: str) -> Experts:
    hidden, count = place.configuration.hidden, place.configuration.experts
    downs = place.stack(prefix + "ffn_down_exps", (count, hidden, None))
    width = downs[0].matrix.columns
    gates, ups = (place.stack(f"{prefix}ffn_{kind}_exps", (count, width, hidden)) for kind in ("gate", "up"))
    return Experts(
        place.linear(prefix + "ffn_gate_inp", count, hidden),
        tuple(Dense(gate, up, down) for gate, up, down in zip(gates, ups, downs, strict=True)),
        place.vector(prefix + "exp_probs_b.bias", count),
        _shared(place, prefix) if f"{prefix}ffn_down_shexp.weight" in place.model.tensors else None,
        _shared_gate(place, f"{prefix}ffn_gate_inp_shexp.weight"),
    )


def _shared(place: Place, prefix: str) -> Dense:
    hidden = place.configuration.hidden
    down = place.linear(prefix + "ffn_down_shexp", hidden, None)
    width = down.matrix.columns
    return Dense(
        place.linear(prefix + "ffn_gate_shexp", width, hidden),
        place.linear(prefix + "ffn_up_shexp", width, hidden),
        down,
    )


def _shared_gate(place: Place, name: str) -> Linear | None:
    if name not in place.model.tensors:
        return None
    return Linear(Matrix(place.tensor(name, (place.configuration.hidden,)), 0, 1))
