"""Every encoding that ggml numbers, with its sizes; a family module is imported when a codec is asked for.

Sizes and numbers are those of ggml's type table (``GGML_QUANT_SIZES`` of the gguf package is the oracle in the tests).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import cast

from .base import Codec, Encoding, ImportanceUse

__all__ = ["BUILT_IN"]

_UNUSED, _OPTIONAL, _REQUIRED = ImportanceUse.UNUSED, ImportanceUse.OPTIONAL, ImportanceUse.REQUIRED

# name, ggml type, weights per block, bytes per block, family, importance, module that holds the codec
_ROWS: tuple[tuple[str, int, int, int, str, ImportanceUse, str | None], ...] = (
    ("F32", 0, 1, 4, "float", _UNUSED, "floats"),
    ("F16", 1, 1, 2, "float", _UNUSED, "floats"),
    ("BF16", 30, 1, 2, "float", _UNUSED, "floats"),
    ("F64", 28, 1, 8, "float", _UNUSED, "floats"),
    ("I8", 24, 1, 1, "integer", _UNUSED, "floats"),
    ("I16", 25, 1, 2, "integer", _UNUSED, "floats"),
    ("I32", 26, 1, 4, "integer", _UNUSED, "floats"),
    ("I64", 27, 1, 8, "integer", _UNUSED, "floats"),
    ("Q4_0", 2, 32, 18, "legacy", _OPTIONAL, "legacy"),
    ("Q4_1", 3, 32, 20, "legacy", _OPTIONAL, "legacy"),
    ("Q5_0", 6, 32, 22, "legacy", _OPTIONAL, "legacy"),
    ("Q5_1", 7, 32, 24, "legacy", _OPTIONAL, "legacy"),
    ("Q8_0", 8, 32, 34, "legacy", _UNUSED, "legacy"),
    ("Q8_1", 9, 32, 36, "activation", _UNUSED, None),
    ("Q8_K", 15, 256, 292, "activation", _UNUSED, None),
    ("Q2_K", 10, 256, 84, "k-quant", _OPTIONAL, "k_quants.q2_k"),
    ("Q3_K", 11, 256, 110, "k-quant", _OPTIONAL, "k_quants.q3_k"),
    ("Q4_K", 12, 256, 144, "k-quant", _OPTIONAL, "k_quants.q45_k"),
    ("Q5_K", 13, 256, 176, "k-quant", _OPTIONAL, "k_quants.q45_k"),
    ("Q6_K", 14, 256, 210, "k-quant", _OPTIONAL, "k_quants.q6_k"),
    ("IQ1_S", 19, 256, 50, "i-quant", _REQUIRED, "i_quants.iq1"),
    ("IQ1_M", 29, 256, 56, "i-quant", _REQUIRED, "i_quants.iq1"),
    ("IQ2_XXS", 16, 256, 66, "i-quant", _REQUIRED, "i_quants.iq2"),
    ("IQ2_XS", 17, 256, 74, "i-quant", _REQUIRED, "i_quants.iq2"),
    ("IQ2_S", 22, 256, 82, "i-quant", _OPTIONAL, "i_quants.iq2"),
    ("IQ3_XXS", 18, 256, 98, "i-quant", _OPTIONAL, "i_quants.iq3"),
    ("IQ3_S", 21, 256, 110, "i-quant", _OPTIONAL, "i_quants.iq3"),
    ("IQ4_NL", 20, 32, 18, "i-quant", _OPTIONAL, "i_quants.iq4"),
    ("IQ4_XS", 23, 256, 136, "i-quant", _OPTIONAL, "i_quants.iq4"),
    ("TQ1_0", 34, 256, 54, "ternary", _UNUSED, "ternary"),
    ("TQ2_0", 35, 256, 66, "ternary", _UNUSED, "ternary"),
    ("MXFP4", 39, 32, 17, "microscaling", _UNUSED, "microscaling"),
    ("NVFP4", 40, 64, 36, "microscaling", _UNUSED, "microscaling"),
    ("Q1_0", 41, 128, 18, "low-bit", _UNUSED, "low_bit"),
    ("Q2_0", 42, 64, 18, "low-bit", _UNUSED, "low_bit"),
)


def _load(module: str, name: str) -> Codec:
    """Import the family module and ask it for one codec: each has ``codec(name) -> Codec``."""
    codec = cast("Callable[[str], Codec]", import_module(f".{module}", __package__).codec)
    return codec(name)


BUILT_IN: tuple[Encoding, ...] = tuple(
    Encoding(name, type_id, size, nbytes, family, importance, partial(_load, module, name) if module else None)
    for name, type_id, size, nbytes, family, importance, module in _ROWS
)
