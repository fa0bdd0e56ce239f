"""S6: 32 weights as six-bit integers and one half-precision scale, 26 bytes or 6.5 bits per weight.

Layout of a block: the scale d (float16, little-endian), then 24 bytes; each three bytes hold four codes, the first in the lowest bits. A
weight is ``d * (code - 32)``.
"""

import numpy as np
from numpy.typing import NDArray

from qconv.quantizers.base import Codec, EncodeOptions, Encoding, ImportanceUse

__all__ = ["SIX"]

_WEIGHTS, _BYTES, _MIDDLE = 32, 26, 32
_SHIFTS = np.array([0, 6, 12, 18], np.uint32)
_LARGEST_HALF = np.float32(65504)


def _decode(data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    blocks = data.reshape(-1, _BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    triples = blocks[:, 2:].reshape(-1, _WEIGHTS // 4, 3).astype(np.uint32)
    words = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
    codes = (words[..., None] >> _SHIFTS & 63).reshape(-1, _WEIGHTS)
    out.reshape(-1, _WEIGHTS)[...] = scales * (codes.astype(np.float32) - _MIDDLE)


def _encode(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None, options: EncodeOptions, out: NDArray[np.uint8]
) -> None:
    weights = rows.reshape(-1, _WEIGHTS)
    # the weight farthest from zero gets code 0, the only one whose magnitude has no opposite
    farthest = np.take_along_axis(weights, np.abs(weights).argmax(axis=1, keepdims=True), axis=1)
    scales = np.clip(farthest / -_MIDDLE, -_LARGEST_HALF, _LARGEST_HALF).astype("<f2")
    divisors = scales.astype(np.float32)
    ratios = np.divide(weights, divisors, out=np.zeros_like(weights), where=divisors != 0)
    codes = np.clip(np.rint(ratios) + _MIDDLE, 0, 63).astype(np.uint32)
    words = (codes.reshape(-1, _WEIGHTS // 4, 4) << _SHIFTS).sum(axis=2, dtype=np.uint32)
    blocks = out.reshape(-1, _BYTES)
    blocks[:, :2] = scales.view(np.uint8)
    blocks[:, 2:] = np.stack([words >> shift & 255 for shift in (0, 8, 16)], axis=2).reshape(-1, _BYTES - 2)


SIX = Encoding(
    "S6",
    type_id=None,  # GGUF has no number for it: an archive can hold it, a GGUF file cannot
    block_size=_WEIGHTS,
    block_bytes=_BYTES,
    family="qconv-npz",
    importance=ImportanceUse.UNUSED,
    load=lambda: Codec(_decode, _encode),
)
