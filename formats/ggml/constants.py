"""Numbers of the formats before GGUF, and the caps within which the reader believes a header."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

__all__ = [
    "ADDED_SCORE",
    "ALIGNMENT",
    "BYTE_TOKENS",
    "CONTAINERS",
    "FILE_TYPES",
    "FIRST_BYTE_TOKEN",
    "FOREIGN_MAGICS",
    "MAX_EMBEDDING",
    "MAX_HEADS",
    "MAX_LAYERS",
    "MAX_MISSING_TOKENS",
    "MAX_NAME_BYTES",
    "MAX_PARTS",
    "MAX_TOKEN_BYTES",
    "MAX_VOCABULARY",
    "UNKNOWN_TEXT",
    "WRITABLE",
    "WRITTEN_MAGIC",
    "WRITTEN_VERSION",
]

# The constants were stored as little-endian numbers, so the letters are reversed on disk.
CONTAINERS: Final = MappingProxyType({b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt"})
"""Container by the first four bytes of a file."""

FOREIGN_MAGICS: Final = MappingProxyType(
    {
        b"algg": ("a LoRA adapter (ggla), not a model", "Merge it into its base model with the program that made it."),
        b"nsgg": ("the state of a session (ggsn), not a model", "Open the model that the session belongs to."),
        b"ccgg": ("a Falcon model of ggllm.cpp (ggcc)", "Convert the model's original Hugging Face folder."),
    }
)
"""What else started like this: what it is and what to do, by the first four bytes."""

WRITTEN_MAGIC: Final = b"tjgg"
WRITTEN_VERSION: Final = 3
WRITABLE: Final = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Encodings that version 3 holds."""

ALIGNMENT: Final = 32
"""Bytes to whose multiples ggjt pads the start of a tensor's data."""

FILE_TYPES: Final = range(19)
"""Mixtures of types (``ftype``) that existed; GGUF keeps their numbers."""

FIRST_BYTE_TOKEN: Final = 3
BYTE_TOKENS: Final = 256
UNKNOWN_TEXT: Final = " \u2047 ".encode()
ADDED_SCORE: Final = -1000.0
"""Score that converters gave to the tokens of ``added_tokens.json``."""

# The old loaders had no limits. The largest Llama of the time has 80 layers, 8192 columns, 64 heads and 32,016 tokens.
MAX_VOCABULARY: Final = 2**18
MAX_EMBEDDING: Final = 2**17
MAX_HEADS: Final = 2**12
MAX_LAYERS: Final = 512
MAX_TOKEN_BYTES: Final = 2**12
MAX_NAME_BYTES: Final = 96
MAX_PARTS: Final = 64
MAX_MISSING_TOKENS: Final = 64
"""Rows of the embedding table for which the vocabulary may lack an entry."""
