"""Lay out safetensors files: one, or shards with an index, as transformers names and reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ....errors import OutputError, UsageError
from ...base import OutputTensor, Part, Placement, WriteOptions

__all__ = ["INDEX", "SHARD_BYTES", "SINGLE", "lay_out_weights"]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
SHARD_BYTES: Final = 5 * 10**9
"""Largest number of tensor bytes per file where the user says nothing."""

_ALIGNMENT = 8  # to which the header is filled up, so that the data start aligned
_MAX_SHARDS = 99_999
_PROGRAM = {"format": "pt"}  # transformers refuses files that do not say so


def lay_out_weights(folder: Path, tensors: Sequence[OutputTensor], options: WriteOptions) -> list[Part]:
    """Return the parts that hold the weights: ``model.safetensors``, or the index and then the shards.

    Raises UsageError for limits that make no sense, OutputError for two tensors of one name.
    """
    groups = _group(tensors, options)
    if len(groups) == 1:
        return [_part(folder / SINGLE, groups[0])]
    if len(groups) > _MAX_SHARDS:
        raise UsageError(f"{len(groups)} files are more than {_MAX_SHARDS}", remedy="Allow larger ones.")
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    weight_map = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = (json.dumps(index, indent=2) + "\n").encode()
    first = Part(folder / INDEX, len(text), (), lambda _: text)
    return [first, *(_part(folder / name, group) for name, group in zip(names, groups, strict=True))]


def _group(tensors: Sequence[OutputTensor], options: WriteOptions) -> list[list[OutputTensor]]:
    """Distribute tensors over files in order: a file is full where the next tensor would exceed a limit; one tensor always fits."""
    largest = SHARD_BYTES if options.split_max_size is None else options.split_max_size
    most = options.split_max_tensors
    if largest < 1 or (most is not None and most < 1):
        raise UsageError("a file must be allowed at least one byte and one tensor")
    seen: set[str] = set()
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    kept = options.part_of
    for tensor in tensors:
        if tensor.name in seen:
            raise OutputError("two tensors would have this name", tensor=tensor.name)
        seen.add(tensor.name)
        if kept is None:
            full = filled + tensor.nbytes > largest or (most is not None and len(groups[-1]) >= most)
        else:
            full = bool(groups[-1]) and kept[tensor.name] != kept[groups[-1][-1].name]
        if groups[-1] and full:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _part(path: Path, tensors: Sequence[OutputTensor]) -> Part:
    # elements of 8 bytes first, so that every tensor starts at a multiple of its element's size
    ordered = sorted(tensors, key=lambda tensor: -tensor.encoding.block_bytes)
    header: dict[str, object] = {"__metadata__": _PROGRAM}
    offsets: list[int] = []
    end = 0
    for tensor in ordered:
        offsets.append(end)
        end += tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.encoding.name,
            "shape": list(tensor.shape),
            "data_offsets": [offsets[-1], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    placements = tuple(Placement(tensor, start + offset) for tensor, offset in zip(ordered, offsets, strict=True))
    return Part(path, start + end, placements, lambda _: len(text).to_bytes(8, "little") + text)
