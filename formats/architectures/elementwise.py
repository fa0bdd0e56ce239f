"""Transforms that compute with numbers instead of moving them: what they give is F32, and may have lost bits of its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from ...errors import ModelError
from ..base import Tensor
from .lazy import F32, as_bytes
from .value_heads import tiled_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["Decay", "Rounded", "Shift", "Step", "computed", "decay_column", "undecay_column"]


class Step(Protocol):
    """A function of rows and its inverse; equal steps do the same."""

    def __call__(self, rows: Floats) -> Floats:
        """Return float32 (n, columns) for float32 (n, columns)."""
        ...

    @property
    def inverse(self) -> Self:
        """The step that undoes this one, as far as float32 can."""
        ...


@dataclass(frozen=True, slots=True)
class Rounded:
    """Reads the rows of ``source`` as ``step`` makes them."""

    source: Tensor
    step: Step

    def __call__(self, start: int, stop: int) -> Bytes:
        """Return rows as F32."""
        return as_bytes(self.step(self.source.rows(start, stop)))


@dataclass(frozen=True, slots=True)
class Shift:
    """Adds ``amount``."""

    amount: float

    def __call__(self, rows: Floats) -> Floats:
        """Return rows plus the amount, in float32."""
        return rows + np.float32(self.amount)

    @property
    def inverse(self) -> Shift:
        """The same amount subtracted."""
        return Shift(-self.amount)


@dataclass(frozen=True, slots=True)
class Decay:
    """Logarithms of how fast value heads forget, in groups of a key head, to the negative rates that recurrences multiply by, group by group in turn.

    ``heads`` value heads belong to ``groups`` key heads; ``backwards`` is the way back. Mamba (arXiv:2312.00752), section 3.6: A = -exp(A_log).
    """

    heads: int
    groups: int
    backwards: bool = False

    def __call__(self, rows: Floats) -> Floats:
        """Return -exp of (n, heads), or the logarithms of such rates; NaN for what is no rate."""
        if not self.backwards:
            return -np.exp(rows)[:, tiled_order(self.heads, self.groups)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(-rows)[:, np.argsort(tiled_order(self.heads, self.groups))]

    @property
    def inverse(self) -> Decay:
        """The other direction."""
        return Decay(self.heads, self.groups, not self.backwards)


def decay_column(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return minus the exponential of one number per head, (1, 1, heads, 1)."""
    _check_column(tensor, arguments["heads"])
    return computed(lambda _: Decay(1, 1))(tensor, {})


def undecay_column(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`decay_column`; programs that write GGUF may leave out the axes in front."""
    heads = arguments["heads"]
    if tensor.shape[:-2] in ((), (1,)):
        tensor = replace(tensor, shape=(1, 1, *tensor.shape[-2:]))
    _check_column(tensor, heads)
    return computed(lambda _: Decay(1, 1, backwards=True))(tensor, {})


def _check_column(tensor: Tensor, heads: int) -> None:
    if tensor.shape != (1, 1, heads, 1):
        raise ModelError(f"shape {tensor.shape} is not one number for each of {heads} heads", tensor=tensor.name)


def computed(step: Callable[[Mapping[str, int]], Step]) -> Callable[[Tensor, Mapping[str, int]], Tensor]:
    """Return a transform of one tensor by the step that its arguments give; applied to the result of the inverse step it takes that back."""

    def apply(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
        chosen = step(arguments)
        if "heads" in arguments and tensor.shape != (arguments["heads"],):
            raise ModelError(
                f"shape {tensor.shape} is not one number for each of {arguments['heads']} heads", tensor=tensor.name
            )
        if isinstance(tensor.read, Rounded) and tensor.read.step == chosen.inverse:
            return replace(tensor.read.source, name=tensor.name)
        return replace(tensor, encoding=F32, read=Rounded(tensor, chosen))

    return apply
