"""Quantized tensors inside Hugging Face folders: each quantizer's packing, turned into the weights that it stands for.

:mod:`.base` is the contract; ``docs/packed.md`` describes every layout.
"""

from __future__ import annotations

from .awq import PACKING as AWQ
from .base import Packing, Unpacked
from .bitsandbytes import PACKING as BITSANDBYTES
from .compressed_tensors import PACKING as COMPRESSED_TENSORS
from .exl2 import PACKING as EXL2
from .exl3 import PACKING as EXL3
from .float8_weights import PACKING as FLOAT8
from .gptq import PACKING as GPTQ
from .marlin import PACKING as MARLIN
from .modelopt import PACKING as MODELOPT
from .mxfp4 import PACKING as MXFP4

__all__ = ["PACKINGS", "Packing", "Unpacked"]

# asked in this order; the first that recognises a folder unpacks it
PACKINGS: tuple[Packing, ...] = (
    EXL2,
    EXL3,
    MARLIN,
    GPTQ,
    AWQ,
    BITSANDBYTES,
    COMPRESSED_TENSORS,
    MODELOPT,
    MXFP4,
    FLOAT8,
)
