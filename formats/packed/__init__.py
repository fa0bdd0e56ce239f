"""Quantized tensors inside Hugging Face folders: each quantizer's packing, turned into the weights that it stands for.

:mod:`.base` is the contract; ``docs/packed.md`` describes every layout.
"""

from __future__ import annotations

from .base import Packing, Unpacked
from .gptq import PACKING as GPTQ

__all__ = ["PACKINGS", "Packing", "Unpacked"]

# asked in this order; the first that recognises a folder unpacks it
PACKINGS: tuple[Packing, ...] = (GPTQ,)
