"""Matrices that are rounded and packed when the writer asks for their tensors, each once, by as many threads as are waiting for it.

What is packed of a matrix is held until all of it has been written: about half a byte per weight, of the few matrices that threads are at.
Outputs know nothing of each other, so a matrix is rounded in runs of outputs, always the same ones: bytes do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import EncodingError
from ...formats.base import Tensor
from ...quantizers.base import Encoding
from ...quantizers.rounding.group_packing import OUTPUTS_PER_WORD, pack_awq, pack_gptq
from ...quantizers.rounding.group_rounding import Rounded
from ..shared_work import LastUsed, SharedWork
from .linears import PackedLinear
from .rounding import Key, Rounder, Rounders

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Matrices"]

_CHUNK: Final = 1 << 20  # weights that are rounded together


class Matrices:
    """Packed tensors of linear layers.

    Args:
        rounders: what rounds them.
        threads: that will ask.
        encodings: of tensors, by name.
        scales: by which a linear layer's inputs are divided, None for none.
    """

    def __init__(
        self,
        rounders: Rounders,
        threads: int,
        encodings: Mapping[str, Encoding],
        scales: Callable[[PackedLinear], Floats | None] = lambda linear: None,
    ) -> None:
        self.rounding = rounders.rounding
        self.inputs = rounders.inputs
        self._rounders = rounders
        self._encodings = encodings
        self._scales = scales
        self._matrices: LastUsed[_Matrix] = LastUsed(threads + 2)

    def key(self, linear: PackedLinear) -> Key | None:
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

    def rounder(self, linear: PackedLinear) -> Rounder:
        """Return what rounds some outputs of a layer, float32 (n, inputs)."""
        return self._rounders.rounder(self.key(linear), self._scales(linear))

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

    def _round(self, rounder: Rounder, start: int, stop: int) -> None:
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
