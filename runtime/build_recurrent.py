"""From names to layers with a memory of fixed size: linear attention and state spaces."""

from __future__ import annotations

from .configuration import DeltaHeads, StateSpace
from .layers import DeltaNet, Mamba2, Norm
from .place import Place
from .weights import Linear, Matrix, Vector

__all__ = ["build_delta_net", "build_mamba2"]


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
