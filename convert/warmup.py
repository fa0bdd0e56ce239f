"""Run every kernel of an encoding once, which compiles it and fills the user's cache."""

from __future__ import annotations

import numpy as np

from ..quantizers.base import Encoding, ImportanceUse

__all__ = ["compile_codec"]


def compile_codec(encoding: Encoding) -> None:
    """Encode and decode two blocks, with and without importance where the encoder takes either."""
    rows = np.linspace(-1, 1, 2 * encoding.block_size, dtype=np.float32).reshape(1, -1)
    codec = encoding.codec()
    encoded = np.zeros((1, encoding.row_bytes(rows.shape[1])), np.uint8)
    if codec.encode is not None:
        importance = np.ones(rows.shape[1], np.float32)
        if encoding.importance is not ImportanceUse.UNUSED:
            encoded = encoding.encode(rows, importance)
        if encoding.importance is not ImportanceUse.REQUIRED:
            encoded = encoding.encode(rows)
    encoding.decode(encoded)
