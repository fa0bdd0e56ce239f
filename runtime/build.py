"""From names to layers: which tensors a block of a family has, and what they are for."""

from __future__ import annotations

from ..formats.architectures import TRANSFORMS
from .configuration import Latent
from .layers import Alternating, Attention, Beside, Block, Dense, Experts, LatentAttention, LayerInput, Norm
from .place import Place
from .weights import Linear, Matrix, Vector

__all__ = ["build_block"]

_AFTER_ATTENTION, _AFTER_FEED_FORWARD = "post_attention_norm", "post_ffw_norm"


def build_block(place: Place, index: int) -> Block:
    """Return block ``index``. Raises MissingTensorError or ShapeError with the name of a tensor."""
    configuration, prefix = place.configuration, f"blk.{index}."
    facts = configuration.facts
    routed = configuration.routing is not None and index >= configuration.dense_layers
    return Block(
        index,
        _attention(place, prefix, index) if configuration.latent is None else _latent_attention(place, prefix),
        place.first_norm(facts.feed_forward_norm, prefix, configuration.hidden),
        _experts(place, prefix) if routed else _dense(place, prefix),
        place.norm_if_there(prefix + _AFTER_FEED_FORWARD, configuration.hidden),
        _layer_input(place, prefix),
        place.vector(prefix + "layer_output_scale.weight", 1),
        _alternating(place, prefix),
    )


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
    sizes = (configuration.heads * head, kv_heads * head, kv_heads * head)
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
        output=place.linear(prefix + "attn_output", hidden, sizes[0]),
        query_norm=place.head_norm(prefix + "attn_q_norm", configuration.heads, head),
        key_norm=None if key is None else place.head_norm(prefix + "attn_k_norm", kv_heads, head),
        sinks=place.vector(prefix + "attn_sinks.weight", configuration.heads),
        after=_after_attention(place, prefix),
    )


def _latent_attention(place: Place, prefix: str) -> LatentAttention:
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
    if f"{prefix}ffn_gate_up_exps.weight" in place.model.tensors:
        both = [linear.matrix for linear in place.stack(prefix + "ffn_gate_up_exps", (count, 2 * width, hidden))]
        gates, ups = (tuple(Linear(matrix.window(part, part + width)) for matrix in both) for part in (0, width))
    else:
        gates, ups = (place.stack(f"{prefix}ffn_{kind}_exps", (count, width, hidden)) for kind in ("gate", "up"))
    if f"{prefix}ffn_gate_inp.scale" in place.model.tensors:
        return _experts_beside(place, prefix, gates, ups, downs)
    return Experts(
        place.linear(prefix + "ffn_gate_inp", count, hidden),
        tuple(Dense(gate, up, down) for gate, up, down in zip(gates, ups, downs, strict=True)),
        place.vector(prefix + "exp_probs_b.bias", count),
        _shared(place, prefix) if f"{prefix}ffn_down_shexp.weight" in place.model.tensors else None,
        _shared_gate(place, f"{prefix}ffn_gate_inp_shexp.weight"),
    )


def _experts_beside(
    place: Place, prefix: str, gates: tuple[Linear, ...], ups: tuple[Linear, ...], downs: tuple[Linear, ...]
) -> Experts:
    """Return experts beside a dense feed-forward, each with norms of its own."""
    hidden, count = place.configuration.hidden, place.configuration.experts
    return Experts(
        place.linear(prefix + "ffn_gate_inp", count, hidden),
        tuple(Dense(gate, up, down) for gate, up, down in zip(gates, ups, downs, strict=True)),
        shared=_dense(place, prefix),
        beside=Beside(
            norm=place.norm(prefix + "pre_ffw_norm_2", hidden),
            router_scale=Vector(place.tensor(prefix + "ffn_gate_inp.scale", (hidden,)), 0, hidden),
            weights=place.vector(prefix + "ffn_down_exps.scale", count),
            after=place.norm(prefix + "post_ffw_norm_2", hidden),
            shared_after=place.norm(prefix + "post_ffw_norm_1", hidden),
        ),
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
