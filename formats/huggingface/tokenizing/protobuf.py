"""A checked reader for sentencepiece's ``tokenizer.model``: a protocol-buffer message of pieces, scores and a few settings.

Only the wire format is interpreted (https://protobuf.dev/programming-guides/encoding), with the field numbers of
``sentencepiece_model.proto``; unknown fields are skipped, every length is checked against the bytes that remain, and nothing is
allocated but what the file holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from pathlib import Path
from typing import Any

from ....errors import FormatError, TruncatedError
from .files import read_bytes
from .vocabulary import TokenType

__all__ = ["ModelType", "Piece", "SentencePieceModel", "parse_sentencepiece", "read_sentencepiece"]


class ModelType(IntEnum):
    """``TrainerSpec.ModelType``."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its type has the number that GGUF's has."""

    text: str
    score: float = 0.0
    type: TokenType = TokenType.NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` holds; defaults are those of the message definition.

    Attributes:
        pieces: the vocabulary by id.
        model_type: the algorithm that uses it.
        byte_fallback: whether unknown characters become byte pieces.
        unk_id: id of the unknown piece; like the next three -1 for none.
        bos_id: id of the begin-of-text piece.
        eos_id: id of the end-of-text piece.
        pad_id: id of the padding piece.
        normalizer: name of the normalization rule (``identity``, ``nmt_nfkc``).
        charsmap: the compiled normalization rule, empty for identity.
        add_dummy_prefix: whether text gets a space in front.
        remove_extra_whitespaces: whether runs of spaces and spaces at the ends are dropped.
        treat_whitespace_as_suffix: whether spaces belong to the word before them.
    """

    pieces: tuple[Piece, ...]
    model_type: ModelType = ModelType.UNIGRAM
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False


# field numbers of the messages
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_TYPE, _TRAINER_SUFFIX, _TRAINER_BYTES = 3, 24, 35
_TRAINER_IDS = {40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
_NORMALIZER_NAME, _NORMALIZER_CHARSMAP, _NORMALIZER_PREFIX, _NORMALIZER_SPACES = 1, 2, 3, 4

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# one field: its number, wire type, where its value starts, and the value (integers) or the end of the value (bytes)
_Field = tuple[int, int, int, int]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model``; raises FormatError, TruncatedError or MissingFileError."""
    return parse_sentencepiece(read_bytes(path), path)


def parse_sentencepiece(data: bytes, path: Path) -> SentencePieceModel:
    """Interpret the bytes of a ``tokenizer.model``; raises FormatError (TruncatedError) naming ``path`` and the offset."""
    pieces: list[Piece] = []
    settings: dict[str, Any] = {}
    model_type = ModelType.UNIGRAM
    for number, wire, start, end in _fields(data, 0, len(data), path):
        if number not in (_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER):
            continue
        _expect(wire, _LENGTH, start, path)
        if number == _MODEL_PIECES:
            pieces.append(_piece(data, start, end, path))
        elif number == _MODEL_TRAINER:
            model_type = _trainer(data, start, end, path, settings) or model_type
        else:
            _normalizer(data, start, end, path, settings)
    if not pieces:
        raise FormatError("this is no sentencepiece model: it has no pieces", path=path)
    return SentencePieceModel(pieces=tuple(pieces), model_type=model_type, **settings)


def _piece(data: bytes, start: int, stop: int, path: Path) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, wire, at, value in _fields(data, start, stop, path):
        if number == _PIECE_TEXT:
            _expect(wire, _LENGTH, at, path)
            text = _text(data, at, value, path)
        elif number == _PIECE_SCORE:
            _expect(wire, _FIXED32, at, path)
            (score,) = struct.unpack_from("<f", data, at)
            if not isfinite(score):
                raise FormatError(f"the score of the piece {text!r} is {score}", path=path, offset=at)
        elif number == _PIECE_TYPE:
            _expect(wire, _VARINT, at, path)
            kind = value
    if not 1 <= kind <= 6:
        raise FormatError(f"the piece {text!r} has the unknown type {kind}", path=path, offset=start)
    return Piece(text, score, TokenType(kind))


def _trainer(data: bytes, start: int, stop: int, path: Path, settings: dict[str, Any]) -> ModelType | None:
    model_type = None
    for number, wire, at, value in _fields(data, start, stop, path):
        if number in (_TRAINER_TYPE, _TRAINER_SUFFIX, _TRAINER_BYTES) or number in _TRAINER_IDS:
            _expect(wire, _VARINT, at, path)
        if number == _TRAINER_TYPE:
            if not 1 <= value <= 4:
                raise FormatError(f"the model has the unknown type {value}", path=path, offset=at)
            model_type = ModelType(value)
        elif number == _TRAINER_SUFFIX:
            settings["treat_whitespace_as_suffix"] = bool(value)
        elif number == _TRAINER_BYTES:
            settings["byte_fallback"] = bool(value)
        elif number in _TRAINER_IDS:
            settings[_TRAINER_IDS[number]] = value - (1 << 64) if value >> 63 else value
    return model_type


def _normalizer(data: bytes, start: int, stop: int, path: Path, settings: dict[str, Any]) -> None:
    for number, wire, at, value in _fields(data, start, stop, path):
        if number in (_NORMALIZER_NAME, _NORMALIZER_CHARSMAP):
            _expect(wire, _LENGTH, at, path)
        elif number in (_NORMALIZER_PREFIX, _NORMALIZER_SPACES):
            _expect(wire, _VARINT, at, path)
        if number == _NORMALIZER_NAME:
            settings["normalizer"] = _text(data, at, value, path)
        elif number == _NORMALIZER_CHARSMAP:
            settings["charsmap"] = data[at:value]
        elif number == _NORMALIZER_PREFIX:
            settings["add_dummy_prefix"] = bool(value)
        elif number == _NORMALIZER_SPACES:
            settings["remove_extra_whitespaces"] = bool(value)


def _fields(data: bytes, start: int, stop: int, path: Path) -> Iterator[_Field]:
    position = start
    while position < stop:
        tag, position = _varint(data, position, stop, path)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            begin = position
            value, position = _varint(data, position, stop, path)
            yield number, wire, begin, value
            continue
        if wire == _LENGTH:
            length, position = _varint(data, position, stop, path)
        elif wire == _FIXED32:
            length = 4
        elif wire == _FIXED64:
            length = 8
        else:
            raise FormatError(f"this is no sentencepiece model: wire type {wire}", path=path, offset=position)
        if length > stop - position:
            raise TruncatedError(
                f"a field of {length} bytes starts where {stop - position} remain",
                path=path,
                offset=position,
                remedy="Download the file again.",
            )
        yield number, wire, position, position + length
        position += length


def _varint(data: bytes, position: int, stop: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while position < stop:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise FormatError("an integer of more than 64 bits", path=path, offset=position)
            return value, position
        shift += 7
        if shift > 63:
            raise FormatError("an integer of more than 64 bits", path=path, offset=position)
    raise TruncatedError("the file ends within an integer", path=path, offset=position, remedy="Download it again.")


def _expect(wire: int, wanted: int, offset: int, path: Path) -> None:
    if wire != wanted:
        raise FormatError(f"this is no sentencepiece model: wire type {wire} for {wanted}", path=path, offset=offset)


def _text(data: bytes, start: int, stop: int, path: Path) -> str:
    try:
        return data[start:stop].decode()
    except UnicodeDecodeError:
        raise FormatError("a text of the model is no UTF-8", path=path, offset=start) from None
