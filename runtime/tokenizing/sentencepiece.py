"""Sentencepiece-style BPE: of all neighbours that are a token together, those with the highest score are joined first.

The tokenizers package has no scores, only an order of merges, and gives other tokens where a token can be divided in several ways;
so this is llama.cpp's rule itself. Characters that end up in no token are spelled in byte tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

from ...errors import TokenizerError
from ...formats.gguf.strings import encode_text
from ...formats.huggingface.tokenizing.vocabulary import TokenType
from .damage import is_damaged, stretches
from .vocabulary import Vocabulary

__all__ = ["SPACE", "ScoreMerger"]

SPACE = "▁"
"""How tokens spell a space (U+2581)."""


class ScoreMerger:
    """Turns text into tokens by the scores of a ``llama`` vocabulary.

    Args:
        vocabulary: its ``kind`` is ``llama``.
        path: the model's, for messages.
    """

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        self._ids = vocabulary.ids
        self._scores = vocabulary.scores
        unknown = vocabulary.roles.get("unk")
        self._unknown = None if unknown is None or vocabulary.types[unknown] is not TokenType.UNKNOWN else unknown
        self._path = path
        self._bytes = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._spells_all = None not in self._bytes
        # where a space follows a character that it follows in no token, nothing can be joined across
        before = {
            pair[0] for text in vocabulary.tokens if SPACE in text[1:] for pair in pairwise(text) if pair[1] == SPACE
        }
        inside = "".join(map(re.escape, sorted(before | {SPACE})))
        self._boundary = re.compile(f"(?<=[^{inside}])(?={SPACE})")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``, as it stands: nothing is put in front, nothing special is sought.

        Lone surrogates stand for bytes that are no UTF-8. Raises TokenizerError where a character has no token, the vocabulary no bytes, and
        no unknown token either.
        """
        known: dict[str, list[int]] = {}
        tokens: list[int] = []
        for stretch in stretches(text.replace(" ", SPACE)):
            if is_damaged(stretch):
                tokens += self._tokens([stretch])
                continue
            for word in self._boundary.split(stretch):
                found = known.get(word)
                if found is None:
                    found = known[word] = self._tokens(self._join(list(word)))
                tokens += found
        return tokens if self._spells_all else self._once(tokens)

    def _join(self, symbols: list[str]) -> list[str]:
        """Return ``symbols`` with neighbours joined for as long as two of them are a token."""
        ids, scores = self._ids, self._scores
        end = len(symbols)
        before, behind = list(range(-1, end - 1)), list(range(1, end + 1))
        queue = []
        for i in range(end - 1):
            text = symbols[i] + symbols[i + 1]
            if text in ids:
                queue.append((-scores[ids[text]], i, text))
        heapify(queue)
        while queue:
            _, left, text = heappop(queue)
            right = behind[left]
            # either may have been joined with another neighbour since; a symbol that went into its left neighbour is empty
            if not symbols[left] or right == end or symbols[left] + symbols[right] != text:
                continue
            symbols[left], symbols[right] = text, ""
            behind[left] = following = behind[right]
            if following < end:
                before[following] = left
                joined = text + symbols[following]
                if joined in ids:
                    heappush(queue, (-scores[ids[joined]], left, joined))
            preceding = before[left]
            if preceding >= 0:
                joined = symbols[preceding] + text
                if joined in ids:
                    heappush(queue, (-scores[ids[joined]], preceding, joined))
        return [symbol for symbol in symbols if symbol]

    def _tokens(self, symbols: Iterable[str]) -> list[int]:
        tokens: list[int] = []
        for symbol in symbols:
            token = self._ids.get(symbol)
            if token is not None:
                tokens.append(token)
                continue
            for byte in encode_text(symbol):
                token = self._bytes[byte]
                if token is None:
                    token = self._ids.get(chr(byte)) if byte < 128 else None
                tokens.append(self._unknown_token(symbol) if token is None else token)
        return tokens

    def _unknown_token(self, symbol: str) -> int:
        if self._unknown is None:
            raise TokenizerError(
                f"the vocabulary has neither a token for {symbol!r}, nor byte tokens, nor an unknown token",
                path=self._path,
                remedy="Use a text that the model's vocabulary covers.",
            )
        return self._unknown

    def _once(self, tokens: list[int]) -> list[int]:
        """Return ``tokens`` with runs of unknown tokens shortened to one, as sentencepiece does."""
        unknown = self._unknown
        return [token for i, token in enumerate(tokens) if token != unknown or i == 0 or tokens[i - 1] != unknown]
