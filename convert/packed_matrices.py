"""Matrices that are rounded and packed when the writer asks for their tensors, each once, by as many threads as are waiting for it.

What is packed of a matrix is held until all of it has been written: about half a byte per weight, of the few matrices that threads are at.
Outputs know nothing of each other, so a matrix is rounded in runs of outputs, always the same ones: bytes do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from ..errors import EncodingError
from ..formats.base import OpenContext, Tensor
from ..formats.calibration import open_calibration
from ..quantizers.activation_scales import EXPONENTS, group_moments, input_scales, scaled_moment, scaling_loss
from ..quantizers.base import Encoding
from ..quantizers.feedback import DAMPING, STEP, Factor, column_order, factorize
from ..quantizers.group_packing import OUTPUTS_PER_WORD, pack_awq, pack_gptq
from ..quantizers.group_rounding import Grid, Rounded, round_groups, round_with_feedback
from .activation_folds import Fold
from .packed_linears import PackedLinear
from .shared_work import LastUsed, SharedWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Inputs", "Matrices", "Rounding", "Scales"]

_CHUNK: Final = 1 << 20  # weights that are rounded together
_SAMPLE: Final = 512  # outputs of all matrices of a fold that its scales are chosen on
_RUN: Final = 16  # of them that follow one another

Order = Literal["none", "groups", "static"]


@dataclass(frozen=True, slots=True)
class Rounding:
    """How matrices are rounded.

    Attributes:
        packing: ``gptq`` or ``awq``.
        grid: what codes are like.
        feedback: whether errors are made up for, where the inputs' second moment is known.
        damping: added to the second moment's diagonal, relative to its mean.
        order: with feedback: ``groups``: inputs with the largest mean square first, and groups in that order; ``static``: the same, but groups of
            neighbours; ``none``: as they come.
    """

    packing: Literal["gptq", "awq"]
    grid: Grid
    feedback: bool = False
    damping: float = DAMPING
    order: Order = "none"


class Inputs:
    """Second moments of a calibration file, the last few of which are kept."""

    def __init__(self, path: Path, context: OpenContext) -> None:
        with open_calibration(path, context) as found:
            self.facts = found.facts
            self.entries = dict(found.entries)
            self._counts = {name: found.counts(name) for name in found.entries}
        self.path = path
        self._context = context
        self._kept: LastUsed[Floats] = LastUsed(2)

    def met(self, name: str, expert: int = 0) -> bool:
        """Whether a tensor's input (of one ``expert`` of a stack) was measured, and any token met it."""
        return name in self.entries and expert < len(self._counts[name]) and bool(self._counts[name][expert])

    def key(self, names: Sequence[str], expert: int = 0) -> tuple[str, int] | None:
        """Return by what the one input of all these tensors is known, None where it is not, or they have several."""
        if not all(self.met(name, expert) for name in names):
            return None
        firsts = {self.entries[name].names[0] for name in names}
        return (firsts.pop(), expert) if len(firsts) == 1 else None

    def moment(self, key: tuple[str, int]) -> Floats:
        """Return float32 (inputs, inputs); any thread may call."""

        def read() -> Floats:
            with open_calibration(self.path, self._context) as found:
                return found.hessian(*key)

        return self._kept.get(key, read)


class Scales:
    """The scales of a model's folds, searched when the first tensor asks for them, and kept: they are vectors."""

    def __init__(self, folds: Sequence[Fold], inputs: Inputs, grid: Grid) -> None:
        self.folds = folds
        self._inputs = inputs
        self._grid = grid
        self._found: dict[int, Floats] = {}
        self._losses: list[dict[float, float]] = [{} for _ in folds]
        self._work = [SharedWork(partial(self._begin, number)) for number in range(len(folds))]

    def __call__(self, number: int) -> Floats:
        """Return float32 (inputs,): the scales of a fold."""
        if number not in self._found:
            self._work[number].finish()
            losses = self._losses[number]
            best = min(EXPONENTS, key=lambda exponent: (losses[exponent], exponent))
            self._found[number] = input_scales(self._moment(number), best)
            self._work[number] = SharedWork(tuple)  # the sample is not needed any more
        return self._found[number]

    def _moment(self, number: int) -> Floats:
        name, expert = self.folds[number].moment
        key = self._inputs.key([name], expert)
        assert key is not None
        return self._inputs.moment(key)

    def _begin(self, number: int) -> list[Callable[[], None]]:
        matrices = self.folds[number].packed
        runs = max(1, _SAMPLE // len(matrices) // _RUN)
        sample = []
        for matrix in matrices:
            count = min(runs, max(1, matrix.rows // _RUN))
            starts = np.linspace(0, max(0, matrix.rows - _RUN), count).astype(int)
            rows = [matrix.decode(slice(int(it), min(matrix.rows, int(it) + _RUN))) for it in starts]
            sample.append(np.concatenate(rows))
        moment = self._moment(number)

        def measure(exponent: float) -> None:
            scales = input_scales(moment, exponent)
            self._losses[number][exponent] = scaling_loss(sample, moment, self._grid, scales)

        return [partial(measure, exponent) for exponent in EXPONENTS]


class Matrices:
    """Packed tensors of linear layers.

    Args:
        rounding: how.
        inputs: second moments, or None: every weight becomes the nearest code.
        threads: that will ask.
        encodings: of tensors, by name.
        scales: by which a linear layer's inputs are divided, None for none.
    """

    def __init__(
        self,
        rounding: Rounding,
        inputs: Inputs | None,
        threads: int,
        encodings: Mapping[str, Encoding],
        scales: Callable[[PackedLinear], Floats | None] = lambda linear: None,
    ) -> None:
        self.rounding = rounding
        self.inputs = inputs
        self._encodings = encodings
        self._scales = scales
        self._matrices: LastUsed[_Matrix] = LastUsed(threads + 2)
        self._factors: LastUsed[Factor] = LastUsed(threads + 1)

    def key(self, linear: PackedLinear) -> tuple[str, int] | None:
        """Return by what a layer's input is known, None where it is not."""
        if self.inputs is None:
            return None
        key = self.inputs.key(linear.canonical, linear.expert or 0)
        return key if key is not None and self.inputs.entries[key[0]].columns == linear.inputs else None

    def shapes(self, linear: PackedLinear) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the encoding and the shape of each of a layer's tensors, by suffix."""
        groups = linear.inputs // self.rounding.grid.size(linear.inputs)
        words = linear.outputs // OUTPUTS_PER_WORD
        if self.rounding.packing == "awq":
            qweight: tuple[int, ...] = (linear.inputs, words)
        else:
            qweight = (linear.inputs * self.rounding.grid.bits // 32, linear.outputs)
        found = {
            "qweight": ("I32", qweight),
            "qzeros": ("I32", (groups, words)),
            "scales": ("F16", (groups, linear.outputs)),
        }
        return found if self.rounding.packing == "awq" else {**found, "g_idx": ("I32", (linear.inputs,))}

    def tensors(self, linear: PackedLinear) -> list[Tensor]:
        """Return a layer's tensors."""
        return [
            Tensor(
                f"{linear.name}.{suffix}",
                shape,
                self._encodings[encoding],
                partial(self._read, linear, suffix),
                linear.weight.origin,
            )
            for suffix, (encoding, shape) in self.shapes(linear).items()
        ]

    def _read(self, linear: PackedLinear, suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        matrix = self._matrices.get(linear.name, lambda: _Matrix(self, linear))
        matrix.work.finish()
        array = matrix.arrays[suffix].reshape(-1, matrix.arrays[suffix].shape[-1])[start:stop]
        if matrix.is_last(stop - start):
            self._matrices.forget(linear.name)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(little).view(np.uint8)

    def rounder(self, linear: PackedLinear) -> Callable[[Floats], Rounded]:
        """Return what rounds some outputs of a layer, float32 (n, inputs)."""
        rounding, key = self.rounding, self.key(linear)
        grid = rounding.grid
        if key is None or self.inputs is None:
            return lambda weights: round_groups(weights, grid)
        if rounding.feedback:
            factor = self._factors.get(key, partial(self._factor, linear, key))
            return lambda weights: round_with_feedback(weights, factor, grid, static=rounding.order == "static")
        moment = scaled_moment(self.inputs.moment(key), self._scales(linear))
        size = grid.size(linear.inputs)
        if size > STEP:
            importance = np.ascontiguousarray(moment.diagonal())
            return lambda weights: round_groups(weights, grid, importance)
        moments = group_moments(moment, size)
        return lambda weights: round_groups(weights, grid, moments=moments)

    def _factor(self, linear: PackedLinear, key: tuple[str, int]) -> Factor:
        assert self.inputs is not None
        moment = scaled_moment(self.inputs.moment(key), self._scales(linear))
        order = None if self.rounding.order == "none" else column_order(moment)
        return factorize(moment, self.rounding.damping, order)

    def pack(self, rounded: Rounded) -> dict[str, NDArray[Any]]:
        """Return the tensors of some outputs."""
        if self.rounding.packing == "awq":
            return pack_awq(rounded)
        return pack_gptq(rounded, self.rounding.grid.bits)


class _Matrix:
    """The packed tensors of one layer, and the work of making them."""

    def __init__(self, matrices: Matrices, linear: PackedLinear) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.work = SharedWork(self._begin)
        self._matrices = matrices
        self._linear = linear
        self._lock = threading.Lock()
        shapes = [shape for _, shape in matrices.shapes(linear).values()]
        self._left = sum(shape[0] if len(shape) > 1 else 1 for shape in shapes)

    def is_last(self, rows: int) -> bool:
        """Count rows as read; return whether they were the last."""
        with self._lock:
            self._left -= rows
            return self._left <= 0

    def _begin(self) -> list[Callable[[], None]]:
        linear = self._linear
        kinds = {"I32": np.int32, "F16": np.float16}
        for suffix, (encoding, shape) in self._matrices.shapes(linear).items():
            self.arrays[suffix] = np.empty(shape, kinds[encoding])
        with _naming(linear):
            rounder = self._matrices.rounder(linear)
        step = max(32, _CHUNK // linear.inputs // 32 * 32)
        return [
            partial(self._round, rounder, start, min(start + step, linear.outputs))
            for start in range(0, linear.outputs, step)
        ]

    def _round(self, rounder: Callable[[Floats], Rounded], start: int, stop: int) -> None:
        linear = self._linear
        with _naming(linear):
            rounded = rounder(linear.weight.rows(start, stop))
            for suffix, part in self._matrices.pack(rounded).items():
                whole = self.arrays[suffix]
                width = whole.shape[-1]
                whole[:, start * width // linear.outputs : stop * width // linear.outputs] = part
        if start == 0 and "g_idx" in self.arrays:
            self.arrays["g_idx"][:] = rounded.groups


class _naming:
    """Gives errors the name of the layer that they are about."""

    def __init__(self, linear: PackedLinear) -> None:
        self._linear = linear

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EncodingError) and error.tensor is None:
            error.tensor = self._linear.name
