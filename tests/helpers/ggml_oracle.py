"""llama.cpp's own encoders, from the prebuilt library inside the xllamacpp wheel: the oracle of errors and the rival of speeds."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

# sizes of types that the gguf package may not know yet: weights and bytes per block, by ggml's number
_NEWER = {41: (128, 18), 42: (64, 18)}


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the comparison with llama.cpp needs the package xllamacpp")
    folder = Path(spec.submodule_search_locations[0])
    library = ctypes.CDLL(str(next(p for p in folder.glob("xllamacpp*") if p.suffix in {".so", ".pyd"})))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    return library


def ggml_quantize(
    weights: NDArray[np.float32], type_id: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encode float32 (rows, columns) as llama.cpp does, on the calling thread; uint8 (rows, bytes per row).

    ``importance``: float32 (columns,) or None. Types that need one crash the process without it: the caller knows which do.
    """
    block, size = _NEWER[type_id] if type_id in _NEWER else GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    weights = np.ascontiguousarray(weights, np.float32)
    rows, columns = weights.shape
    if columns % block:
        raise ValueError(f"{columns} columns are not whole blocks of {block}")
    pointer = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        pointer = importance.ctypes.data
    out = np.zeros((rows, columns // block * size), np.uint8)
    library = _library()
    library.ggml_quantize_init(type_id)
    written = library.ggml_quantize_chunk(type_id, weights.ctypes.data, out.ctypes.data, 0, rows, columns, pointer)
    if written != out.nbytes:
        raise RuntimeError(f"type {type_id}: wrote {written} of {out.nbytes} bytes")
    return out


def ggml_dequantize(data: NDArray[np.uint8], type_name: str, columns: int) -> NDArray[np.float32]:
    """Decode uint8 (rows, bytes per row) as llama.cpp does; ``type_name`` as in GGUF (``Q4_K``)."""
    decode = getattr(_library(), "dequantize_row_" + type_name.lower().replace("_k", "_K"))
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    data = np.ascontiguousarray(data)
    out = np.empty((data.shape[0], columns), np.float32)
    decode(data.ctypes.data, out.ctypes.data, out.size)
    return out
