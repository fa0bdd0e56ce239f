"""From names to layers: which tensors a block of a family has, and what they are for."""

from __future__ import annotations

from ...formats.architectures import TRANSFORMS
from ..weights import Linear, Matrix, Vector
from .build_feed_forward import build_feed_forward
from .build_recurrent import build_delta_net, build_kimi_delta, build_mamba2
from .configuration import Latent
from .layers import (
    Alternating,
    Attention,
    Block,
    DeltaNet,
    HeadNorm,
    HyperConnection,
    Indexer,
    KimiDelta,
    LatentAttention,
    LayerInput,
    Mamba2,
    Norm,
)
from .place import Place

__all__ = ["build_block"]

_AFTER_ATTENTION, _AFTER_FEED_FORWARD = "post_attention_norm", "post_ffw_norm"


def build_block(place: Place, index: int) -> Block:
    """Return block ``index``. Raises MissingTensorError or ShapeError with the name of a tensor."""
    configuration, prefix = place.configuration, f"blk.{index}."
    facts = configuration.facts
    return Block(
        index,
        _token_mixer(place, prefix, index),
        place.first_norm(facts.feed_forward_norm, prefix, configuration.hidden),
        build_feed_forward(place, index),
        place.norm_if_there(prefix + _AFTER_FEED_FORWARD, configuration.hidden),
        _layer_input(place, prefix),
        place.vector(prefix + "layer_output_scale.weight", 1),
        _alternating(place, prefix),
        _connections(place, prefix),
    )


def _token_mixer(
    place: Place, prefix: str, index: int
) -> Attention | LatentAttention | DeltaNet | KimiDelta | Mamba2 | None:
    """Return what lets positions see each other; linear attention and state spaces show in their tensors. None for a block that is a feed-forward alone."""
    if place.configuration.kimi_heads is not None and f"{prefix}ssm_f_a.weight" in place.model.tensors:
        return build_kimi_delta(place, prefix, place.configuration.kimi_heads, _after_attention(place, prefix))
    if place.configuration.latent is not None:
        return _latent_attention(place, prefix, index)
    if place.configuration.delta_heads is not None and f"{prefix}ssm_conv1d.weight" in place.model.tensors:
        return build_delta_net(place, prefix, place.configuration.delta_heads, _after_attention(place, prefix))
    if place.configuration.state_space is not None and f"{prefix}ssm_in.weight" in place.model.tensors:
        return build_mamba2(place, prefix, place.configuration.state_space, _after_attention(place, prefix))
    if place.configuration.facts.single_parts and f"{prefix}attn_q.weight" not in place.model.tensors:
        return None
    return _attention(place, prefix, index)


def _after_attention(place: Place, prefix: str) -> Norm | None:
    """Return the norm of attention's result. Where a family gives its name to the norm before the feed-forward, there is none."""
    if _AFTER_ATTENTION in place.configuration.facts.feed_forward_norm:
        return None
    return place.norm_if_there(prefix + _AFTER_ATTENTION, place.configuration.hidden)


def _alternating(place: Place, prefix: str) -> Alternating | None:
    if f"{prefix}altup_router.weight" not in place.model.tensors:
        return None
    hidden, streams = place.configuration.hidden, place.configuration.streams
    right = place.linear(prefix + "laurel_r", hidden, None)
    return Alternating(
        router=place.linear(prefix + "altup_router", streams, hidden),
        router_norm=place.norm(prefix + "altup_router_norm", hidden),
        predict=place.linear(prefix + "altup_predict_coef", streams * streams, streams),
        correct=place.linear(prefix + "altup_correct_coef", streams, streams),
        scale=Vector(place.tensor(prefix + "altup_correct_scale.weight", (hidden,)), 0, hidden),
        left=place.linear(prefix + "laurel_l", right.matrix.columns, hidden),
        right=right,
        learned_after=place.norm(prefix + "laurel_post_norm", hidden),
    )


def _connections(place: Place, prefix: str) -> tuple[HyperConnection, HyperConnection] | None:
    if place.configuration.stream_mixing is None:
        return None
    return _connection(place, f"{prefix}hc_attn"), _connection(place, f"{prefix}hc_ffn")


def _connection(place: Place, name: str) -> HyperConnection:
    streams = place.configuration.streams
    count = 2 * streams + streams * streams
    return HyperConnection(
        place.linear(f"{name}_fn", count, streams * place.configuration.hidden),
        Vector(place.tensor(f"{name}_base.weight", (count,)), 0, count),
        Vector(place.tensor(f"{name}_scale.weight", (3,)), 0, 3),
    )


def _layer_input(place: Place, prefix: str) -> LayerInput | None:
    if f"{prefix}inp_gate.weight" not in place.model.tensors:
        return None
    hidden, width = place.configuration.hidden, place.configuration.layer_input
    return LayerInput(
        place.linear(prefix + "inp_gate", width, hidden),
        place.linear(prefix + "proj", hidden, width),
        place.norm(prefix + "post_norm", hidden),
    )


def _attention(place: Place, prefix: str, index: int) -> Attention:
    configuration = place.configuration
    hidden, head, kv_heads = (
        configuration.hidden,
        configuration.layer_head_size(index),
        configuration.layer_kv_heads(index),
    )
    plain = HeadNorm((Norm(None),)) if configuration.plain_head_norms and configuration.layer_rope(index) else None
    wide = configuration.heads * head
    asked = 2 * wide if configuration.facts.gated_attention else wide
    sizes = (asked, kv_heads * head, kv_heads * head)
    key: Linear | None
    value: Linear | None
    if configuration.keys_from(index) != index:
        query, key, value = place.linear(prefix + "attn_q", sizes[0], hidden), None, None
        place.ignore(*(f"{prefix}attn_{name}.weight" for name in ("k", "v", "k_norm")))
    elif configuration.keys_as_values and configuration.layer_window(index) is None:
        query, key = (
            place.linear(prefix + kind, rows, hidden) for kind, rows in (("attn_q", sizes[0]), ("attn_k", sizes[1]))
        )
        value = None
    elif f"{prefix}attn_qkv.weight" in place.model.tensors:
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
        output=place.linear(prefix + "attn_output", hidden, wide),
        query_norm=plain or place.head_norm(prefix + "attn_q_norm", configuration.heads, head),
        key_norm=None if key is None else plain or place.head_norm(prefix + "attn_k_norm", kv_heads, head),
        sinks=place.vector(prefix + "attn_sinks.weight", configuration.heads),
        after=_after_attention(place, prefix),
    )


def _latent_attention(place: Place, prefix: str, index: int) -> LatentAttention:
    configuration, latent = place.configuration, place.configuration.latent
    assert latent is not None
    hidden, heads, plain = configuration.hidden, configuration.heads, latent.key_size - latent.shared
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
        down=place.linear(prefix + "attn_kv_a_mqa", latent.rank + latent.shared, hidden),
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
    pooled = sparse.pool > 1
    places = place.tensor(f"{prefix}indexer_compressor_ape.weight", (sparse.pool, sparse.size)) if pooled else None
    return Indexer(
        query=place.linear(prefix + "indexer.attn_q_b", sparse.heads * sparse.size, query_columns),
        key=place.linear(prefix + "indexer.attn_k", sparse.size, hidden),
        key_norm=place.norm(prefix + "indexer.k_norm", sparse.size),
        weights=place.linear(prefix + "indexer.proj", sparse.heads, hidden),
        gate=place.linear(f"{prefix}indexer_compressor_gate", sparse.size, hidden) if pooled else None,
        place_gate=None if places is None else Matrix(places, 0, sparse.pool),
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
