"""A GGUF vocabulary on its way back: tokens by id, which of them are the base vocabulary, and which are added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from ...getters import get_integer, get_numbers, get_strings
from ...metadata import Field, ValueType
from ..tokenizing.special import special_token_key
from ..tokenizing.vocabulary import TokenType
from .source import Recorded

__all__ = ["Tokens", "added_tokens", "read_tokens"]

_BASE = frozenset({TokenType.NORMAL, TokenType.UNKNOWN, TokenType.BYTE})
_ADDED = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED})


@dataclass(frozen=True)
class Tokens:
    """A vocabulary.

    Attributes:
        texts: text of each token.
        types: type of each token.
        scores: a score per token; empty where there are none.
        ids: ids by role (``bos``, ``eos``, ``unk``, ``sep``, ``pad``, ``mask``).
        base: length of the base vocabulary: tokens with a smaller id are in it, the others are added.
    """

    texts: Sequence[str]
    types: Sequence[TokenType]
    scores: Sequence[float]
    ids: Mapping[str, int]
    base: int

    def text(self, role: str) -> str | None:
        """Return the text of a special token, if there is one."""
        token = self.ids.get(role)
        return self.texts[token] if token is not None and 0 <= token < len(self.texts) else None


def read_tokens(metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> Tokens | None:
    """Return the vocabulary of a model, None where it has none; raises TokenizerError where lists disagree, FormatError for wrong types."""
    texts = get_strings(metadata, "tokenizer.ggml.tokens", path)
    if texts is None or not len(texts):
        return None
    kinds = get_numbers(metadata, "tokenizer.ggml.token_type", (ValueType.INT32, ValueType.UINT32), path)
    scores = get_numbers(metadata, "tokenizer.ggml.scores", (ValueType.FLOAT32,), path)
    if (kinds is not None and len(kinds) != len(texts)) or (scores is not None and len(scores) != len(texts)):
        raise TokenizerError("tokens, types and scores are of different numbers", path=path)
    try:
        types = [TokenType(int(kind)) for kind in kinds] if kinds is not None else [TokenType.NORMAL] * len(texts)
    except ValueError as error:
        raise TokenizerError(f"a token has an unknown type ({error})", path=path) from error
    ids = {}
    for role in ("bos", "eos", "unk", "sep", "pad", "mask"):
        token = get_integer(metadata, special_token_key(role), path)
        if token is not None and 0 <= token < len(texts):
            ids[role] = token
    size = recorded.tokenizer.get("vocabulary_size")
    base = size if isinstance(size, int) and 0 < size <= len(texts) else _base(types)
    return Tokens(tuple(texts), types, scores.tolist() if scores is not None else (), ids, base)


def _base(types: Sequence[TokenType]) -> int:
    """Return the least base vocabulary that leaves no gap: libraries number added tokens on from its end."""
    base = max((token + 1 for token, kind in enumerate(types) if kind in _BASE), default=0)
    last = max((token for token, kind in enumerate(types) if kind in _ADDED), default=-1)
    gaps = [token for token in range(base, last) if types[token] not in _ADDED]
    return max(base, gaps[-1] + 1) if gaps else base


def added_tokens(tokens: Tokens, recorded: Recorded) -> list[dict[str, Any]]:
    """Return the ``added_tokens`` of a ``tokenizer.json``, by id."""
    if recorded.added is not None:
        known = sorted(recorded.added.items())
        return [_entry(token, odd, tokens) for token, odd in known if token < len(tokens.texts) or "content" in odd]
    return [
        _entry(token, {} if kind is not TokenType.USER_DEFINED else {"special": False}, tokens)
        for token, kind in enumerate(tokens.types)
        if kind in _ADDED or (kind is TokenType.UNKNOWN and tokens.scores)
    ]


def _entry(token: int, odd: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    return {
        "id": token,
        "content": odd.get("content", tokens.texts[token] if token < len(tokens.texts) else ""),
        "single_word": odd.get("single_word", False),
        "lstrip": odd.get("lstrip", False),
        "rstrip": odd.get("rstrip", False),
        "normalized": odd.get("normalized", False),
        "special": odd.get("special", True),
    }
