"""Parse the start of a file: container, hyper-parameters and vocabulary; every length is checked before it is believed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError, UnknownArchitectureError
from ..gguf.cursor import Cursor
from ..positional import PositionalFile
from . import constants as c

__all__ = ["OTHER_FAMILIES", "Header", "HyperParameters", "PackedTexts", "read_header"]

_FIRST_TENSOR = "tok_embeddings.weight"
_FIRST_NAME_OFFSET = 20  # behind three numbers and two extents
OTHER_FAMILIES = (
    "If this is no Llama: GPT-2, GPT-J, GPT-NeoX, MPT, StarCoder, BLOOM and Whisper files of the time start alike, "
    "and qconv reads none of them."
)


@dataclass(frozen=True, slots=True)
class HyperParameters:
    """The seven numbers of a header, in its order; see :mod:`.hyper_parameters` for what they leave out."""

    vocabulary: int
    embedding: int
    multiple: int
    heads: int
    layers: int
    rotary: int
    file_type: int


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """Byte strings without an object for each: ``ends[i]`` is where text ``i`` ends in ``data``."""

    data: bytes
    ends: array[int]

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, index: int) -> bytes:
        """Return one text."""
        return self.data[self.ends[index - 1] if index else 0 : self.ends[index]]


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes the tensors.

    Attributes:
        path: the file.
        container: ``ggml``, ``ggmf`` or ``ggjt``.
        version: 0 for ``ggml``, which states none.
        numbers: hyper-parameters.
        texts: the vocabulary, perhaps shorter than ``numbers.vocabulary`` (GPT4All's lack the last entry).
        scores: one per text, empty for ``ggml``, which has none.
        end: offset of the first tensor record.
    """

    path: Path
    container: str
    version: int
    numbers: HyperParameters
    texts: PackedTexts
    scores: array[float]
    end: int

    @property
    def is_vocabulary_only(self) -> bool:
        """Whether the file was made to hold no tensors."""
        return self.numbers.layers == 0


def read_header(file: PositionalFile) -> Header:
    """Parse ``file`` up to its first tensor record.

    Raises FormatError for a damaged file and for what only looks like a model, UnknownArchitectureError where the numbers of
    another model family follow the magic number that all share.
    """
    cursor = Cursor(file)
    cursor.set_layout(1, "<")  # lengths of 32 bits
    magic = bytes(cursor.take(4, "the magic number"))
    if magic in c.FOREIGN_MAGICS:
        what, remedy = c.FOREIGN_MAGICS[magic]
        raise FormatError(f"this is {what}", path=file.path, offset=0, remedy=remedy)
    if magic not in c.CONTAINERS:
        raise FormatError(f"no file of the ggml family starts with {magic!r}", path=file.path, offset=0)
    container = c.CONTAINERS[magic]
    version = 0 if container == "ggml" else _read_version(cursor, container)
    numbers = _read_numbers(cursor, file.path)
    texts, scores = _read_vocabulary(cursor, file, numbers.vocabulary, scored=container != "ggml")
    return Header(file.path, container, version, numbers, texts, scores, cursor.position)


def _read_version(cursor: Cursor, container: str) -> int:
    version = cursor.integer("I", "the version")
    latest = 1 if container == "ggmf" else 3
    if not 1 <= version <= latest:
        cursor.position -= 4
        remedy = "RWKV's files have 100 and 101; qconv does not read them." if version in (100, 101) else None
        raise cursor.fail(f"this is version {version} of {container}; versions 1 to {latest} exist", remedy=remedy)
    return version


def _read_numbers(cursor: Cursor, path: Path) -> HyperParameters:
    start = cursor.position
    numbers = HyperParameters(*(cursor.integer("I", "the hyper-parameters") for _ in range(7)))
    vocabulary_only = (numbers.embedding, numbers.layers) == (0, 0)
    problems = (
        (not 1 <= numbers.vocabulary <= c.MAX_VOCABULARY, f"{numbers.vocabulary} tokens"),
        (not vocabulary_only and not 1 <= numbers.embedding <= c.MAX_EMBEDDING, f"{numbers.embedding} columns"),
        (not 1 <= numbers.heads <= c.MAX_HEADS, f"{numbers.heads} heads"),
        (not vocabulary_only and not 1 <= numbers.layers <= c.MAX_LAYERS, f"{numbers.layers} layers"),
        (numbers.embedding % max(1, numbers.heads) != 0, f"{numbers.embedding} columns for {numbers.heads} heads"),
        (numbers.file_type not in c.FILE_TYPES, f"the type {numbers.file_type}"),
    )
    found = [problem for wrong, problem in problems if wrong]
    if found:
        raise UnknownArchitectureError(
            f"the hyper-parameters are no Llama's: {', '.join(found)}",
            path=path,
            offset=start,
            remedy=OTHER_FAMILIES,
        )
    return numbers


def _read_vocabulary(
    cursor: Cursor, file: PositionalFile, count: int, scored: bool
) -> tuple[PackedTexts, array[float]]:
    if count > cursor.remaining // (8 if scored else 4):
        cursor.take(cursor.remaining + 1, f"the vocabulary of {count} tokens")  # raises TruncatedError
    data, ends, scores = bytearray(), array("Q"), array("f")
    for index in range(count):
        start = cursor.position
        text = cursor.take(cursor.length("the length of a token", c.MAX_TOKEN_BYTES), "a token")
        if text == b"\x15\0" and _is_first_tensor(file, start):
            if count - index > c.MAX_MISSING_TOKENS:
                raise cursor.fail(f"the vocabulary ends after {index} of {count} tokens")
            cursor.position = start
            break
        data += text
        ends.append(len(data))
        if scored:
            scores.append(cursor.number("f", "a token's score"))
    return PackedTexts(bytes(data), ends), scores


def _is_first_tensor(file: PositionalFile, start: int) -> bool:
    """Whether the embedding table's record starts here; its two dimensions and its name's length read like a token of two bytes."""
    name = _FIRST_TENSOR.encode()
    place = start + _FIRST_NAME_OFFSET
    return place + len(name) <= file.size and file.read(place, len(name)) == name
