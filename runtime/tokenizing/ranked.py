"""Gemma 4's BPE: characters are joined by the ranks of merges, line by line, spaces being ``▁``; what has no token is spelled in byte tokens.

A run of newlines that is a token is that token, whatever the merges say, as in llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TokenizerError
from ...formats.gguf.strings import encode_text
from .damage import readable
from .sentencepiece import SPACE
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

__all__ = ["RankMerger"]

_RUNS = re.compile(r"\n+|[^\n]+")


class RankMerger:
    """Turns text into tokens by the merges of a ``gemma4`` vocabulary.

    Args:
        vocabulary: its ``kind`` is ``gemma4``.
        path: the model's, for messages.

    Raises TokenizerError where merges do not fit the tokens.
    """

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        self._ids = vocabulary.ids
        self._tokenizer = _build(vocabulary, path)
        self._bytes = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``, as it stands: nothing is put in front, nothing special is sought.

        Lone surrogates, which stand for bytes that are no UTF-8, become U+FFFD, as in llama.cpp. Bytes that are no token are left out.
        """
        found: list[int] = []
        for run in _RUNS.findall(readable(text).replace(" ", SPACE)):
            whole = self._ids.get(run) if run[0] == "\n" else None
            found += self._pieces(run) if whole is None else [whole]
        return found

    def _pieces(self, run: str) -> Iterator[int]:
        for token, (start, stop) in self._merged(run):
            if token is not None:
                yield token
                continue
            yield from (byte for each in encode_text(run[start:stop]) if (byte := self._bytes[each]) is not None)

    def _merged(self, run: str) -> Iterator[tuple[int | None, tuple[int, int]]]:
        """Yield the tokens of a run and their places; None for a character that has none."""
        encoded = self._tokenizer.encode(run, add_special_tokens=False)
        for token, place in zip(encoded.ids, encoded.offsets, strict=True):
            yield None if token == len(self._ids) else token, place


def _build(vocabulary: Vocabulary, path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    merges = dict.fromkeys(vocabulary.merges)  # the first of two equal ones counts
    cuts = [(merge, merge.find(" ", 1)) for merge in merges]
    unknown = "\0no token"
    skeleton: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    try:
        tokenizer = Tokenizer.from_str(json.dumps(skeleton))
        tokenizer.model = models.BPE(
            vocab={**vocabulary.ids, unknown: len(vocabulary.ids)},
            merges=[(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts if cut > 0],
            unk_token=unknown,
            fuse_unk=False,
        )
    except Exception as error:  # the package raises no narrower class
        raise TokenizerError(
            f"the merges do not fit the tokens: {error}",
            path=path,
            remedy="Convert the model again from its original files.",
        ) from error
    return tokenizer
