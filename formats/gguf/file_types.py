"""llama.cpp's numbers for a whole file's mixture of types: the values of ``general.file_type``."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

__all__ = ["FILE_TYPES", "GUESSED_FLAG", "file_type_name"]

GUESSED_FLAG: Final = 1024
"""Added to a number that was guessed from the tensors."""

FILE_TYPES: Final = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        4: "Q4_1_SOME_F16",
        5: "Q4_2",
        6: "Q4_3",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        33: "Q4_0_4_4",
        34: "Q4_0_4_8",
        35: "Q4_0_8_8",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4_MOE",
        39: "NVFP4",
        40: "Q1_0",
        41: "Q2_0",
    }
)


def file_type_name(number: int) -> str:
    """Return the name of a ``general.file_type``; one unknown to qconv reads ``unknown (99)``."""
    name = FILE_TYPES.get(number & ~GUESSED_FLAG, f"unknown ({number})")
    return f"{name} (guessed)" if number & GUESSED_FLAG and number & ~GUESSED_FLAG in FILE_TYPES else name
