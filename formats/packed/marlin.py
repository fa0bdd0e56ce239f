"""Marlin, to which AutoGPTQ and vLLM repacked GPTQ models: 4 bits around a middle of 8, in the order that its kernel wants.

With K inputs, N outputs (a multiple of 64) and G groups::

    .B  I32 (K / 16, 2 * N)  tiles of 16 inputs and 16 outputs, four tiles to 128 words, 8 codes to a word, low bits first
    .s  F16 (G, N)           scales

    weight[n, k] = (q[k, n] - 8) * s[g, n]        g = k // (K / G)

Codes of four tiles, and scales of 64 outputs (of 32 where there is one group), stand in an order that is the same everywhere
(:func:`_places`, :func:`_scale_places`). Source: AutoGPTQ's ``qlinear_marlin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ShapeError
from ...quantizers.base import Encoding
from ..metadata import Scalar
from ..stored import StoredTensor
from .access import as_float32, column_block, expect, whole
from .affine import dequantize
from .base import Packing, Unpacked, method, modules_with
from .bits import unpack_stream
from .replace import module_weights, number_range, replace_packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PACKING"]

_TILE = 16
_OUTPUTS = 64  # of four tiles, whose codes stand together
_CODES = _TILE * _OUTPUTS
_WORDS = _CODES // 8
_MIDDLE = 8
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class _Module:
    """The packed tensors of one linear layer, their shapes checked."""

    codes: StoredTensor
    scales: StoredTensor
    inputs: int
    outputs: int
    groups: int

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.inputs // self.groups

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float32 (stop - start, inputs)."""
        scales = as_float32(whole(self.scales), self.scales.dtype)
        places = _scale_places(one_group=self.groups == 1)
        scales = scales.reshape(-1, len(places)).take(places, axis=1).reshape(self.groups, self.outputs)
        middle = np.full((stop - start, self.groups), _MIDDLE, np.uint8)
        weights = dequantize(
            lambda first, last: self._codes(start + first, start + last),
            middle,
            np.ascontiguousarray(scales[:, start:stop].T),
            self.group_size,
            (stop - start, self.inputs),
        )
        return weights.view(np.uint8)

    def _codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return uint8 (stop - start, inputs)."""
        first, last = start // _OUTPUTS, -(-stop // _OUTPUTS)
        words = column_block(self.codes, first * _WORDS, last * _WORDS)
        stored = unpack_stream(words.view(np.uint8).reshape(-1, 4 * _WORDS), 4, _CODES)
        tiles = stored.take(_places(), axis=1).reshape(self.inputs // _TILE, last - first, 4, _TILE, _TILE)
        rows = tiles.transpose(1, 2, 4, 0, 3).reshape((last - first) * _OUTPUTS, self.inputs)
        return rows[start - first * _OUTPUTS :][: stop - start]


@cache
def _places() -> NDArray[np.intp]:
    """Return where each code of four tiles is stored, tile by tile and row by row."""
    order = []
    for thread in range(32):
        rows = [2 * (thread % 4) + step for step in (0, 1, 8, 9)]
        four = [_TILE * row + thread // 4 + 8 * half for half in (0, 1) for row in rows]
        order += [place + _TILE * _TILE * tile for tile in range(4) for place in four]
    found = np.array(order).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    return np.argsort(found.reshape(-1))


@cache
def _scale_places(*, one_group: bool) -> NDArray[np.intp]:
    """Return where each of 64 scales, or with one group of 32, is stored."""
    if one_group:
        return np.argsort([2 * row + step for row in range(4) for step in (0, 1, 8, 9, 16, 17, 24, 25)])
    return np.argsort(np.arange(_OUTPUTS).reshape(8, 8).T.reshape(-1))


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "gptq", "marlin"):
        return False
    return any(name.endswith(".B") and f"{name.removesuffix('.B')}.s" in tensors for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    packed = modules_with(tensors, (".B", ".s"))
    modules = {name: _module(parts) for name, parts in packed.items()}
    weights = module_weights(modules, packed, ".B", encodings["F32"])
    kept, spare = replace_packed(tensors, packed, weights)
    sizes = number_range(module.group_size for module in modules.values())
    facts: dict[str, Scalar] = {"bits": 4, "group_size": sizes, "layout": "marlin"}
    return Unpacked(kept, f"4 bits, groups of {sizes}", facts, spare=spare)


def _module(parts: Mapping[str, StoredTensor]) -> _Module:
    """Return a module whose tensors fit one another; raises FormatError or ShapeError, naming the one that does not."""
    codes, scales = parts[".B"], parts[".s"]
    height, width = expect(codes, ("I32",), (None, None))
    if width % _WORDS:
        expect(codes, ("I32",), (height, -(-width // _WORDS) * _WORDS), f"outputs in blocks of {_OUTPUTS}")
    inputs, outputs = height * _TILE, width // 2
    groups, _ = expect(scales, _FLOATS, (None, outputs), f"the outputs of {codes.name}")
    if inputs % groups:
        raise ShapeError(
            f"has {groups} groups for {inputs} inputs",
            path=scales.file.path,
            tensor=scales.name,
            remedy="The file is damaged; download it again.",
        )
    return _Module(codes, scales, inputs, outputs, groups)


PACKING = Packing(
    name="marlin",
    label="Marlin",
    description="GPTQ models repacked for Marlin's kernel: 4 bits, symmetric",
    methods=("marlin",),
    recognises=_recognises,
    unpack=_unpack,
)
