"""Models in several files: ``NAME.bin``, ``NAME.bin.1``, ``NAME.bin.2``…; each repeats the header and has a slice of every tensor.

How many there are is told by the embedding table alone: a part has ``embedding / parts`` of its columns.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError, MissingFileError
from ..positional import PositionalFile
from . import constants as c
from .header import OTHER_FAMILIES, Header, read_header
from .records import Walk, walk_records

__all__ = ["OpenPart", "open_parts"]

_NUMBERED = re.compile(r"(?P<first>.+)\.(?P<number>[1-9]\d?)", re.DOTALL)
_EMBEDDING = "tok_embeddings.weight"


@dataclass(frozen=True, slots=True)
class OpenPart:
    """One file, open, and what its headers say."""

    file: PositionalFile
    header: Header
    walk: Walk


def open_parts(path: Path, stack: ExitStack, header_only: bool) -> tuple[OpenPart, ...]:
    """Open ``path`` and the parts that follow it, each registered with ``stack`` for closing.

    ``header_only`` leaves the tensors alone, and with them the other parts. Raises MissingFileError that names every absent part,
    FormatError where ``path`` is not the first part or parts disagree.
    """
    first = _open(path, stack, header_only)
    count = 1 if header_only or first.header.is_vocabulary_only else _count(first)
    if count == 1:
        return (first,)
    numbered = _NUMBERED.fullmatch(path.name)
    start = path if numbered is None else path.with_name(numbered["first"])
    paths = [start, *(start.with_name(f"{start.name}.{number}") for number in range(1, count))]
    missing = [each.name for each in paths if not each.exists()]
    if missing:
        raise MissingFileError(
            f"this is one of {count} parts of a model; missing: {', '.join(missing)}",
            path=path,
            remedy="Put all parts into one folder under these names, and open the first.",
        )
    if numbered is not None:
        raise FormatError(
            f"this is part {int(numbered['number']) + 1} of a model in {count} parts",
            path=path,
            remedy=f"Open {start.name} instead.",
        )
    parts = (first, *(_open(each, stack, header_only) for each in paths[1:]))
    for part in parts[1:]:
        _compare(first, part)
    return parts


def _open(path: Path, stack: ExitStack, header_only: bool) -> OpenPart:
    file = PositionalFile(path)
    stack.callback(file.close)
    try:
        header = read_header(file)
        return OpenPart(file, header, Walk.empty(header) if header_only else walk_records(file, header))
    except FormatError as error:
        if _is_unversioned(file):
            error.remedy = f"{error.remedy} {OTHER_FAMILIES}" if error.remedy else OTHER_FAMILIES
        raise


def _is_unversioned(file: PositionalFile) -> bool:
    """Whether the file has the magic number that every program of the first weeks wrote, whatever the model."""
    magic = next(magic for magic, container in c.CONTAINERS.items() if container == "ggml")
    return file.size >= len(magic) and file.read(0, len(magic)) == magic


def _count(part: OpenPart) -> int:
    """Number of parts of the model, by the columns of the embedding table."""
    record = part.walk.records.get(_EMBEDDING)
    columns, embedding = (0 if record is None else record.shape[-1]), part.header.numbers.embedding
    if record is None or embedding % columns or embedding // columns > c.MAX_PARTS:
        return 1  # no part of anything: the check of names and shapes says what is wrong
    return embedding // columns


def _compare(first: OpenPart, part: OpenPart) -> None:
    """Refuse a part whose header, vocabulary, types or shapes are not the first one's."""

    def facts(it: OpenPart) -> list[tuple[str, object]]:
        header = it.header
        return [
            ("container", (header.container, header.version)),
            ("hyper-parameters", header.numbers),
            ("vocabulary", (header.texts, header.scores)),
            ("tensors", {name: (record.number, record.shape) for name, record in it.walk.records.items()}),
        ]

    for (what, wanted), (_, found) in zip(facts(first), facts(part), strict=True):
        if found != wanted:
            raise FormatError(
                f"this is no part of {first.file.path.name}: they do not have the same {what}",
                path=part.file.path,
            )
