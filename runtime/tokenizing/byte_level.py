"""Byte-level BPE by the tokenizers package: text is cut by a pre-tokenizer, spelled in GPT-2's byte alphabet, and merged."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TokenizerError
from ...formats.gguf.strings import encode_text
from ...formats.pretokenizers import PreTokenizer, find_pre_tokenizer, pre_tokenizer_names, to_tokenizer_json
from .damage import is_damaged, readable
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

__all__ = ["ByteLevelMerger", "from_byte_alphabet"]

# stands for bytes that are no token, which are left out of the result, so that their neighbours are not merged; no word has spaces
_PLACEHOLDER = "(no token)"


class ByteLevelMerger:
    """Turns text into tokens by the merges of a ``gpt2`` vocabulary.

    Args:
        vocabulary: its ``kind`` is ``gpt2``.
        path: the model's, for messages.

    Raises TokenizerError where the pre-tokenizer is unknown or the merges do not fit the tokens.
    """

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        self._tokenizer = _build(vocabulary, _known_pre_tokenizer(vocabulary.pre, path), path)
        self._placeholder = self._tokenizer.token_to_id(_PLACEHOLDER)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``, as it stands: nothing is put in front, nothing special is sought.

        Lone surrogates, which stand for bytes that are no UTF-8, become U+FFFD, as in llama.cpp.
        """
        tokens = self._tokenizer.encode(readable(text), add_special_tokens=False).ids
        return tokens if self._placeholder is None else [token for token in tokens if token != self._placeholder]


def from_byte_alphabet(text: str) -> bytes:
    """Return the bytes that ``text`` spells in GPT-2's byte alphabet; characters outside it stand for themselves.

    >>> from_byte_alphabet("ĠdÃ©jÃł").decode()
    ' déjà'
    """
    alphabet = _byte_alphabet()
    try:
        return bytes(map(alphabet.__getitem__, text))
    except KeyError:
        return b"".join(bytes([alphabet[a]]) if a in alphabet else encode_text(a) for a in text)


@cache
def _byte_alphabet() -> dict[str, int]:
    """The byte that each of 256 printable characters stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _known_pre_tokenizer(name: str, path: Path) -> PreTokenizer:
    known = find_pre_tokenizer(name)
    if known is None:
        nearest = difflib.get_close_matches(name, pre_tokenizer_names(), n=3)
        hint = f" (names like it: {', '.join(nearest)})" if nearest else ""
        raise TokenizerError(
            f"its pre-tokenizer {name!r} is unknown{hint}",
            path=path,
            remedy="Set tokenizer.ggml.pre to the name of a pre-tokenizer that cuts text as the model's does.",
        )
    return known


def _build(vocabulary: Vocabulary, known: PreTokenizer, path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    # the first of two equal merges counts
    merges = dict.fromkeys(vocabulary.merges)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    ids = dict(vocabulary.ids)
    _check_unicode(vocabulary.tokens, path)
    complete = all(character in ids for character in _byte_alphabet())
    if not complete:
        ids[_PLACEHOLDER] = len(ids)
    skeleton: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": to_tokenizer_json(known.stages),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    try:
        tokenizer = Tokenizer.from_str(json.dumps(skeleton))
        tokenizer.model = models.BPE(
            vocab=ids,
            merges=pairs,
            ignore_merges=known.ignore_merges,
            unk_token=None if complete else _PLACEHOLDER,
        )
    except Exception as error:  # the package raises no narrower class
        raise TokenizerError(
            f"the merges do not fit the tokens: {error}",
            path=path,
            remedy="Convert the model again from its original files.",
        ) from error
    return tokenizer


def _check_unicode(tokens: Sequence[str], path: Path) -> None:
    for i, token in enumerate(tokens):
        if is_damaged(token):
            raise TokenizerError(
                f"token {i} {token!r} is no valid UTF-8",
                path=path,
                remedy="Convert the model again from its original files.",
            )
