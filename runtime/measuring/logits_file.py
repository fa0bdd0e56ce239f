"""llama.cpp's base file of log-probabilities (``--kl-divergence-base``), read and written exactly.

Little-endian: the eight bytes ``_logits_``; int32 context c, vocabulary V and number of chunks; the tokens, int32 (chunks, c), as the text has
them; then per chunk ``c - 1 - c // 2`` records, one for each scored position, of ``2 * ((V + 1) // 2) + 4`` uint16 values: float32 scale and float32
lowest log-probability, V codes, and one of padding where V is odd. A log-probability is ``scale * code + lowest``; what is more than 16 below a
position's best is raised to it. The file has neither version nor checksum, and names neither model nor text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from ...errors import FormatError, TruncatedError
from ...formats.positional import PositionalFile
from .losses import log_normaliser, row_slices
from .windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["MAGIC", "LogitsFile", "encode_records", "file_size", "open_logits_file", "start_logits_file"]

MAGIC: Final = b"_logits_"
_HEADER = struct.Struct("<8siii")
_RANGE = np.float32(16)  # nats below the best logit that codes cover
_STEPS = np.float32(65535)
_SCALE_MAX = np.float32(1e6)  # of both numbers of a position; real ones are below 16 / 65535, and above -50


def record_values(vocabulary: int) -> int:
    """Return the number of uint16 values of one scored position."""
    return 2 * ((vocabulary + 1) // 2) + 4


def file_size(context: int, vocabulary: int, chunks: int) -> int:
    """Return the bytes of a file."""
    return _HEADER.size + 4 * chunks * context + 2 * chunks * (context - 1 - context // 2) * record_values(vocabulary)


def start_logits_file(file: IO[bytes], windows: Windows, vocabulary: int) -> None:
    """Write everything before the records; they follow, by :func:`encode_records`, in order."""
    file.write(_HEADER.pack(MAGIC, windows.context, vocabulary, len(windows.tokens)))
    file.write(windows.tokens.astype("<i4").tobytes())


def encode_records(logits: Floats) -> bytes:
    """Return the records of float32 (n, vocabulary) logits."""
    return b"".join(_encode(logits[rows]) for rows in row_slices(*logits.shape))


def _encode(logits: Floats) -> bytes:
    count, vocabulary = logits.shape
    top = logits.max(axis=1)
    low = np.maximum(logits.min(axis=1), top - _RANGE)
    scale = (top - low) / _STEPS
    steps = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(np.maximum(logits - low[:, None], 0) * steps[:, None])
    records = np.zeros((count, record_values(vocabulary)), "<u2")
    head = np.stack([scale, low - log_normaliser(logits)], axis=1).astype("<f4")
    records[:, :4] = head.view("<u2")
    records[:, 4 : 4 + vocabulary] = np.minimum(codes, _STEPS)
    return records.tobytes()


@dataclass(frozen=True)
class LogitsFile:
    """An opened file.

    Attributes:
        path: the file.
        windows: the tokens; the file does not say whether BOS stood in their first place.
        vocabulary: number of tokens.
    """

    path: Path
    windows: Windows
    vocabulary: int

    def chunks(self) -> Iterator[Floats]:
        """Yield float32 (scored positions, vocabulary) per chunk: the log-probabilities."""
        record = 2 * record_values(self.vocabulary)
        scored = self.windows.scored_per_window
        start = _HEADER.size + 4 * self.windows.tokens.size
        file = PositionalFile(self.path)
        try:
            for chunk in range(len(self.windows.tokens)):
                raw = file.read(start + chunk * scored * record, scored * record)
                yield self._decode(np.frombuffer(raw, "<u2").reshape(scored, -1), chunk)
        finally:
            file.close()

    def _decode(self, records: NDArray[np.uint16], chunk: int) -> Floats:
        head = np.ascontiguousarray(records[:, :4]).view("<f4").astype(np.float32)
        if not (np.abs(head) <= _SCALE_MAX).all() or (head[:, 0] < 0).any():  # NaN is not less either
            raise FormatError(
                f"a position of chunk {chunk} has an impossible scale", path=self.path, remedy="Make the file again."
            )
        return np.asarray(records[:, 4 : 4 + self.vocabulary] * head[:, :1] + head[:, 1:], np.float32)


def open_logits_file(path: Path) -> LogitsFile:
    """Read the header and the tokens; raises FormatError or TruncatedError for a file that is not exactly what its header says."""
    file = PositionalFile(path)
    try:
        if file.size < _HEADER.size:
            raise TruncatedError("it is too short for a file of log-probabilities", path=path)
        magic, context, vocabulary, chunks = _HEADER.unpack(file.read(0, _HEADER.size))
        if magic != MAGIC:
            raise FormatError("it is no file of log-probabilities", path=path, remedy="Pass one by --save-logits.")
        if context < 2 or vocabulary < 1 or chunks < 1:
            raise FormatError(f"context {context}, vocabulary {vocabulary}, {chunks} chunks are impossible", path=path)
        expected = file_size(context, vocabulary, chunks)
        if file.size != expected:
            kind = TruncatedError if file.size < expected else FormatError
            raise kind(
                f"{chunks} chunks of {context} tokens over {vocabulary} take {expected:,} bytes, but it has {file.size:,}",
                path=path,
                remedy="Its making was interrupted; make it again." if file.size < expected else "Make it again.",
            )
        raw = file.read(_HEADER.size, 4 * chunks * context)
    finally:
        file.close()
    tokens = np.frombuffer(raw, "<i4").astype(np.int32).reshape(chunks, context)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise FormatError("a token lies outside the vocabulary", path=path, remedy="Make the file again.")
    return LogitsFile(path, Windows(tokens, context // 2, None, context), vocabulary)
