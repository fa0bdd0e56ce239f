"""Vocabularies: the texts and scores of a ggjt file to GGUF's tokens, scores and types, and back.

==================  ===============================  ===========================================================
id                  text in a ggjt file              in GGUF
==================  ===============================  ===========================================================
0, 1, 2             " ⁇ ", nothing, nothing          ``<unk>`` (unknown), ``<s>`` and ``</s>`` (control)
3 to 258            one byte                         ``<0xHH>`` (byte), where all 256 follow each other
others              piece with spaces                piece with ``▁`` (normal)
others              nothing                          ``[EMPTY_i]``, as llama.cpp calls them (control)
last, score -1000   text of an added token           the same text (user defined)
==================  ===============================  ===========================================================

Texts are decoded when somebody looks. What is no UTF-8 becomes lone surrogates, as in the GGUF reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, final, overload

import numpy as np

from ...errors import OutputError
from ..getters import get_integer, get_numbers, get_string, get_strings
from ..gguf.strings import decode_text, encode_text
from ..metadata import Field, ValueType, boolean, numbers, string, uint32
from . import constants as c

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .header import Header, PackedTexts

__all__ = ["LegacyTokens", "read_vocabulary", "serialize_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_LENGTH, _SCORE = Struct("<I"), Struct("<f")
_SPECIAL = ("<unk>", "<s>", "</s>")
_SPACE, _SPACE_MARK = " ", "\u2581"
_REPLACEMENT = "\ufffd".encode()


@final
class LegacyTokens(Sequence[str]):
    """GGUF's texts of a legacy vocabulary. ``types`` has a GGUF token type per token; those without a text are at the end."""

    __slots__ = ("_texts", "_types")

    def __init__(self, texts: PackedTexts, types: NDArray[np.int32]) -> None:
        self._texts = texts
        self._types = types

    def __len__(self) -> int:
        return len(self._types)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(map(self._token, range(len(self))[index]))
        return self._token(range(len(self))[index])

    def __repr__(self) -> str:
        return f"<{len(self)} tokens>"

    def _token(self, index: int) -> str:
        if index < len(_SPECIAL):
            return _SPECIAL[index]
        kind = self._types[index]
        if kind == BYTE:
            return f"<0x{index - c.FIRST_BYTE_TOKEN:02X}>"
        if index >= len(self._texts):
            return f"<pad{index - len(self._texts) or ''}>"
        if kind == CONTROL:
            return f"[EMPTY_{index}]"
        text = decode_text(self._texts.text(index))
        return text if kind == USER_DEFINED else text.replace(_SPACE, _SPACE_MARK)


def read_vocabulary(header: Header) -> tuple[dict[str, Field], tuple[str, ...]]:
    """Return ``tokenizer.*`` metadata and notes for the vocabulary of ``header``."""
    texts, count = header.texts, header.numbers.vocabulary
    types = np.full(count, NORMAL, np.int32)
    sizes = np.diff(np.frombuffer(texts.ends, np.uint64), prepend=np.uint64(0))
    types[: len(texts)][sizes == 0] = CONTROL
    types[len(texts) :] = CONTROL
    types[: len(_SPECIAL)] = (UNKNOWN, CONTROL, CONTROL)[:count]
    has_bytes = _has_byte_tokens(texts)
    first = c.FIRST_BYTE_TOKEN + (c.BYTE_TOKENS if has_bytes else 0)
    if has_bytes:
        types[c.FIRST_BYTE_TOKEN : first] = BYTE
    notes: list[str] = []
    scores = np.zeros(count, np.float32)
    if header.scores:
        scores[: len(texts)] = header.scores
        added = types[_first_added(scores[: len(texts)], first) : len(texts)]
        added[added == NORMAL] = USER_DEFINED
    else:
        scores[first:] = -np.arange(max(0, count - first), dtype=np.float32)
        notes.append("files of this kind hold no token scores; tokens are ranked by number, as in Llama 1 and 2")
    if len(texts) < count:
        notes.append(f"the vocabulary has {len(texts)} of {count} tokens; the others are called <pad>")
    fields = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": Field(ValueType.ARRAY, LegacyTokens(texts, types), ValueType.STRING),
        "tokenizer.ggml.scores": numbers(scores, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": numbers(types, ValueType.INT32),
    }
    for name, token in (("bos", 1), ("eos", 2), ("unknown", 0)):
        if token < count:
            fields[f"tokenizer.ggml.{name}_token_id"] = uint32(token)
    fields["tokenizer.ggml.add_bos_token"] = boolean(True)
    fields["tokenizer.ggml.add_eos_token"] = boolean(False)
    return fields, tuple(notes)


def _has_byte_tokens(texts: PackedTexts) -> bool:
    """Whether the 256 bytes have tokens: texts of one byte in order, or, where the first converters decoded them, a replacement character."""
    if len(texts) < c.FIRST_BYTE_TOKEN + c.BYTE_TOKENS:
        return False
    alike = sum(texts.text(c.FIRST_BYTE_TOKEN + byte) in (bytes([byte]), _REPLACEMENT) for byte in range(c.BYTE_TOKENS))
    return 2 * alike > c.BYTE_TOKENS


def _first_added(scores: NDArray[np.float32], first: int) -> int:
    """Return where the added tokens at the end begin; a piece that is ranked 1000th has their score and is none of them."""
    others = np.flatnonzero(scores[first:] != c.ADDED_SCORE)
    start = first + (int(others[-1]) + 1 if others.size else 0)
    if first < start < len(scores) and scores[start - 1] == c.ADDED_SCORE + 1:
        start += 1
    return start


def serialize_vocabulary(metadata: Mapping[str, Field]) -> tuple[int, bytes]:
    """Return the number of tokens and the vocabulary section of a ggjt file.

    Raises OutputError for a tokenizer that such a file cannot hold.
    """
    model = get_string(metadata, "tokenizer.ggml.model")
    tokens = get_strings(metadata, "tokenizer.ggml.tokens")
    scores = get_numbers(metadata, "tokenizer.ggml.scores", (ValueType.FLOAT32,))
    types = get_numbers(metadata, "tokenizer.ggml.token_type", (ValueType.INT32, ValueType.UINT32))
    if model != "llama" or tokens is None or scores is None or types is None:
        raise OutputError(
            f"ggjt holds sentencepiece vocabularies with scores; the model's tokenizer is {model or 'absent'}",
            remedy="Write GGUF instead.",
        )
    if not len(tokens) == len(scores) == len(types):
        raise OutputError(f"{len(tokens)} tokens have {len(scores)} scores and {len(types)} types")
    for token, (role, default) in enumerate((("unknown", 0), ("bos", 1), ("eos", 2))):
        found = get_integer(metadata, f"tokenizer.ggml.{role}_token_id")
        if found not in (None, default):
            raise OutputError(f"readers of ggjt take token {token} for {role}; in this model it is token {found}")
    kinds = types.tolist()
    _check_bytes(tokens, kinds)
    pieces: list[bytes] = []
    for index, (token_text, score, kind) in enumerate(zip(tokens, scores.tolist(), kinds, strict=True)):
        text = _stored_text(index, token_text, kind)
        pieces += (_LENGTH.pack(len(text)), text, _SCORE.pack(c.ADDED_SCORE if kind == USER_DEFINED else score))
    return len(tokens), b"".join(pieces)


def _check_bytes(tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Readers of ggjt find the token of a byte at its value plus three, whatever the vocabulary says."""
    for index, kind in enumerate(kinds):
        byte = index - c.FIRST_BYTE_TOKEN
        if kind == BYTE and not (0 <= byte < c.BYTE_TOKENS and tokens[index].upper() == f"<0X{byte:02X}>"):
            raise OutputError(
                f"token {index} is the byte {tokens[index]}; ggjt keeps bytes in order from token {c.FIRST_BYTE_TOKEN} on"
            )


def _stored_text(index: int, text: str, kind: int) -> bytes:
    if kind == UNKNOWN:
        return c.UNKNOWN_TEXT
    if kind in (CONTROL, UNUSED):
        return b""
    if kind == BYTE:
        return bytes([index - c.FIRST_BYTE_TOKEN])
    return encode_text(text if kind == USER_DEFINED else text.replace(_SPACE_MARK, _SPACE))
