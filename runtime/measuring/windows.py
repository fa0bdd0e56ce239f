"""Which tokens are run together, and which of them are scored.

*Standard mode* is llama.cpp's: the text's tokens are cut into chunks of one context each, the remainder is dropped, no context crosses a
chunk's edge, and the second half of each chunk is scored. *Strided mode* moves a window of one context by ``stride`` tokens and scores
the last ``stride`` tokens of each, so that every scored token has at least ``context - stride`` tokens before it and none is scored twice.
In both, a vocabulary that begins texts with BOS has the first token of every window replaced by it, before evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Windows", "cut_standard", "cut_strided", "join", "token_digest"]

_LEAST = 8  # tokens of a context


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of equal length over one or several texts.

    Attributes:
        tokens: int32 (windows, context), as the text has them.
        first_scored: logits at positions ``first_scored`` to ``context - 2`` are scored, each by the token after it.
        bos: the token that stands in the first place during evaluation, or None where the text's own stays.
        stride: tokens from one window's start to the next; equal to the context in standard mode.
    """

    tokens: NDArray[np.int32]
    first_scored: int
    bos: int | None
    stride: int

    @property
    def context(self) -> int:
        """Tokens per window."""
        return int(self.tokens.shape[1])

    @property
    def scored_per_window(self) -> int:
        """Predictions that count, per window."""
        return self.context - 1 - self.first_scored

    @property
    def mode(self) -> str:
        """``standard`` or ``strided``."""
        return "standard" if self.stride == self.context else "strided"

    @property
    def wanted(self) -> slice:
        """The positions whose logits are needed."""
        return slice(self.first_scored, self.context - 1)

    @property
    def evaluated(self) -> NDArray[np.int32]:
        """Return int32 (windows, context): the tokens as they are run, BOS in its place."""
        if self.bos is None:
            return self.tokens
        tokens = self.tokens.copy()
        tokens[:, 0] = self.bos
        return tokens

    @property
    def targets(self) -> NDArray[np.int32]:
        """Return int32 (windows, scored_per_window): the tokens that the scored logits should predict."""
        return self.tokens[:, self.first_scored + 1 :]


def cut_standard(
    tokens: Sequence[int] | NDArray[np.int32], context: int, bos: int | None, limit: int | None = None
) -> Windows:
    """Cut into chunks as llama.cpp does; ``limit`` keeps the first so many.

    Raises UsageError for a context below 8 and for fewer tokens than two contexts.
    """
    _check(tokens, context)
    count = len(tokens) // context
    count = count if limit is None else min(count, limit)
    chunks = np.asarray(tokens[: count * context], np.int32).reshape(count, context)
    return Windows(chunks, context // 2, bos, context)


def cut_strided(
    tokens: Sequence[int] | NDArray[np.int32], context: int, stride: int, bos: int | None, limit: int | None = None
) -> Windows:
    """Cut into windows that overlap; only whole windows are used.

    Raises UsageError for a stride that is not between 1 and ``context - 1``, and as :func:`cut_standard`.
    """
    _check(tokens, context)
    if not 0 < stride < context:
        raise UsageError(
            f"a stride of {stride} does not fit a context of {context}",
            remedy=f"Choose one from 1 to {context - 1}; {context // 2} scores half of each window.",
        )
    views = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.int32), context)[::stride][:limit]
    return Windows(np.ascontiguousarray(views), context - 1 - stride, bos, stride)


def join(parts: Sequence[Windows]) -> Windows:
    """Return the windows of several texts as one; they must be cut alike."""
    first = parts[0]
    if any((it.context, it.first_scored, it.bos, it.stride) != _kind(first) for it in parts):
        raise UsageError("windows that are cut differently cannot be joined")
    return Windows(np.concatenate([it.tokens for it in parts]), first.first_scored, first.bos, first.stride)


def token_digest(windows: Windows) -> str:
    """Return the SHA-256, hexadecimal, of all windows' tokens as little-endian int32."""
    return hashlib.sha256(windows.tokens.astype("<i4").tobytes()).hexdigest()


def _kind(windows: Windows) -> tuple[int, int, int | None, int]:
    return windows.context, windows.first_scored, windows.bos, windows.stride


def _check(tokens: Sequence[int] | NDArray[np.int32], context: int) -> None:
    if context < _LEAST:
        raise UsageError(
            f"a context of {context} tokens is too short to score anything", remedy=f"Use at least {_LEAST}."
        )
    if len(tokens) < 2 * context:
        raise UsageError(
            f"the text has {len(tokens)} tokens, but at least two contexts ({2 * context}) are needed",
            remedy="Use a longer text"
            + (f", or a context of at most {len(tokens) // 2}." if len(tokens) >= 2 * _LEAST else "."),
        )
