"""Tensors as checkpoint files hold them: a dtype, a shape and a place; rows are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EncodingError
from ..quantizers.base import Encoding
from .base import Tensor
from .positional import ContiguousRows, PositionalFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CheckpointTensor", "StoredTensor", "lazy_tensor", "read_rows"]

# dtypes that hold plain weights, and the encodings of the same layout
_ENCODINGS: Mapping[str, str] = {name: name for name in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: as in the file.
        dtype: safetensors' name (``BF16``).
        shape: NumPy order.
        offset: position of its first element in the file, in bytes.
        nbytes: bytes of its elements.
        file: the open file.
        strides: elements from one index to the next, per axis; None where the rows follow one another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: PositionalFile
    strides: tuple[int, ...] | None = None


# as the file holds it, or already resolved from what the file holds
CheckpointTensor = StoredTensor | Tensor


def lazy_tensor(stored: CheckpointTensor, encodings: Mapping[str, Encoding]) -> Tensor:
    """Return the tensor with rows read from the file when asked for; raises EncodingError for dtypes that hold no plain weights."""
    if isinstance(stored, Tensor):
        return stored
    name = _ENCODINGS.get(stored.dtype)
    if name is None:
        raise EncodingError(
            f"its dtype {stored.dtype} cannot be read as weights",
            path=stored.file.path,
            tensor=stored.name,
            remedy="Use the original BF16, F16 or F32 checkpoint of this model.",
        )
    encoding = encodings[name]
    read: Callable[[int, int], NDArray[np.uint8]] = partial(read_rows, stored, encoding.block_bytes)
    if stored.strides is None:
        width = (stored.shape[-1] if stored.shape else 1) * encoding.block_bytes
        read = ContiguousRows(stored.file, stored.offset, width, prod(stored.shape[:-1]), stored.name)
    return Tensor(stored.name, stored.shape, encoding, read, f"{stored.file.path.name}: {stored.name}")


def read_rows(stored: StoredTensor, item: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Return uint8 (stop - start, columns * item), the rows as they are in the file, ``item`` bytes per element.

    Raises TruncatedError where the file has become shorter.
    """
    if stored.strides is not None:
        from .strided import StridedView, gather_rows

        view = StridedView(stored.file, stored.offset, stored.shape, stored.strides, item, stored.name)
        return gather_rows(view, start, stop)
    width = (stored.shape[-1] if stored.shape else 1) * item
    return ContiguousRows(stored.file, stored.offset, width, prod(stored.shape[:-1]), stored.name)(start, stop)
