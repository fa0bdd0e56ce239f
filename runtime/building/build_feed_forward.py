"""From names to feed-forwards: dense ones, and mixtures."""

from __future__ import annotations

from ..weights import Linear, Matrix, Vector
from .layers import Beside, Dense, Experts
from .place import Place

__all__ = ["build_feed_forward"]


def build_feed_forward(place: Place, index: int) -> Dense | Experts | None:
    """Return the feed-forward of block ``index``; None for a block that is attention alone. Raises as :func:`~.build.build_block`."""
    prefix = f"blk.{index}."
    if place.configuration.facts.single_parts and not _has(place, prefix, "ffn_down", "ffn_down_exps"):
        return None
    if place.configuration.facts.single_parts:
        return _experts(place, prefix) if _has(place, prefix, "ffn_down_exps") else _dense(place, prefix)
    return _experts(place, prefix) if place.configuration.has_experts(index) else _dense(place, prefix)


def _has(place: Place, prefix: str, *names: str) -> bool:
    return any(f"{prefix}{name}.weight" in place.model.tensors for name in names)


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
    enter, leave = _latent(place, prefix)
    given = hidden if enter is None else enter.matrix.rows
    downs = place.stack(prefix + "ffn_down_exps", (count, given, None))
    width = downs[0].matrix.columns
    gates: tuple[Linear | None, ...]
    if place.configuration.facts.feed_forward == "plain":
        gates, ups = (None,) * count, place.stack(prefix + "ffn_up_exps", (count, width, given))
    elif f"{prefix}ffn_gate_up_exps.weight" in place.model.tensors:
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
        enter=enter,
        leave=leave,
    )


def _latent(place: Place, prefix: str) -> tuple[Linear | None, Linear | None]:
    """Return what takes tokens to the shorter vectors that experts read and give, and what takes them back."""
    tensor = place.model.tensors.get(f"{prefix}ffn_latent_down.weight")
    if tensor is None:
        return None, None
    hidden, rows = place.configuration.hidden, tensor.shape[0]
    return place.linear(f"{prefix}ffn_latent_down", rows, hidden), place.linear(f"{prefix}ffn_latent_up", hidden, rows)


def _experts_beside(
    place: Place, prefix: str, gates: tuple[Linear | None, ...], ups: tuple[Linear, ...], downs: tuple[Linear, ...]
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
    plain = place.configuration.facts.feed_forward == "plain"
    return Dense(
        None if plain else place.linear(prefix + "ffn_gate_shexp", width, hidden),
        place.linear(prefix + "ffn_up_shexp", width, hidden),
        down,
    )


def _shared_gate(place: Place, name: str) -> Linear | None:
    if name not in place.model.tensors:
        return None
    return Linear(Matrix(place.tensor(name, (place.configuration.hidden,)), 0, 1))
