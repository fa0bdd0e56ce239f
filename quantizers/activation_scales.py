"""Scales of a matrix's inputs that make large activations lose less by rounding (AWQ; Lin et al., arXiv:2306.00978).

Weights are multiplied by ``s`` along their inputs before they are rounded, and the inputs divided by it, which the norm or matrix before takes over.
``s`` is a power of the inputs' root mean squares: ``(mean x²)^(a / 2)``, brought to a geometric middle of 1. Of twenty exponents ``a`` from 0, no
scaling at all, the one is taken with which the outputs err least: by ``tr(E H Eᵀ)``, ``E`` being the errors of the weights and ``H`` the second moment of the
inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from .group_rounding import Grid, round_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["EXPONENTS", "group_moments", "input_scales", "scaled_moment", "scaling_loss"]

EXPONENTS: Final = tuple(step / 20 for step in range(20))

_LEAST: Final = 1e-4  # of a scale, and of an input's mean square relative to the mean of all


def input_scales(moment: Floats, exponent: float) -> Floats:
    """Return float32 (inputs,): the scales of an exponent, for a second moment (inputs, inputs) or its diagonal."""
    diagonal = np.asarray(moment.diagonal() if moment.ndim > 1 else moment, np.float64)
    mean = float(diagonal.mean())
    if not mean > 0:
        return np.ones(len(diagonal), np.float32)
    scales = np.maximum(diagonal / mean, _LEAST**2) ** (exponent / 2)
    found: Floats = np.maximum(scales / np.sqrt(scales.max() * scales.min()), _LEAST).astype(np.float32)
    return found


def scaling_loss(weights: Sequence[Floats], moment: Floats, grid: Grid, scales: Floats) -> float:
    """Return what rounding with scales costs matrices that share an input, the sum of ``tr(E H Eᵀ)``.

    Args:
        weights: float32 (outputs, inputs) of each matrix, or of a sample of its outputs.
        moment: float32 (inputs, inputs): of the inputs, before they are divided.
        grid: what codes are like.
        scales: float32 (inputs,).
    """
    importance = (moment.diagonal() / np.square(scales)).astype(np.float32)
    loss = 0.0
    for matrix in weights:
        errors = round_groups(matrix * scales, grid, importance).weights
        errors /= scales
        errors -= matrix
        loss += float(np.einsum("ij,ij->", errors @ moment, errors, dtype=np.float64))
    return loss


def scaled_moment(moment: Floats, scales: Floats | None) -> Floats:
    """Return the second moment (inputs, inputs) of inputs that are divided by scales."""
    if scales is None:
        return moment
    found: Floats = moment / scales[:, None]
    found /= scales
    return found


def group_moments(moment: Floats, size: int) -> Floats:
    """Return float32 (groups, size, size): the second moments of groups of inputs."""
    return np.stack([moment[start : start + size, start : start + size] for start in range(0, len(moment), size)])
