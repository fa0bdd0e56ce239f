"""Open a GGUF model, in one file or in parts: metadata and lazy tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, MissingFileError
from ...quantizers.base import Encoding
from ..base import Model, Tensor
from ..getters import get_integer
from ..positional import ContiguousRows, PositionalFile
from . import constants as c
from .byte_order import is_swappable, swap_blocks
from .checks import check_metadata, check_names
from .header import Header, TensorRecord, parse_header
from .names import part_path, split_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..base import OpenContext

__all__ = ["OpenPart", "build_model", "open_gguf", "open_parts"]

OpenPart = tuple[PositionalFile, Header]

_MOST_NAMED = 5  # missing parts in a message


def open_gguf(path: Path, context: OpenContext) -> Model:
    """Read the header of ``path``, and of every other part where it is the first of several.

    Strings that are no valid UTF-8 hold lone surrogates (``surrogateescape``). ``split.*`` keys are not in the Model's metadata.

    Raises FormatError (and its kinds) for a file that is damaged, lies, or has a part missing. :meth:`Model.close` closes all files.
    """
    with ExitStack() as stack:
        parts = open_parts(path, context.encodings, stack, first_only=context.vocabulary_only)
        model = build_model(path, parts, context.vocabulary_only)
        return replace(model, close=stack.pop_all().close)


def build_model(path: Path, parts: Sequence[OpenPart], vocabulary_only: bool = False) -> Model:
    """Return the Model of parts that :func:`open_parts` opened, whose files stay the caller's to close; raises FormatError."""
    header = parts[0][1]
    notes = check_metadata(header.metadata, path)
    tensors: dict[str, Tensor] = {}
    for number, (file, part) in enumerate(() if vocabulary_only else parts):
        for record in part.tensors:
            if record.name in tensors:
                raise FormatError("another part has a tensor of this name", path=file.path, tensor=record.name)
            tensors[record.name] = _tensor(file, part, record, number)
    check_names(tensors, path)
    _check_total(header, len(tensors), len(parts), path)
    return Model(
        path=path,
        format="gguf",
        metadata=MappingProxyType({k: v for k, v in header.metadata.items() if not k.startswith(c.SPLIT_PREFIX)}),
        tensors=MappingProxyType(tensors),
        files=tuple(file.path for file, _ in parts),
        notes=notes,
        container=MappingProxyType(
            {
                "version": header.version,
                "byte_order": "little" if header.byte_order == "<" else "big",
                "alignment": header.alignment,
                "parts": _count(header) or 1,
            }
        ),
    )


def open_parts(
    path: Path, encodings: Mapping[str, Encoding], stack: ExitStack, first_only: bool = False
) -> Sequence[OpenPart]:
    """Open ``path`` and the parts that follow it, each registered with ``stack`` for closing.

    Raises MissingFileError where a part is absent, FormatError where ``path`` is not the first part or parts disagree.
    """
    first = _open(path, encodings, stack)
    count = _count(first[1])
    if count is None:
        return (first,)
    named = split_name(path)
    number = get_integer(first[1].metadata, c.SPLIT_NO_KEY, path)
    if number is None or not 0 <= number < count:
        raise FormatError(f"{c.SPLIT_NO_KEY} is {number}, but the model has {count} parts", path=path)
    if named is None or named[2] != count or named[1] != number + 1:
        raise FormatError(
            f"it is part {number + 1} of {count} of a model, but its name does not say so",
            path=path,
            remedy=f"Rename it to {part_path(path, number + 1, count).name}.",
        )
    absent = [no for no in range(1, count + 1) if not part_path(path, no, count).exists()]
    if number and 1 not in absent:
        raise FormatError(
            f"it is part {number + 1} of {count}, and the metadata are in the first",
            path=path,
            remedy=f"Open {part_path(path, 1, count).name} instead.",
        )
    if number:
        raise _missing(path, number, absent, count)
    if first_only:
        return (first,)
    if absent:
        raise _missing(path, 0, absent, count)
    return (first, *(_open_follower(path, no, count, encodings, stack) for no in range(2, count + 1)))


def _open(path: Path, encodings: Mapping[str, Encoding], stack: ExitStack) -> OpenPart:
    file = PositionalFile(path)
    stack.callback(file.close)
    return file, parse_header(file, encodings)


def _count(header: Header) -> int | None:
    """Number of parts, or None for a model in one file."""
    count = get_integer(header.metadata, c.SPLIT_COUNT_KEY, header.path)
    if count is not None and not 0 <= count <= c.MAX_PARTS:
        raise FormatError(f"{c.SPLIT_COUNT_KEY} is {count}, not between 0 and {c.MAX_PARTS}", path=header.path)
    return None if count is None or count < 2 else count


def _missing(path: Path, number: int, absent: Sequence[int], count: int) -> MissingFileError:
    """Return the error about part ``number`` (from zero) that names every part that is not beside it."""
    more = " …" if len(absent) > _MOST_NAMED else ""
    numbers = ", ".join(map(str, absent[:_MOST_NAMED])) + more
    names = ", ".join(part_path(path, no, count).name for no in absent[:_MOST_NAMED]) + more
    missing = f"part {numbers} of {count} is missing" if len(absent) == 1 else f"parts {numbers} of {count} are missing"
    if number:
        missing = f"it is part {number + 1} of {count} and no model by itself; {missing}"
    alone = len(absent) == 1 and not number
    return MissingFileError(
        missing, path=part_path(path, absent[0], count) if alone else path, remedy=f"Put {names} beside {path.name}."
    )


def _open_follower(
    first: Path, number: int, count: int, encodings: Mapping[str, Encoding], stack: ExitStack
) -> OpenPart:
    path = part_path(first, number, count)
    part = _open(path, encodings, stack)
    metadata = part[1].metadata
    for key, wanted in ((c.SPLIT_NO_KEY, number - 1), (c.SPLIT_COUNT_KEY, count)):
        found = get_integer(metadata, key, path)
        if found != wanted:
            raise FormatError(
                f"{key} is {found}, not {wanted}: it is no part of the model that starts with {first.name}", path=path
            )
    return part


def _check_total(header: Header, found: int, parts: int, path: Path) -> None:
    """Compare the number of tensors in all parts with what the first announces."""
    announced = get_integer(header.metadata, c.SPLIT_TENSORS_KEY, path)
    if announced is not None and parts > 1 and announced != found:
        raise FormatError(
            f"{c.SPLIT_TENSORS_KEY} announces {announced} tensors, but {parts} parts hold {found}", path=path
        )


def _tensor(file: PositionalFile, header: Header, record: TensorRecord, part: int) -> Tensor:
    swapped = header.byte_order == ">"
    if swapped and not is_swappable(record.encoding):
        raise FormatError(f"big-endian {record.encoding.name} cannot be read", path=file.path, tensor=record.name)
    width = record.encoding.row_bytes(record.shape[-1] if record.shape else 1)
    rows = ContiguousRows(file, record.offset, width, record.nbytes // width, record.name)
    read = partial(_read_swapped, rows, record.encoding) if swapped else rows
    return Tensor(record.name, record.shape, record.encoding, read, f"{file.path.name}: {record.name}", part)


def _read_swapped(rows: ContiguousRows, encoding: Encoding, start: int, stop: int) -> NDArray[np.uint8]:
    """Return big-endian rows as little-endian ones."""
    out = rows(start, stop)
    swap_blocks(out, encoding)
    return out
