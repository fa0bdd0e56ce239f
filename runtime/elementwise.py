"""Norms and activations, row by row in pieces that stay in the cache. All arrays are float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVATIONS",
    "JOINING",
    "layer_norm",
    "limit_gate",
    "rms_norm",
    "sigmoid",
    "silu",
    "soft_cap",
    "softmax",
    "softplus",
]

Floats = NDArray[np.float32]

# numbers of a piece: the passes over it and over one temporary array find it in the second-level cache
_PIECE = 1 << 16


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _PIECE // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def rms_norm(values: Floats, weight: Floats | None, bias: Floats | None, epsilon: float, out: Floats) -> None:
    """Fill ``out`` (n, columns) with each row of ``values`` divided by its root mean square, times ``weight``, plus ``bias``, where there are such; may be in place."""
    for piece in _pieces(*values.shape):
        part, result = values[piece], out[piece]
        mean_square = np.einsum("ij,ij->i", part, part) / np.float32(part.shape[1])
        np.multiply(part, (1.0 / np.sqrt(mean_square + np.float32(epsilon)))[:, None], out=result)
        if weight is not None:
            result *= weight
        if bias is not None:
            result += bias


def layer_norm(values: Floats, weight: Floats | None, bias: Floats | None, epsilon: float, out: Floats) -> None:
    """As :func:`rms_norm`, each row's mean being subtracted first."""
    for piece in _pieces(*values.shape):
        result = out[piece]
        np.subtract(values[piece], values[piece].mean(axis=1, keepdims=True), out=result)
        rms_norm(result, weight, bias, epsilon, result)


def silu(values: Floats) -> None:
    """Replace x by x / (1 + exp(-x)), rows in place."""
    for piece in _pieces(*values.shape):
        part = values[piece]
        share = np.negative(part)
        np.exp(share, out=share)
        share += np.float32(1.0)
        part /= share


def gelu_tanh(values: Floats) -> None:
    """Replace x by x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), rows in place (Hendrycks and Gimpel, arXiv:1606.08415)."""
    for piece in _pieces(*values.shape):
        part = values[piece]
        share = part * part
        share *= np.float32(0.044715 * math.sqrt(2 / math.pi))
        share += np.float32(math.sqrt(2 / math.pi))
        share *= part
        np.tanh(share, out=share)
        share += np.float32(1.0)
        share *= np.float32(0.5)
        part *= share


def gelu(values: Floats) -> None:
    """Replace x by x times the share of a normal distribution below it, rows in place (the exact function of arXiv:1606.08415)."""
    for piece in _pieces(*values.shape):
        part = values[piece]
        part *= _normal_share(part)


def _normal_share(values: Floats) -> Floats:
    """Return the normal distribution function, to 2e-7 (Abramowitz and Stegun, formula 7.1.26)."""
    distance = np.abs(values)
    distance *= np.float32(math.sqrt(0.5))
    t = 1.0 / (np.float32(0.3275911) * distance + np.float32(1.0))
    tail = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t
    distance *= distance
    tail *= np.exp(np.negative(distance, out=distance), out=distance)
    tail *= np.float32(0.5)
    return np.where(values < 0, tail, np.float32(1.0) - tail)


def relu_squared(values: Floats) -> None:
    """Replace x by the square of max(x, 0), rows in place (Primer, arXiv:2109.08668)."""
    for piece in _pieces(*values.shape):
        part = values[piece]
        np.maximum(part, np.float32(0.0), out=part)
        part *= part


def swiglu_oai(gate: Floats, up: Floats) -> None:
    """Replace ``up`` by min(gate, 7) sigmoid(1.702 min(gate, 7)) (clip(up, -7, 7) + 1), as gpt-oss has it; ``gate`` is overwritten."""
    np.minimum(gate, _OAI_LIMIT, out=gate)
    np.clip(up, -_OAI_LIMIT, _OAI_LIMIT, out=up)
    up += np.float32(1.0)
    up *= gate
    share = np.exp(gate * -_OAI_SLOPE)
    share += np.float32(1.0)
    up /= share


def limit_gate(gate: Floats, up: Floats, limit: float) -> None:
    """Replace ``gate`` by min(gate, limit) and ``up`` by clip(up, -limit, limit)."""
    np.minimum(gate, np.float32(limit), out=gate)
    np.clip(up, np.float32(-limit), np.float32(limit), out=up)


_OAI_LIMIT, _OAI_SLOPE = np.float32(7.0), np.float32(1.702)

ACTIVATIONS: dict[str, Callable[[Floats], None]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu_squared": relu_squared,
}

JOINING: dict[str, Callable[[Floats, Floats], None]] = {"swiglu_oai": swiglu_oai}
"""Activations of gate and up together; all others are of the gate alone, by which up is multiplied."""


def sigmoid(values: Floats) -> None:
    """Replace x by 1 / (1 + exp(-x)), rows in place."""
    for piece in _pieces(*values.shape):
        part = values[piece]
        small = np.exp(-np.abs(part))
        part[...] = np.where(part < 0, small, np.float32(1.0)) / (small + np.float32(1.0))


def softplus(values: Floats) -> Floats:
    """Return ln(1 + exp(x))."""
    return np.where(values > _LINEAR_FROM, values, np.log1p(np.exp(np.minimum(values, _LINEAR_FROM))))


_LINEAR_FROM = np.float32(20.0)  # from where that is x in float32


def soft_cap(values: Floats, cap: float) -> None:
    """Replace x by cap * tanh(x / cap) in place."""
    values *= np.float32(1.0 / cap)
    np.tanh(values, out=values)
    values *= np.float32(cap)


def softmax(values: Floats) -> None:
    """Replace each row by its softmax."""
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=-1, keepdims=True)
