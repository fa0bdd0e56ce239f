"""A compact base: per scored position the most probable tokens, everything else as one symbol, and what it was measured on.

A divergence from it is that over the tokens kept and the rest taken together, a lower bound of the whole one. Log-probabilities are float32: a
float16 errs by up to 4e-3 at -8, more than the divergence of an 8-bit type.

Little-endian: eight bytes ``qconvkl1``; uint32 length of the header; the header, JSON in UTF-8, padded with spaces to a multiple of 8; the tokens,
int32 (windows, context), as the text has them; per scored position a record of float32 log-probability of the right token, float32 log of the
probability of all tokens that are not kept, uint32 (kept) tokens from the most probable down, float32 (kept) log-probabilities; at the end the
SHA-256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import FormatError, TruncatedError, VerificationError
from ...formats.positional import PositionalFile
from .identity import ModelIdentity
from .losses import log_normaliser, row_slices
from .windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["DEFAULT_KEPT", "MAGIC", "CompactBase", "CompactWriter", "TopRows", "encode_top", "open_compact_base"]

MAGIC: Final = b"qconvkl1"
DEFAULT_KEPT: Final = 256
"""Tokens kept per position, 2 KiB of them."""
MAX_HEADER_BYTES: Final = 1 << 20
_PREFIX = struct.Struct("<8sI")
_DIGEST_BYTES = 32
_SLAB = 1 << 22
_REMEDY = "Make it again with --save-base."


@dataclass(frozen=True, eq=False)
class TopRows:
    """What a compact base says about n positions.

    Attributes:
        target: float32 (n,), log-probability of the right token.
        tail: float32 (n,), log of the probability of all tokens not kept; minus infinity where there are none.
        tokens: int64 (n, kept), the most probable first.
        log_probabilities: float32 (n, kept).
    """

    target: Floats
    tail: Floats
    tokens: NDArray[np.int64]
    log_probabilities: Floats


def encode_top(logits: Floats, targets: NDArray[np.integer], kept: int) -> TopRows:
    """Return the ``kept`` most probable tokens of float32 (n, vocabulary) logits; the lower of equal ones comes first."""
    parts = [_top(logits[rows], targets[rows], kept) for rows in row_slices(*logits.shape)]
    return TopRows(
        np.concatenate([it.target for it in parts]),
        np.concatenate([it.tail for it in parts]),
        np.concatenate([it.tokens for it in parts]),
        np.concatenate([it.log_probabilities for it in parts]),
    )


def _top(logits: Floats, targets: NDArray[np.integer], kept: int) -> TopRows:
    index = np.arange(len(logits))[:, None]
    chosen = np.argpartition(-logits, kept - 1, axis=1)[:, :kept] if kept < logits.shape[1] else None
    chosen = np.broadcast_to(np.arange(logits.shape[1]), logits.shape) if chosen is None else np.sort(chosen, axis=1)
    order = np.argsort(-logits[index, chosen], axis=1, kind="stable")
    tokens = np.take_along_axis(chosen, order, axis=1).astype(np.int64)
    # argpartition keeps any of the tokens that share the lowest place; the first place must be the lowest of equals
    tokens[:, 0] = logits.argmax(axis=1)
    normaliser = log_normaliser(logits)
    rest = logits.copy()
    rest[index, tokens] = -np.inf
    top = logits.max(axis=1)
    with np.errstate(divide="ignore"):
        tail = top + np.log(np.exp(rest - top[:, None]).sum(axis=1, dtype=np.float64)) - normaliser
    target = logits[index[:, 0], targets] - normaliser
    values = logits[index, tokens] - normaliser[:, None]
    return TopRows(target.astype(np.float32), tail.astype(np.float32), tokens, values.astype(np.float32))


@dataclass(frozen=True)
class _Header:
    """The JSON header, its keys being these names."""

    version: int
    context: int
    first_scored: int
    stride: int
    bos: int | None
    windows: int
    vocabulary: int
    kept: int
    tokenizer: str
    model: ModelIdentity
    texts: tuple[dict[str, str], ...]


class CompactWriter:
    """Writes a compact base to ``file``: rows in order by :meth:`add`, then :meth:`finish`."""

    def __init__(
        self,
        file: IO[bytes],
        windows: Windows,
        vocabulary: int,
        model: ModelIdentity,
        tokenizer: str,
        texts: Sequence[dict[str, str]],
        kept: int = DEFAULT_KEPT,
    ) -> None:
        self.kept = min(kept, vocabulary)
        self._file = file
        self._digest = hashlib.sha256()
        header = {
            "version": 1,
            "context": windows.context,
            "first_scored": windows.first_scored,
            "stride": windows.stride,
            "bos": windows.bos,
            "windows": len(windows.tokens),
            "vocabulary": vocabulary,
            "kept": self.kept,
            "tokenizer": tokenizer,
            "model": model.to_dict(),
            "texts": list(texts),
        }
        raw = json.dumps(header, ensure_ascii=False).encode()
        raw += b" " * (-(len(raw) + _PREFIX.size) % 8)
        self._write(_PREFIX.pack(MAGIC, len(raw)) + raw)
        self._write(windows.tokens.astype("<i4").tobytes())

    def add(self, logits: Floats, targets: NDArray[np.integer]) -> None:
        """Append the records of float32 (n, vocabulary) logits whose right tokens are ``targets`` (n,)."""
        found = encode_top(logits, targets, self.kept)
        records = np.empty(len(logits), _record(self.kept))
        records["target"], records["tail"] = found.target, found.tail
        records["tokens"], records["log_probabilities"] = found.tokens, found.log_probabilities
        self._write(records.tobytes())

    def finish(self) -> None:
        """Append the digest."""
        self._file.write(self._digest.digest())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


@dataclass(frozen=True)
class CompactBase:
    """An opened compact base.

    Attributes:
        path: the file.
        windows: the tokens, and how they were run.
        vocabulary: number of tokens.
        kept: tokens per position.
        tokenizer: digest of the tokenizer.
        model: the model that it was measured on.
        texts: name and SHA-256 of each text.
        start: offset of the first record.
    """

    path: Path
    windows: Windows
    vocabulary: int
    kept: int
    tokenizer: str
    model: ModelIdentity
    texts: tuple[dict[str, str], ...]
    start: int

    def chunks(self) -> Iterator[TopRows]:
        """Yield the rows of each window."""
        dtype, scored = _record(self.kept), self.windows.scored_per_window
        file = PositionalFile(self.path)
        try:
            for window in range(len(self.windows.tokens)):
                raw = file.read(self.start + window * scored * dtype.itemsize, scored * dtype.itemsize)
                records = np.frombuffer(raw, dtype)
                yield TopRows(
                    records["target"].astype(np.float32),
                    records["tail"].astype(np.float32),
                    records["tokens"].astype(np.int64),
                    records["log_probabilities"].astype(np.float32),
                )
        finally:
            file.close()


def open_compact_base(path: Path) -> CompactBase:
    """Read the header and the tokens, and compare every byte with the digest.

    Raises FormatError, TruncatedError or VerificationError for a file that is not as it was written.
    """
    file = PositionalFile(path)
    try:
        return _open(file)
    finally:
        file.close()


def _open(file: PositionalFile) -> CompactBase:
    path = file.path
    if file.size < _PREFIX.size:
        raise TruncatedError("it is too short for a compact base", path=path, remedy=_REMEDY)
    magic, length = _PREFIX.unpack(file.read(0, _PREFIX.size))
    if magic != MAGIC:
        raise FormatError("it is no compact base", path=path, remedy="Pass one by --save-base.")
    if length > min(MAX_HEADER_BYTES, file.size - _PREFIX.size):
        raise FormatError(f"a header of {length:,} bytes is impossible", path=path, offset=8, remedy=_REMEDY)
    header = _parse(file.read(_PREFIX.size, length), path)
    tokens_at = _PREFIX.size + length
    start = tokens_at + 4 * header.windows * header.context
    scored = header.windows * (header.context - 1 - header.first_scored)
    end = start + scored * _record_bytes(header.kept)
    if file.size != end + _DIGEST_BYTES:
        kind = TruncatedError if file.size < end + _DIGEST_BYTES else FormatError
        raise kind(f"it should have {end + _DIGEST_BYTES:,} bytes, but has {file.size:,}", path=path, remedy=_REMEDY)
    digest = hashlib.sha256()
    for offset in range(0, end, _SLAB):
        digest.update(file.read(offset, min(_SLAB, end - offset)))
    if digest.digest() != file.read(end, _DIGEST_BYTES):
        raise VerificationError("bytes of the base differ from their digest", path=path, remedy=_REMEDY)
    tokens = np.frombuffer(file.read(tokens_at, start - tokens_at), "<i4").astype(np.int32)
    windows = Windows(tokens.reshape(header.windows, header.context), header.first_scored, header.bos, header.stride)
    return CompactBase(
        path, windows, header.vocabulary, header.kept, header.tokenizer, header.model, header.texts, start
    )


def _parse(raw: bytes, path: Path) -> _Header:
    """Return the header; raises FormatError for anything but what :class:`CompactWriter` writes."""
    try:
        values: dict[str, Any] = json.loads(raw)
        model = values.pop("model")
        header = _Header(
            **values | {"texts": tuple(values["texts"])},
            model=ModelIdentity(**model | {"sample": tuple(map(float, model["sample"]))}),
        )
        numbers = (header.context, header.stride, header.windows, header.vocabulary, header.kept)
        sound = (
            header.version == 1
            and all(isinstance(it, int) and 0 < it < 1 << 31 for it in numbers)
            and isinstance(header.first_scored, int)
            and 0 <= header.first_scored < header.context - 1
            and (header.bos is None or isinstance(header.bos, int))
            and header.kept <= header.vocabulary
            and isinstance(header.tokenizer, str)
            and all(isinstance(text, dict) for text in header.texts)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise FormatError("its header is not one of this version", path=path, offset=_PREFIX.size, remedy=_REMEDY)
    return header


def _record_bytes(kept: int) -> int:
    """Return the size of a record, of those too that NumPy could not describe."""
    return 8 + 8 * kept


def _record(kept: int) -> np.dtype[np.void]:
    return np.dtype(
        [("target", "<f4"), ("tail", "<f4"), ("tokens", "<u4", (kept,)), ("log_probabilities", "<f4", (kept,))]
    )
