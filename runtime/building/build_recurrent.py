"""From names to layers with a memory of fixed size: linear attention and state spaces."""

from __future__ import annotations

from dataclasses import replace

from ..weights import Linear, Matrix, Vector
from .configuration import DeltaHeads, KimiHeads, StateSpace
from .layers import DeltaNet, KimiDelta, Mamba2, Norm
from .place import Place

__all__ = ["build_delta_net", "build_kimi_delta", "build_mamba2"]


def build_delta_net(place: Place, prefix: str, heads: DeltaHeads, after: Norm | None) -> DeltaNet:
    """Return the linear attention of the block whose tensors begin with ``prefix``. Raises as :func:`~.build.build_block`."""
    hidden, values, fused = place.configuration.hidden, heads.values * heads.size, f"{prefix}ssm_ba"
    channels = 2 * heads.keys * heads.size + values
    kernels = place.tensor(f"{prefix}ssm_conv1d.weight", (channels, None))
    if f"{fused}.weight" in place.model.tensors:
        rates: tuple[Linear, ...] = (place.linear(fused, 2 * heads.values, hidden),)
    else:
        rates = tuple(place.linear(f"{prefix}ssm_{kind}", heads.values, hidden) for kind in ("beta", "alpha"))
    decay, steps = (place.tensor(f"{prefix}{name}", (heads.values,)) for name in ("ssm_a", "ssm_dt.bias"))
    return DeltaNet(
        norm=place.first_norm(place.configuration.facts.attention_norm, prefix, hidden),
        mixed=place.linear(f"{prefix}attn_qkv", channels, hidden),
        gate=place.linear(f"{prefix}attn_gate", values, hidden),
        rates=rates,
        kernels=Matrix(kernels, 0, channels),
        decay=Vector(decay, 0, heads.values),
        step_bias=Vector(steps, 0, heads.values),
        head_norm=place.norm(f"{prefix}ssm_norm", heads.size),
        output=place.linear(f"{prefix}ssm_out", hidden, values),
        after=after,
    )


def build_kimi_delta(place: Place, prefix: str, heads: KimiHeads, after: Norm | None) -> KimiDelta:
    """Return the linear attention of Kimi's kind of the block whose tensors begin with ``prefix``. Raises as :func:`~.build.build_block`."""
    hidden, wide = place.configuration.hidden, heads.count * heads.size
    query, key, value = (place.linear(f"{prefix}attn_{kind}", wide, hidden) for kind in "qkv")
    forget, gate = (
        (
            place.linear(f"{prefix}ssm_{kind}_a", heads.size, hidden),
            place.linear(f"{prefix}ssm_{kind}_b", wide, heads.size),
        )
        for kind in "fg"
    )
    return KimiDelta(
        norm=place.first_norm(place.configuration.facts.attention_norm, prefix, hidden),
        query=query,
        key=key,
        value=value,
        kernels=tuple(_kernels(place, f"{prefix}ssm_conv1d_{kind}.weight", wide) for kind in "qkv"),
        forget=forget,
        rate=place.linear(f"{prefix}ssm_beta", heads.count, hidden),
        gate=gate,
        decay=_decay(place, f"{prefix}ssm_a", heads.count),
        step_bias=Vector(place.tensor(f"{prefix}ssm_dt.bias", (wide,)), 0, wide),
        head_norm=place.norm(f"{prefix}ssm_norm", heads.size),
        output=place.linear(f"{prefix}attn_output", hidden, wide),
        after=after,
    )


def _kernels(place: Place, name: str, channels: int) -> Matrix:
    """Return kernels (channels, length). Files have an axis of one in their middle, and perhaps one more in front."""
    found = place.model.tensors.get(name)
    shape: tuple[int | None, ...] = (channels, 1, None)
    tensor = place.tensor(name, (1, *shape) if found is not None and len(found.shape) == 4 else shape)
    return Matrix(replace(tensor, shape=(channels, tensor.columns)), 0, channels)


def _decay(place: Place, name: str, heads: int) -> Vector:
    """Return one number per head, which some families have below each other."""
    found = place.model.tensors.get(name)
    if found is None or len(found.shape) < 2:
        return Vector(place.tensor(name, (heads,)), 0, heads)
    place.tensor(name, (1,) * (len(found.shape) - 2) + (heads, 1))
    return Vector(
        replace(found, shape=(heads,), read=lambda start, stop: found.read(0, heads).reshape(1, -1)), 0, heads
    )


def build_mamba2(place: Place, prefix: str, space: StateSpace, after: Norm | None) -> Mamba2:
    """Return the state space layer of the block whose tensors begin with ``prefix``. Raises as :func:`~.build.build_block`."""
    hidden, width = place.configuration.hidden, space.inner // space.groups
    kernels = place.tensor(f"{prefix}ssm_conv1d.weight", (space.channels, None))
    decay, skip = (
        Matrix(place.tensor(f"{prefix}{name}", (space.heads, 1)), 0, space.heads) for name in ("ssm_a", "ssm_d")
    )
    return Mamba2(
        norm=place.first_norm(place.configuration.facts.attention_norm, prefix, hidden),
        entering=place.linear(f"{prefix}ssm_in", space.inner + space.channels + space.heads, hidden),
        kernels=Matrix(kernels, 0, space.channels),
        kernel_bias=place.vector(f"{prefix}ssm_conv1d.bias", space.channels),
        decay=decay,
        skip=skip,
        step_bias=Vector(place.tensor(f"{prefix}ssm_dt.bias", (space.heads,)), 0, space.heads),
        group_norm=Matrix(place.tensor(f"{prefix}ssm_norm.weight", (space.groups, width)), 0, space.groups),
        output=place.linear(f"{prefix}ssm_out", hidden, space.inner),
        after=after,
    )
