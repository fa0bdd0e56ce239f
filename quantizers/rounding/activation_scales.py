"""Scales of a matrix's inputs that make large activations lose less by rounding (AWQ; Lin et al., arXiv:2306.00978).

Weights are multiplied by ``s`` along their inputs before they are rounded, and the inputs divided by it, which the norm or matrix before takes over.
``s`` is ``x^a / w^b``, brought to a geometric mean of 1: ``x`` are the roots of what an error in an input counts, ``w`` the root mean squares of the weights that meet it.
Where the weights of a group have steps alike, an error costs ``(sum x²/s²) (sum s² w²)``, which is least for ``s = sqrt(x / w)``; other powers do better
where groups are not that simple. Two families are tried: activations alone (``b = 0``), as in the paper, and ``b = 1 - a``, as AutoAWQ has it, each
in ten steps, no scaling at all first. The best is the one with which the outputs really err least: by the sum over the matrices of
``tr(E H Eᵀ) / tr(W H Wᵀ)``, ``E`` being the errors of the weights ``W``, rounded as they will be, and ``H`` the second moment of the inputs. Relative, since
otherwise queries and keys, whose outputs are the largest, would choose for values; and none may err more than unscaled, since what an error in one
counts against another's is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from .feedback import STEP, Factor
from .group_rounding import Rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = [
    "POWERS",
    "best_powers",
    "group_moments",
    "input_scales",
    "output_energies",
    "scaled_factor",
    "scaling_losses",
    "weight_sizes",
]

POWERS: Final = (
    (0.0, 0.0),
    *((step / 10, 0.0) for step in range(1, 10)),
    *((step / 10, 1 - step / 10) for step in range(10)),
)
"""``a`` and ``b`` of all candidates, no scaling first."""

_LEAST: Final = (
    1e-2  # of an activation or a weight, relative to the root mean square of all: float16 holds what is divided by it
)


def input_scales(activations: Floats, weights: Floats, powers: tuple[float, float]) -> Floats:
    """Return float32 (inputs,): the scales of a candidate.

    Args:
        activations: float32 (inputs,): what the square of an error in each input counts.
        weights: float32 (inputs,): mean squares of the weights that meet each input, of whatever unit.
        powers: ``a`` and ``b``.
    """
    logarithms = powers[0] * _logarithms(activations) - powers[1] * _logarithms(weights)
    found: Floats = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return found


def _logarithms(squares: Floats) -> NDArray[np.float64]:
    """Return the logarithms of roots, relative to the mean of the squares."""
    wide = np.asarray(squares, np.float64)
    mean = float(wide.mean())
    if not mean > 0:
        return np.zeros(len(wide))
    found: NDArray[np.float64] = 0.5 * np.log(np.maximum(wide / mean, _LEAST**2))
    return found


def output_energies(weights: Sequence[Floats], moment: Floats) -> list[float]:
    """Return ``tr(W H Wᵀ)`` of each matrix, float32 (outputs, inputs), for the second moment ``H`` (inputs, inputs)."""
    return [float(np.einsum("ij,ij->", it @ moment, it, dtype=np.float64)) for it in weights]


def weight_sizes(weights: Sequence[Floats], energies: Sequence[float]) -> Floats:
    """Return float32 (inputs,): mean squares of the weights that meet each input, of each matrix relative to the energy of its outputs."""
    squares = [
        np.square(it).sum(axis=0, dtype=np.float64) / energy
        for it, energy in zip(weights, energies, strict=True)
        if energy > 0
    ]
    return np.sum(squares, axis=0).astype(np.float32) if squares else np.ones(weights[0].shape[1], np.float32)


def scaling_losses(
    weights: Sequence[Floats],
    energies: Sequence[float],
    moment: Floats,
    scales: Floats,
    rounder: Callable[[Floats], Rounded],
) -> tuple[float, ...]:
    """Return what rounding with scales costs each of the matrices that share an input: ``tr(E H Eᵀ) / tr(W H Wᵀ)``.

    Args:
        weights: float32 (outputs, inputs) of each matrix, or of a sample of its outputs.
        energies: of each (:func:`output_energies`); one of 0 costs nothing.
        moment: float32 (inputs, inputs): of the inputs, before they are divided.
        scales: float32 (inputs,).
        rounder: rounds scaled weights, in the way in which they will be rounded.
    """

    def loss(matrix: Floats, energy: float) -> float:
        if not energy > 0:
            return 0.0
        errors = rounder(matrix * scales).weights
        errors /= scales
        errors -= matrix
        return float(np.einsum("ij,ij->", errors @ moment, errors, dtype=np.float64)) / energy

    return tuple(loss(matrix, energy) for matrix, energy in zip(weights, energies, strict=True))


def best_powers(losses: Mapping[tuple[float, float], Sequence[float]]) -> tuple[float, float]:
    """Return the candidate that costs least in sum, among those that cost no matrix more than no scaling does; of equals the first of ``POWERS``.

    ``losses``: of every candidate, per matrix (:func:`scaling_losses`).
    """
    unscaled = losses[POWERS[0]]
    harmless = [it for it in POWERS if all(one <= other for one, other in zip(losses[it], unscaled, strict=True))]
    return min(harmless, key=lambda it: sum(losses[it]))


def group_moments(moment: Floats, size: int, scales: Floats | None = None) -> Floats:
    """Return float32 (groups, size, size): the second moments of groups of inputs, which ``scales`` (inputs,) divide."""
    starts = range(0, len(moment), size)
    found = np.stack([moment[start : start + size, start : start + size] for start in starts])
    if scales is not None:
        parts = scales.reshape(-1, size)
        found /= parts[:, :, None]
        found /= parts[:, None, :]
    return found


def scaled_factor(factor: Factor, scales: Floats) -> Factor:
    """Return the factor of inputs that are divided by ``scales``, float32 (inputs,), without factorizing again.

    ``S⁻¹ M D Mᵀ S⁻¹`` is ``(S⁻¹ M S) (S⁻² D) (S⁻¹ M S)ᵀ``. Damping and order stay those of the inputs as they were.
    """
    own = np.ascontiguousarray(scales[factor.order])
    unit = factor.unit * own
    unit /= own[:, None]
    filled = np.ones(len(factor.corners) * STEP, np.float32)
    filled[: len(own)] = own
    blocks = filled.reshape(-1, STEP)
    corners = factor.corners * blocks[:, None, :]
    corners /= blocks[:, :, None]
    weights = (factor.weights / np.square(own)).astype(np.float32, copy=False)
    return replace(factor, unit=unit, corners=corners, weights=weights)
