"""EXL3 folders, as ExLlamaV3 writes them: weights as states of a trellis, under Hadamard transforms of both sides.

With K inputs and N outputs, both rounded up to a multiple of 128, and R bits per weight (1 to 8; 1.5, 2.5 and 3.5 too)::

    .trellis       I16 (K / 16, N / 16, 16 * R)  one tile of 16 inputs and 16 outputs each
    .suh, .svh     F16 (K,), (N,)                factors of inputs and outputs
    .su, .sv       I16 (K / 16,), (N / 16,)      instead of them in older files: their signs, a set bit being -1
    .mcg or .mul1  I32 ()                        which numbers states stand for; "3inst" where neither is there

A tile is a ring of 256 * R bits, the highest bit of each 32-bit word first. The state of element t is the 16 bits of the ring that end where its
own R bits do; half a bit more means that elements with odd numbers have one bit more than those before them. A state is a number by a few
instructions of integer arithmetic (:func:`_numbers`); element t lies in the tile where tensor cores want it (:func:`_places`). With S the numbers of
all tiles (K, N), and H the Hadamard matrix of 128 x 128 over the square root of 128, in blocks along the side that it is on::

    weight = transposed(diag(suh) H S H diag(svh))

computed in the order H S, diag(suh), H, diag(svh), each step rounded to float16 as when ExLlamaV3 converts back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError, MissingTensorError
from ...quantizers.base import Encoding
from ..metadata import Scalar
from ..stored import StoredTensor
from .access import column_block, expect, whole
from .base import Packing, Unpacked, method, modules_with
from .replace import module_weights, replace_packed
from .split_layers import join_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Halves = NDArray[np.float16]

__all__ = ["PACKING"]

_TILE = 16
_ELEMENTS = _TILE * _TILE
_BLOCK = 128  # of the Hadamard transforms, to a multiple of which matrices are filled up
_STATE = 16  # bits
_WORD = 32
_CHUNK = 8 * _BLOCK  # inputs per step
_BITS_MAX = 8
_HALF_RATES = (1, 2, 3)  # these have half a bit more, too
_CODEBOOKS = (".mcg", ".mul1")
_OPTIONAL = (".suh", ".svh", ".su", ".sv", *_CODEBOOKS)
_FOLDED = np.uint32(0x8FFF8FFF), np.uint32(0x3B603B60)


@dataclass(frozen=True, slots=True)
class _Module:
    """The packed tensors of one linear layer, their shapes checked; ``halves`` are twice the bits per weight."""

    trellis: StoredTensor
    inputs_scale: StoredTensor
    outputs_scale: StoredTensor
    codebook: str
    halves: int
    inputs: int
    outputs: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float16 (stop - start, inputs)."""
        before = _scales(self.inputs_scale)
        after = _scales(self.outputs_scale)
        out = np.empty((stop - start, self.inputs), np.float16)
        for first in range(start // _BLOCK * _BLOCK, stop, _BLOCK):
            low, high = max(start, first), min(stop, first + _BLOCK)
            for column in range(0, self.inputs, _CHUNK):
                columns = slice(column, min(self.inputs, column + _CHUNK))
                rows = self._part(first, columns, before[columns], after[first : first + _BLOCK])
                out[low - start : high - start, columns] = rows[low - first : high - first]
        return out.view(np.uint8)

    def _part(self, first: int, columns: slice, before: Halves, after: Halves) -> Halves:
        """Return some inputs of the weights of the 128 outputs from ``first`` on: (128, inputs)."""
        tile = _ELEMENTS * self.halves // 2 // _STATE  # 16-bit words
        rows = _rows(self.trellis, columns.start // _TILE, columns.stop // _TILE)
        words = column_block(rows, first // _TILE * tile, (first + _BLOCK) // _TILE * tile)
        numbers = _numbers(self.codebook).take(_states(words.reshape(-1, tile), self.halves))
        tiles = numbers.reshape(_TILE, _TILE, -1, _BLOCK // _TILE)  # row, column, place among inputs and among outputs
        found = tiles.transpose(2, 0, 3, 1).reshape(-1, _BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is for later checks to name
            found = _hadamard(found) * before[:, None]
            return _hadamard(np.ascontiguousarray(found.T)) * after[:, None]


def _rows(trellis: StoredTensor, start: int, stop: int) -> StoredTensor:
    """Return some rows of tiles as a matrix with a row for 16 inputs."""
    _, width, tile = trellis.shape
    size = width * tile * trellis.nbytes // prod(trellis.shape)
    return replace(
        trellis,
        shape=(stop - start, width * tile),
        offset=trellis.offset + start * size,
        nbytes=(stop - start) * size,
        strides=None,
    )


def _scales(stored: StoredTensor) -> Halves:
    """Return the factors of inputs or outputs, or their signs where that is all there is."""
    found = whole(stored)
    if stored.dtype == "F16":
        return found.astype(np.float16)
    bits = np.unpackbits(found.astype("<i2").view(np.uint8), bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).astype(np.float16)


def _states(tiles: NDArray[np.generic], halves: int) -> NDArray[np.uint16]:
    """Return the states of every weight of a tile, row by row: uint16 (256, tiles); ``tiles`` are int16 (tiles, 16 * bits)."""
    words = np.ascontiguousarray(np.ascontiguousarray(tiles).view("<u4").T)
    numbers = np.arange(1, _ELEMENTS + 1)
    ends = numbers * (halves // 2) + (numbers // 2 if halves % 2 else 0)
    starts = ((ends - _STATE) % (len(words) * _WORD))[_places()]
    place, offset = starts // _WORD, (starts % _WORD).astype(np.uint32)[:, None]
    found: NDArray[np.uint32] = words[place] << offset
    found |= words[(place + 1) % len(words)] >> np.uint32(1) >> (np.uint32(_WORD - 1) - offset)
    states: NDArray[np.uint16] = (found >> np.uint32(_WORD - _STATE)).astype(np.uint16)
    return states


@cache
def _numbers(codebook: str) -> Halves:
    """Return the number of each of the 65,536 states."""
    state = np.arange(1 << _STATE, dtype=np.uint32)
    if codebook == ".mul1":
        product = state * np.uint32(0x83DCD12D)
        total = product.view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.float64)
        step, bias = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(np.float64)
        return np.asarray((1024.0 + total) * step + bias, np.float16)  # rounded once
    mixed = state * np.uint32(0xCBAC1FED) if codebook == ".mcg" else state * np.uint32(89226354) + np.uint32(64248484)
    halves = (mixed & _FOLDED[0] ^ _FOLDED[1]).view(np.uint16).reshape(-1, 2).view(np.float16)
    return np.asarray(halves[:, 0] + halves[:, 1], np.float16)


@cache
def _places() -> NDArray[np.intp]:
    """Return which element of the ring each weight of a tile is, row by row."""
    element = np.arange(_ELEMENTS)
    thread, part = element >> 3, element & 7
    row = 2 * (thread & 3) + (part & 1) + 8 * (part >> 1 & 1)
    column = (thread >> 2) + 8 * (part >> 2 & 1)
    return np.argsort(row * _TILE + column)


def _hadamard(values: Halves) -> Halves:
    """Return float16 (height, width): blocks of 128 rows transformed, which is their own inverse."""
    height, width = values.shape
    found = values.astype(np.float32).reshape(height // _BLOCK, _BLOCK, width)
    other = np.empty_like(found)
    step = 1
    while step < _BLOCK:
        shape = (height // _BLOCK, _BLOCK // (2 * step), 2, step, width)
        pairs, out = found.reshape(shape), other.reshape(shape)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 1])
        found, other = other, found
        step *= 2
    found *= np.float32(_BLOCK**-0.5)
    return found.reshape(height, width).astype(np.float16)


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "exl3"):
        return False
    return any(name.endswith(".trellis") for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    packed = modules_with(tensors, (".trellis",), _OPTIONAL)
    modules = {name: _module(name, parts) for name, parts in packed.items()}
    weights = module_weights(modules, packed, ".trellis", encodings["F16"])
    kept, spare = replace_packed(tensors, packed, join_split(weights, config))
    rates = sorted({module.halves / 2 for module in modules.values()})
    count = sum(module.inputs * module.outputs for module in modules.values())
    average = round(sum(module.halves / 2 * module.inputs * module.outputs for module in modules.values()) / count, 3)
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    facts: dict[str, Scalar] = {"bits": shown, "bits_per_weight": average}
    return Unpacked(
        kept, f"{average:.2f} bits per weight", facts, spare=spare, row_padding=_BLOCK, column_padding=_BLOCK
    )


def _module(name: str, parts: Mapping[str, StoredTensor]) -> _Module:
    """Return a module whose tensors fit one another; raises FormatError or ShapeError, naming the one that does not."""
    trellis = parts[".trellis"]
    height, width, tile = expect(trellis, ("I16",), (None, None, None))
    halves, rest = divmod(2 * tile, _TILE)
    known = [codebook for codebook in _CODEBOOKS if codebook in parts]
    half = halves % 2 == 1
    if rest or not 2 <= halves <= 2 * _BITS_MAX or (half and (halves // 2 not in _HALF_RATES or known != [".mul1"])):
        raise _refused(trellis, f"has tiles of {tile} words, which are {tile / _TILE:g} bits per weight")
    if (height * _TILE) % _BLOCK or (width * _TILE) % _BLOCK:
        raise _refused(trellis, f"has {height} x {width} tiles, which are no whole blocks of {_BLOCK} weights")
    if len(known) > 1:
        raise _refused(
            parts[known[1]], f"is there, and {parts[known[0]].name} too: only one of them tells the codebook"
        )
    before = _side(name, parts, (".suh", ".su"), height)
    after = _side(name, parts, (".svh", ".sv"), width)
    codebook = known[0] if known else ""
    return _Module(trellis, before, after, codebook, halves, height * _TILE, width * _TILE)


def _side(name: str, parts: Mapping[str, StoredTensor], suffixes: tuple[str, str], tiles: int) -> StoredTensor:
    """Return the factors of one side, or their signs; raises MissingTensorError where there are neither."""
    factors, signs = suffixes
    if factors in parts:
        expect(parts[factors], ("F16",), (tiles * _TILE,), f"the tiles of {name}.trellis")
        return parts[factors]
    if signs in parts:
        expect(parts[signs], ("I16",), (tiles,), f"the tiles of {name}.trellis")
        return parts[signs]
    raise MissingTensorError(
        f"is missing, and {name}.trellis cannot be unpacked without it",
        tensor=name + factors,
        remedy="A weight file is missing or damaged; compare the folder with its source.",
    )


def _refused(stored: StoredTensor, problem: str) -> FormatError:
    return FormatError(
        problem,
        path=stored.file.path,
        tensor=stored.name,
        remedy="The file is damaged, or of a newer form; download it again, or convert the original BF16 model.",
    )


PACKING = Packing(
    name="exl3",
    label="EXL3",
    description="1 to 8 bits, half bits and all three codebooks; the weights that ExLlamaV3 converts back to",
    methods=("exl3",),
    recognises=_recognises,
    unpack=_unpack,
)
