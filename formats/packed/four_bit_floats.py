"""Four-bit floats under shared scales, rearranged into GGUF's own MXFP4 and NVFP4 blocks: every code and scale keeps its bits.

Checkpoints hold two codes per byte, element ``2i`` below element ``2i + 1``, and the scales in a tensor of their own. GGUF's blocks begin with
their scales, and byte ``i`` of a scale's codes holds element ``i`` below the element half a group later (:mod:`qconv.quantizers.microscaling`).

NVFP4 checkpoints have one more scale per tensor, a float32, for which GGUF's blocks have no room: it becomes a tensor of its own beside the
weights (:mod:`qconv.formats.scales`). A negative scale, which GGUF's blocks cannot hold, passes its sign on to its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, NonFiniteError, ShapeError
from ...quantizers.base import Encoding
from ..architectures.transforms import constant
from ..base import Tensor
from ..scales import folded
from ..stored import StoredTensor, read_rows
from .access import as_float32, expect, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["mxfp4_blocks", "mxfp4_tensor", "nvfp4_blocks", "nvfp4_tensor", "nvfp4_weight"]

_MX_GROUP, _NV_GROUP, _NV_SCALES = 32, 16, 4
_SIGNS = 0x88  # of both codes of a byte
_NAN = 0x7F  # F8_E4M3, without sign


def _halves_apart(packed: Bytes, group: int) -> Bytes:
    """Return groups of bytes (..., group / 2) with code ``i`` below code ``i + group / 2`` instead of ``2i`` below ``2i + 1``."""
    first, second = packed[..., : group // 4], packed[..., group // 4 :]
    out = np.empty_like(packed)
    out[..., 0::2] = first & 0x0F | second << 4
    out[..., 1::2] = first >> 4 | second & 0xF0
    return out


def mxfp4_blocks(packed: Bytes, scales: Bytes) -> Bytes:
    """Return GGUF's MXFP4 rows, uint8 (n, 17 * groups), of codes, uint8 (n, 16 * groups), and E8M0 scales, uint8 (n, groups)."""
    rows, groups = scales.shape
    out = np.empty((rows, groups, 1 + _MX_GROUP // 2), np.uint8)
    out[..., 0] = scales
    out[..., 1:] = _halves_apart(packed.reshape(rows, groups, _MX_GROUP // 2), _MX_GROUP)
    return out.reshape(rows, groups * out.shape[-1])


def nvfp4_blocks(packed: Bytes, scales: Bytes) -> Bytes:
    """Return GGUF's NVFP4 rows, uint8 (n, 36 * groups / 4), of codes, uint8 (n, 8 * groups), and E4M3 scales, uint8 (n, groups).

    The number of groups is a multiple of 4. No scale may be NaN: GGUF has no such scale.
    """
    rows, groups = scales.shape
    codes = _halves_apart(packed.reshape(rows, groups, _NV_GROUP // 2), _NV_GROUP)
    if (scales & 0x80).any():
        codes ^= np.where(scales & 0x80, np.uint8(_SIGNS), np.uint8(0))[..., None]
    out = np.empty((rows, groups // _NV_SCALES, 9 * _NV_SCALES), np.uint8)
    out[..., :_NV_SCALES] = (scales & 0x7F).reshape(rows, out.shape[1], _NV_SCALES)
    out[..., _NV_SCALES:] = codes.reshape(rows, out.shape[1], 8 * _NV_SCALES)
    return out.reshape(rows, out.shape[1] * out.shape[2])


@dataclass(frozen=True, slots=True)
class _Packed:
    """Codes and scales in their files, shapes checked.

    Attributes:
        codes: (…, rows, bytes of a row), or (…, rows, groups, bytes of a group).
        scales: (…, rows, groups).
        split: rows of ``codes`` that make up a row of weights.
    """

    codes: StoredTensor
    scales: StoredTensor
    split: int

    def read_stored(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Return the codes and scales of the rows as they are in the files, each (stop - start, bytes)."""
        codes = read_rows(self.codes, 1, start * self.split, stop * self.split)
        return codes.reshape(stop - start, self.split * self.codes.shape[-1]), read_rows(self.scales, 1, start, stop)

    def read_mxfp4(self, start: int, stop: int) -> Bytes:
        return mxfp4_blocks(*self.read_stored(start, stop))

    def read_nvfp4(self, start: int, stop: int) -> Bytes:
        codes, scales = self.read_stored(start, stop)
        if (bad := (scales & _NAN) == _NAN).any():
            row, group = (int(index[0]) for index in np.nonzero(bad))
            raise NonFiniteError(
                f"the scale of row {start + row}, weights {group * _NV_GROUP} to {(group + 1) * _NV_GROUP - 1}, is not a number",
                path=self.scales.file.path,
                tensor=self.scales.name,
                remedy="The file is damaged; download it again.",
            )
        missing = -scales.shape[1] % _NV_SCALES  # groups to a whole block, where the rows do not end with one
        if missing:
            codes = np.pad(codes, ((0, 0), (0, missing * _NV_GROUP // 2)))
            scales = np.pad(scales, ((0, 0), (0, missing)))
        return nvfp4_blocks(codes, scales)


def _packed(codes: StoredTensor, scales: StoredTensor, group: int, dtypes: tuple[str, ...]) -> _Packed:
    """Check the shapes of both tensors, and return them; raises FormatError or ShapeError."""
    *outer, groups = expect(scales, dtypes, (None,) * max(2, len(scales.shape)))
    row: tuple[int, ...] = (groups * group // 2,)
    if len(codes.shape) > len(scales.shape):
        row = (groups, group // 2)
    expect(codes, ("U8", "I8"), (*outer, *row), f"{scales.name} with one scale for {group} weights")
    return _Packed(codes, scales, groups if len(row) == 2 else 1)


def mxfp4_tensor(name: str, codes: StoredTensor, scales: StoredTensor, encodings: Mapping[str, Encoding]) -> Tensor:
    """Return the weights (…, rows, 32 * groups) as MXFP4.

    ``codes``: U8 (…, rows, 16 * groups) or (…, rows, groups, 16); ``scales``: E8M0 as U8 or F8_E8M0 (…, rows, groups). Raises FormatError or
    ShapeError.
    """
    packed = _packed(codes, scales, _MX_GROUP, ("U8", "F8_E8M0"))
    shape = (*scales.shape[:-1], scales.shape[-1] * _MX_GROUP)
    return Tensor(name, shape, encodings["MXFP4"], packed.read_mxfp4, _origin(codes))


def nvfp4_tensor(name: str, codes: StoredTensor, scales: StoredTensor, encodings: Mapping[str, Encoding]) -> Tensor:
    """Return the weights (…, rows, 16 * groups) as NVFP4, or as F32 where rows are no whole blocks of 64 weights.

    ``codes``: U8 (…, rows, 8 * groups); ``scales``: E4M3 as F8_E4M3 or U8 (…, rows, groups). The tensor's own scale is not applied. Raises
    FormatError or ShapeError; reading raises NonFiniteError.
    """
    packed = _packed(codes, scales, _NV_GROUP, ("F8_E4M3", "U8"))
    shape = (*scales.shape[:-1], scales.shape[-1] * _NV_GROUP)
    nvfp4 = encodings["NVFP4"]
    if nvfp4.fits(shape[-1]):
        return Tensor(name, shape, nvfp4, packed.read_nvfp4, _origin(codes))

    def read(start: int, stop: int) -> Bytes:
        weights = nvfp4.decode(packed.read_nvfp4(start, stop))[:, : shape[-1]]
        return np.ascontiguousarray(weights).view(np.uint8)

    return Tensor(name, shape, encodings["F32"], read, _origin(codes))


def nvfp4_weight(
    name: str,
    codes: StoredTensor,
    scales: StoredTensor,
    whole_scale: StoredTensor | None,
    encodings: Mapping[str, Encoding],
    inverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return a weight as :func:`nvfp4_tensor` does, and the scale of the whole tensor beside it, or None where that is 1.

    ``whole_scale`` has one number, or one for each matrix of a stack, by which weights are multiplied, or divided if ``inverse``: then the scale
    is the number's reciprocal in float32. A weight that is F32 has it folded in. Raises FormatError or ShapeError.
    """
    tensor = nvfp4_tensor(name, codes, scales, encodings)
    if whole_scale is None:
        return tensor, None
    expect(whole_scale, ("F32", "BF16", "F16"), (None,) * len(whole_scale.shape))
    count = prod(whole_scale.shape)
    matrices = prod(tensor.shape[:-2])
    if count not in (1, matrices):
        raise ShapeError(
            f"has shape {whole_scale.shape}, and {codes.name} has {matrices} {'matrix' if matrices == 1 else 'matrices'}",
            path=whole_scale.file.path,
            tensor=whole_scale.name,
            remedy="The tensors belong to different models, or a file is damaged.",
        )
    values = as_float32(whole(whole_scale), whole_scale.dtype).reshape(-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        factors = np.float32(1) / values if inverse else values
    if (bad := ~np.isfinite(factors) | ~np.isfinite(values) | (values == 0)).any():
        raise FormatError(
            f"holds {values[bad][0]:g}, by which no weight can be scaled",
            path=whole_scale.file.path,
            tensor=whole_scale.name,
            remedy="The file is damaged; download it again.",
        )
    if (factors == 1).all():
        return tensor, None
    scale = constant(whole_scale.name, factors, _origin(whole_scale))
    return (tensor, scale) if tensor.encoding.name == "NVFP4" else (folded(tensor, scale), None)


def _origin(codes: StoredTensor) -> str:
    return f"{codes.file.path.name}: {codes.name}"
