"""Lay out a GGUF model: version 3, little-endian, in one file or in parts, with digests.

Digests (:class:`WriteOptions.digests`) are three keys at the end of each part's metadata:

* ``qconv.digest.algorithm``: ``sha256``.
* ``qconv.digest.tensors``: one hexadecimal digest per tensor of the part, in the part's order, over its bytes without padding.
* ``qconv.digest.header``: the digest of all bytes before the data section, in which these 64 characters read ``0``.

With padding that must be zero, they cover every byte of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from ...errors import OutputError, UsageError
from ..base import Layout, OutputTensor, Part, Placement, WriteOptions
from ..getters import get_integer
from ..metadata import Field, ValueType, int32, string, strings, uint32
from . import constants as c
from .names import part_path
from .serialize import serialize_field, serialize_preamble, serialize_record

__all__ = ["lay_out_gguf", "lay_out_parts"]

_BLANK = "0" * c.HEX_DIGITS


def lay_out_gguf(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Return which bytes go where for a model named ``path``.

    Several parts get llama.cpp's names (``prefix-00001-of-00003.gguf``) and ``split.*`` keys; what fits in one part keeps ``path`` as it is.
    Digest and split keys in ``metadata`` are replaced.

    Raises UsageError for options that make no sense, OutputError for what GGUF cannot hold.
    """
    return _lay_out(path, metadata, tensors, options, always_numbered=False)


def lay_out_parts(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Return the same as :func:`lay_out_gguf`, but with the name and the keys of parts even where one is enough, as gguf-split does."""
    return _lay_out(path, metadata, tensors, options, always_numbered=True)


def _lay_out(
    path: Path,
    metadata: Mapping[str, Field],
    tensors: Sequence[OutputTensor],
    options: WriteOptions,
    *,
    always_numbered: bool,
) -> Layout:
    alignment = _choose_alignment(metadata, options)
    _refuse_duplicates(tensors)
    groups = _group(tensors, alignment, options)
    if len(groups) > c.MAX_PARTS:
        raise UsageError(f"{len(groups)} parts are more than {c.MAX_PARTS}", remedy="Allow larger parts.")
    own = {
        key: field
        for key, field in metadata.items()
        if not key.startswith((c.SPLIT_PREFIX, c.DIGEST_PREFIX)) and key not in (c.ALIGNMENT_KEY, c.PAD_KEY)
    }
    parts: list[Part] = []
    for number, group in enumerate(groups):
        fields = dict(own) if number == 0 else {}
        if alignment != c.DEFAULT_ALIGNMENT:
            fields[c.ALIGNMENT_KEY] = uint32(alignment)
        target = path
        if len(groups) > 1 or always_numbered:
            target = part_path(path, number + 1, len(groups))
            fields[c.SPLIT_NO_KEY] = Field(ValueType.UINT16, number)
            fields[c.SPLIT_COUNT_KEY] = Field(ValueType.UINT16, len(groups))
            fields[c.SPLIT_TENSORS_KEY] = int32(len(tensors))
        parts.append(_lay_out_part(target, fields, group, alignment, options.digests))
    return Layout(tuple(parts))


def _choose_alignment(metadata: Mapping[str, Field], options: WriteOptions) -> int:
    alignment = options.alignment
    if alignment is None:
        alignment = get_integer(metadata, c.ALIGNMENT_KEY) or c.DEFAULT_ALIGNMENT
    if not 0 < alignment <= c.MAX_ALIGNMENT or alignment & (alignment - 1):
        raise UsageError(f"the alignment {alignment} is no power of two up to {c.MAX_ALIGNMENT}")
    return alignment


def _refuse_duplicates(tensors: Sequence[OutputTensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise OutputError("two tensors would have this name", tensor=tensor.name)
        seen.add(tensor.name)


def _group(tensors: Sequence[OutputTensor], alignment: int, options: WriteOptions) -> list[list[OutputTensor]]:
    """Distribute tensors over parts in order: a part is full where the next tensor would exceed a limit; one tensor always fits."""
    largest, most = options.split_max_size, options.split_max_tensors
    if (largest is not None and largest < 1) or (most is not None and most < 1):
        raise UsageError("a part must be allowed at least one byte and one tensor")
    if options.part_of is not None:
        kept: list[list[OutputTensor]] = [[] for _ in range(max(options.part_of.values(), default=0) + 1)]
        for tensor in tensors:
            kept[options.part_of[tensor.name]].append(tensor)
        return kept
    groups: list[list[OutputTensor]] = [[]]
    if options.metadata_only_first and (largest is not None or most is not None) and tensors:
        groups.append([])
    filled = 0
    for tensor in tensors:
        nbytes = c.padded(tensor.nbytes, alignment)
        full = (largest is not None and filled + nbytes > largest) or (most is not None and len(groups[-1]) >= most)
        if groups[-1] and full:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += nbytes
    return groups


def _lay_out_part(
    path: Path, fields: dict[str, Field], tensors: Sequence[OutputTensor], alignment: int, digests: bool
) -> Part:
    if digests:
        fields[c.DIGEST_ALGORITHM_KEY] = string(c.DIGEST_ALGORITHM)
        fields[c.DIGEST_TENSORS_KEY] = strings(_BLANK for _ in tensors)
        fields[c.DIGEST_HEADER_KEY] = string(_BLANK)
    serialized = [serialize_field(key, field) for key, field in fields.items()]
    offsets = tuple(_offsets(tensors, alignment))
    preamble = serialize_preamble(len(tensors), len(fields))
    before_records = len(preamble) + sum(map(len, serialized))
    # A record's length does not depend on the offset in it, so records placed from zero tell where the data start.
    relative = [
        serialize_record(Placement(tensor, offset), 0) for tensor, offset in zip(tensors, offsets, strict=False)
    ]
    data_start = c.padded(before_records + sum(map(len, relative)), alignment)
    template = b"".join((preamble, *serialized, *relative)).ljust(data_start, b"\0")
    placements = tuple(Placement(tensor, data_start + offset) for tensor, offset in zip(tensors, offsets, strict=False))
    size = data_start + offsets[-1]
    if not digests:
        return Part(path, size, placements, lambda _: template)
    slots = _Slots.locate(before_records, len(tensors))
    return Part(path, size, placements, partial(_fill, template, slots, tuple(tensor.name for tensor in tensors)))


def _offsets(tensors: Sequence[OutputTensor], alignment: int) -> Iterator[int]:
    """Offset of each tensor in the data section, and last the bytes of the section."""
    offset = 0
    for tensor in tensors:
        yield offset
        offset += c.padded(tensor.nbytes, alignment)
    yield offset


@dataclass(frozen=True, slots=True)
class _Slots:
    """Where digests go: position of the header's, and of the first tensor's; tensors' follow at ``stride``."""

    header: int
    tensors: int
    stride: int

    @classmethod
    def locate(cls, end: int, count: int) -> _Slots:
        """Find the slots in metadata that end at byte ``end`` with the digest keys."""
        header = end - c.HEX_DIGITS
        stride = 8 + c.HEX_DIGITS
        header_field = len(serialize_field(c.DIGEST_HEADER_KEY, string(_BLANK)))
        return cls(header, end - header_field - count * stride + 8, stride)


def _fill(template: bytes, slots: _Slots, names: Sequence[str], digests: Mapping[str, str]) -> bytes:
    """Return ``template`` with the digests of the tensors ``names`` and of the header itself."""
    header = bytearray(template)
    for index, name in enumerate(names):
        digest = digests[name].encode("ascii")
        if len(digest) != c.HEX_DIGITS:
            raise ValueError(f"{digests[name]!r} is no hexadecimal SHA-256 of tensor {name}")
        start = slots.tensors + index * slots.stride
        header[start : start + c.HEX_DIGITS] = digest
    header[slots.header : slots.header + c.HEX_DIGITS] = sha256(header).hexdigest().encode("ascii")
    return bytes(header)
