"""Norms of a family's kind, with the weights that a model gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .building.configuration import Configuration
from .building.layers import HeadNorm, Norm
from .elementwise import layer_norm, rms_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Apply = Callable[[Floats, Floats], None]

__all__ = ["head_norms", "norm_function", "normalise"]


def normalise(configuration: Configuration, norm: Norm, values: Floats, out: Floats) -> None:
    """Fill ``out`` (n, columns) with the family's kind of norm of each row of ``values``; they may be the same."""
    norm_function(configuration, norm)(values, out)


def norm_function(configuration: Configuration, norm: Norm | None) -> Apply:
    """Return a function of values and out that normalises, or that leaves values as they are where there is no norm."""
    if norm is None:
        return lambda values, out: None
    function = rms_norm if configuration.facts.norm == "rms" else layer_norm
    weight, bias = (None if part is None else part.decode() for part in (norm.weight, norm.bias))
    return lambda values, out: function(values, weight, bias, configuration.epsilon, out)


def head_norms(configuration: Configuration, norm: HeadNorm | None, heads: int) -> list[Apply]:
    """Return one function per head, which does nothing where there is no norm, or one that all heads share."""
    if norm is None or norm.together:
        return [norm_function(configuration, None)] * heads
    functions = [norm_function(configuration, item) for item in norm.norms]
    return functions * heads if len(functions) == 1 else functions
