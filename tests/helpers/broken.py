"""Break conversions on purpose: change tensors of a finished GGUF file in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray


def change(path: Path, name: str, function: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Replace a tensor's data by what ``function`` makes of it: floats as such, rows of bytes for other encodings."""
    reader = gguf.GGUFReader(path)
    (tensor,) = (it for it in reader.tensors if it.name == name)
    data = np.array(tensor.data)
    offset = int(tensor.data_offset)
    del reader, tensor
    changed = np.ascontiguousarray(function(data))
    assert changed.shape == data.shape
    assert changed.dtype == data.dtype
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(changed.tobytes())


def without_rotary_permutation(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return a query or key matrix as Hugging Face has it, from GGUF's order for llama."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return split.swapaxes(1, 2).reshape(rows.shape)


def with_one_scale_flipped(rows: NDArray[np.uint8], row: int, byte: int) -> NDArray[np.uint8]:
    """Return rows of bytes with the sign of the float16 scale that ends at ``byte`` inverted."""
    changed = rows.copy()
    changed[row, byte] ^= 0x80
    return changed


def with_rotary_permutation(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return a query or key matrix in GGUF's order for llama, from Hugging Face's."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return split.swapaxes(1, 2).reshape(rows.shape)
