"""Numbers of the GGUF format, and the caps within which the reader believes a header."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ..metadata import ValueType

__all__ = [
    "ALIGNMENT_KEY",
    "DEFAULT_ALIGNMENT",
    "DIGEST_ALGORITHM",
    "DIGEST_ALGORITHM_KEY",
    "DIGEST_HEADER_KEY",
    "DIGEST_PREFIX",
    "DIGEST_TENSORS_KEY",
    "DTYPES",
    "HEX_DIGITS",
    "LONGEST_WRITTEN_NAME",
    "MAGIC",
    "MAGIC_DURING_EDIT",
    "MAX_ALIGNMENT",
    "MAX_ARRAY_LENGTH",
    "MAX_BLOCK_COUNT",
    "MAX_DIMENSIONS",
    "MAX_ELEMENTS",
    "MAX_KEYS",
    "MAX_KEY_BYTES",
    "MAX_NAME_BYTES",
    "MAX_PARTS",
    "MAX_STRING_BYTES",
    "MAX_TENSORS",
    "PAD_KEY",
    "REMOVED_TYPES",
    "SCALAR_CODES",
    "SPLIT_COUNT_KEY",
    "SPLIT_NO_KEY",
    "SPLIT_PREFIX",
    "SPLIT_TENSORS_KEY",
    "WRITTEN_VERSION",
    "padded",
]

MAGIC: Final = b"GGUF"
MAGIC_DURING_EDIT: Final = b"GGU!"
"""What a file begins with while its header is written over (:mod:`.edit`): no reader takes it for whole."""
WRITTEN_VERSION: Final = 3
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = "general.alignment"

# llama.cpp's reader allows 2^30 elements, strings of 1 GiB and any power of two as alignment. Real files have some 60 keys,
# 50,000 tensors (hundreds of unstacked experts in each of 61 layers), templates of 30 kB and vocabularies of 300,000 tokens.
MAX_KEYS: Final = 2**16
MAX_TENSORS: Final = 2**17
MAX_KEY_BYTES: Final = 2**16 - 1
MAX_NAME_BYTES: Final = 1024
MAX_STRING_BYTES: Final = 2**24
MAX_ARRAY_LENGTH: Final = 2**30
MAX_ALIGNMENT: Final = 2**16
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = 2**63 - 1
MAX_PARTS: Final = 1000
MAX_BLOCK_COUNT: Final = 2**14

LONGEST_WRITTEN_NAME: Final = 63
"""Bytes of a tensor name that llama.cpp accepts."""

SPLIT_PREFIX: Final = "split."
SPLIT_NO_KEY: Final = "split.no"
SPLIT_COUNT_KEY: Final = "split.count"
SPLIT_TENSORS_KEY: Final = "split.tensors.count"

DIGEST_PREFIX: Final = "qconv.digest."
DIGEST_ALGORITHM_KEY: Final = "qconv.digest.algorithm"
DIGEST_TENSORS_KEY: Final = "qconv.digest.tensors"
DIGEST_HEADER_KEY: Final = "qconv.digest.header"
DIGEST_ALGORITHM: Final = "sha256"
HEX_DIGITS: Final = 64
"""Characters of a digest."""
PAD_KEY: Final = "qconv.pad"
"""A string without meaning, which keeps the data where they are when the metadata before them become shorter."""

DTYPES: Final = MappingProxyType(
    {
        ValueType.UINT8: "u1",
        ValueType.INT8: "i1",
        ValueType.UINT16: "u2",
        ValueType.INT16: "i2",
        ValueType.UINT32: "u4",
        ValueType.INT32: "i4",
        ValueType.FLOAT32: "f4",
        ValueType.BOOL: "u1",
        ValueType.UINT64: "u8",
        ValueType.INT64: "i8",
        ValueType.FLOAT64: "f8",
    }
)
"""NumPy's name, without byte order, of each value type of fixed size as it lies in the file."""

SCALAR_CODES: Final = MappingProxyType(
    {
        ValueType.UINT8: "B",
        ValueType.INT8: "b",
        ValueType.UINT16: "H",
        ValueType.INT16: "h",
        ValueType.UINT32: "I",
        ValueType.INT32: "i",
        ValueType.FLOAT32: "f",
        ValueType.BOOL: "?",
        ValueType.UINT64: "Q",
        ValueType.INT64: "q",
        ValueType.FLOAT64: "d",
    }
)
"""The struct module's letter of each value type of fixed size."""

REMOVED_TYPES: Final = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)
"""Tensor types that ggml once had and gave up, by number."""


def padded(count: int, alignment: int) -> int:
    """Return ``count`` rounded up to a multiple of ``alignment``."""
    return -(-count // alignment) * alignment
