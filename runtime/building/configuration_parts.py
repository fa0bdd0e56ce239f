"""Sizes of the kinds of layers that some families have, out of a model's hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ...errors import ModelError
from ...formats.architectures import RuntimeFacts
from ...formats.base import Model
from ..attention.rope_settings import RopeSettings
from .configuration import DeltaHeads, KimiHeads, Latent, Routing, Sparse, StateSpace, StreamMixing

__all__ = [
    "Values",
    "read_cap",
    "read_delta_heads",
    "read_kimi_heads",
    "read_latent",
    "read_multiplier",
    "read_routing",
    "read_sparse",
    "read_state_space",
    "read_stream_mixing",
]

Values = Mapping[str, bool | int | float]


def read_cap(values: Values, name: str) -> float | None:
    """Return a limit, None where there is none."""
    value = values.get(name)
    return float(value) if value else None


def read_multiplier(model: Model, values: Values, name: str, default: float = 1.0) -> float:
    """Return a positive factor, ``default`` where the model has none; raises ModelError."""
    value = float(values.get(name, default))
    if not (math.isfinite(value) and (value > 0 or value == default)):
        raise ModelError(f"the model's {name} is {value!r}, which must be a number above 0", path=model.path)
    return value


def read_routing(model: Model, facts: RuntimeFacts, values: Values, experts: int) -> Routing | None:
    """Return how experts are chosen, None where there are none; raises ModelError for numbers that make no choice."""
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
        read_multiplier(model, values, "expert_weights_scale"),
        groups,
        groups_used,
        facts.expert_groups == "maximum",
        facts.expert_weighting == "inputs",
    )


def read_latent(model: Model, values: Values, rope: RopeSettings | None) -> Latent | None:
    """Return the sizes of latent attention, None for others; raises ModelError for absurd ones."""
    if "kv_rank" not in values:
        return None
    shared = int(values.get("rope_dim", 0)) if rope is None else rope.dimensions
    rank, key_size, value_size = (int(values.get(name, 0)) for name in ("kv_rank", "mla_key_dim", "mla_value_dim"))
    latent = Latent(rank, key_size, value_size, shared)
    least = 0 if rope is None else 1
    if latent.rank < 1 or latent.value_size < 1 or not least <= shared < latent.key_size:
        raise ModelError(
            f"latent attention with {latent.rank} dimensions, keys of {latent.key_size} of which {shared} are rotated, "
            f"and values of {latent.value_size} is none",
            path=model.path,
        )
    return latent


def read_sparse(model: Model, facts: RuntimeFacts, values: Values, rope: RopeSettings | None) -> Sparse | None:
    """Return the sizes of the indexer of sparse attention, None for others; raises ModelError for absurd ones."""
    if facts.indexer is None:
        return None
    heads, size, top = (int(values.get(name, 0)) for name in ("index_heads", "index_dim", "index_top"))
    if facts.indexer == "pooled":
        return _read_pooled(model, values, heads, size, top)
    rotated = 0 if rope is None else rope.dimensions
    if heads < 1 or top < 1 or not 0 < rotated <= size:
        raise ModelError(
            f"an indexer of {heads} heads of {size} dimensions, of which {rotated} are rotated, that chooses {top} positions is none",
            path=model.path,
        )
    return Sparse(heads, size, top, facts.indexer)


def _read_pooled(model: Model, values: Values, heads: int, size: int, top: int) -> Sparse:
    pool = int(values.get("index_pool", 0))
    if heads < 1 or size < 1 or pool < 2 or top < pool or top % pool:
        raise ModelError(
            f"an indexer of {heads} heads of {size} dimensions that chooses {top} positions in pools of {pool} is none",
            path=model.path,
        )
    if not values.get("index_tail", True):
        raise ModelError(
            "an indexer that leaves out positions behind the last whole pool lets the first ones see nothing",
            path=model.path,
        )
    return Sparse(heads, size, top, None, pool)


def read_kimi_heads(model: Model, values: Values, heads: int) -> KimiHeads | None:
    """Return the heads of Kimi's linear attention, None where no layer has such; raises ModelError for absurd ones."""
    if "delta_dim" not in values:
        return None
    size, limit = int(values["delta_dim"]), values.get("decay_limit")
    if size < 1 or not (limit is None or (math.isfinite(limit) and limit < 0)):
        raise ModelError(
            f"linear attention with heads of {size} dimensions that forget down to the exponential of {limit} is none",
            path=model.path,
        )
    return KimiHeads(heads, size, None if limit is None else float(limit))


def read_stream_mixing(model: Model, values: Values) -> StreamMixing | None:
    """Return how residual streams are mixed, None where they are not; raises ModelError for what is no way to do so."""
    if "stream_rounds" not in values:
        return None
    rounds, epsilon, streams = (values.get(name, 0) for name in ("stream_rounds", "stream_epsilon", "streams"))
    if rounds < 1 or not 0 <= epsilon < 1 or streams < 1:
        raise ModelError(
            f"{streams} residual streams whose shares are evened out {rounds} times, with {epsilon} added, are none",
            path=model.path,
        )
    return StreamMixing(int(rounds), float(epsilon))


def read_delta_heads(model: Model, facts: RuntimeFacts, values: Values) -> DeltaHeads | None:
    """Return the heads of linear attention, None where no layer has such; raises ModelError for absurd ones."""
    if facts.value_heads is None:
        return None
    keys, heads, size = (int(values.get(name, 0)) for name in ("key_groups", "value_heads", "state"))
    if keys < 1 or heads < 1 or heads % keys or size < 1:
        raise ModelError(f"{heads} value heads of {size} dimensions cannot share {keys} key heads", path=model.path)
    return DeltaHeads(keys, heads, size, facts.value_heads == "tiled")


def read_state_space(model: Model, values: Values) -> StateSpace | None:
    """Return the sizes of state space layers, None where there are none; raises ModelError for absurd ones."""
    if "state_heads" not in values:
        return None
    heads, inner, groups, state = (int(values.get(name, 0)) for name in ("state_heads", "inner", "groups", "state"))
    if heads < 1 or inner < 1 or groups < 1 or state < 1 or inner % heads or heads % groups:
        raise ModelError(
            f"a state space of {inner} numbers in {heads} heads and {groups} groups, with {state} dimensions, is none",
            path=model.path,
        )
    return StateSpace(heads, inner // heads, groups, state)
