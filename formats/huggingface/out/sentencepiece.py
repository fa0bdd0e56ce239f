"""``tokenizer.model`` from GGUF's keys: sentencepiece's message, with the field numbers of ``sentencepiece_model.proto``."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from ...getters import get_flag, get_numbers
from ...metadata import Field, ValueType
from ..tokenizing.protobuf import ModelType
from ..tokenizing.vocabulary import TokenType
from .tokens import Tokens

__all__ = ["build_sentencepiece"]

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_ROLES = ("unk", "bos", "eos", "pad")
_FIRST_ID, _FIRST_TEXT = 40, 45  # fields of the trainer's settings, in the order of the roles


def build_sentencepiece(kind: str, tokens: Tokens, metadata: Mapping[str, Field], path: Path) -> bytes | None:
    """Return the file's bytes for a vocabulary of the kind ``llama`` (BPE) or ``t5`` (unigram).

    None for other kinds, and where there is no unknown token: sentencepiece loads no model without.
    """
    model_type = {"llama": ModelType.BPE, "t5": ModelType.UNIGRAM}.get(kind)
    listed = (token for token, each in enumerate(tokens.types) if each is TokenType.UNKNOWN)
    unknown = tokens.ids.get("unk", next(listed, None))
    if model_type is None or not tokens.scores or unknown is None:
        return None
    pieces = b"".join(
        _message(1, _piece(_stored(text, each), score, _stored_type(token, each, unknown)))
        for token, (text, score, each) in enumerate(zip(tokens.texts, tokens.scores, tokens.types, strict=True))
    )
    ids = {**tokens.ids, "unk": unknown}
    trainer = _number(3, model_type) + _number(4, len(tokens.texts)) + _number(35, TokenType.BYTE in tokens.types)
    for index, role in enumerate(_ROLES):
        trainer += _number(_FIRST_ID + index, ids.get(role, -1))
        if role in ids:
            trainer += _message(_FIRST_TEXT + index, tokens.texts[ids[role]].encode())
    return pieces + _message(2, trainer) + _message(3, _normalizer(kind, metadata, path))


def _stored(text: str, kind: TokenType) -> str:
    """Return a piece as sentencepiece has it: GGUF spells the spaces of user-defined ones as spaces."""
    return text.replace(" ", "▁") if kind is TokenType.USER_DEFINED else text


def _stored_type(token: int, kind: TokenType, unknown: int) -> TokenType:
    """Return a piece's type: exactly one is unknown, though GGUF may call placeholders so."""
    if token == unknown:
        return TokenType.UNKNOWN
    return TokenType.UNUSED if kind is TokenType.UNKNOWN else kind


def _piece(text: str, score: float, kind: TokenType) -> bytes:
    found = _message(1, text.encode()) + _tag(2, _FIXED32) + struct.pack("<f", score)
    return found if kind is TokenType.NORMAL else found + _number(3, kind)


def _normalizer(kind: str, metadata: Mapping[str, Field], path: Path) -> bytes:
    adds_space = get_flag(metadata, "tokenizer.ggml.add_space_prefix", path) is not False
    drops = get_flag(metadata, "tokenizer.ggml.remove_extra_whitespaces", path) is True and kind == "t5"
    charsmap = get_numbers(metadata, "tokenizer.ggml.precompiled_charsmap", (ValueType.UINT8, ValueType.INT8), path)
    if charsmap is None:
        rule = _message(1, b"identity")
    else:
        rule = _message(1, b"user_defined") + _message(2, charsmap.astype("u1").tobytes())
    return rule + _number(3, adds_space) + _number(4, drops) + _number(5, 1)


def _message(field: int, data: bytes) -> bytes:
    return _tag(field, _LENGTH) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value % (1 << 64))


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
