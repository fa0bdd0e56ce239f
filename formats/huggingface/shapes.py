"""Shapes that the configuration gives, against those that the files give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import ShapeError
from ..architectures import Expression, NameMap, at_layer
from ..stored import CheckpointTensor, StoredTensor

__all__ = ["check_shapes", "shape_problems"]

_LISTED = 5


def shape_problems(
    names: NameMap, tensors: Mapping[str, CheckpointTensor], values: Mapping[str, object]
) -> list[tuple[str, str]]:
    """Return (checkpoint name, sentence) for every mapped tensor of another shape; raises ModelError for sizes that cannot be computed."""
    layered = {name for name, value in values.items() if isinstance(value, tuple)}
    known: dict[tuple[tuple[Expression, ...], int | None], tuple[int, ...]] = {}
    problems = []
    for item in names.mapped:
        for index, source in enumerate(item.sources):
            sizes = item.entry.shapes[index % len(item.entry.shapes)]
            key = sizes, item.layer if any(size.names & layered for size in sizes) else None
            if key not in known:
                known[key] = tuple(size.evaluate(at_layer(values, key[1])) for size in sizes)
            found = tensors[source].shape
            if found != known[key]:
                asked = ", ".join(f"{size.text} = {value}" for size, value in zip(sizes, known[key], strict=True))
                problems.append((source, f"has shape {found}, the configuration gives ({asked})"))
    return problems


def check_shapes(
    names: NameMap, tensors: Mapping[str, CheckpointTensor], values: Mapping[str, object], config: Path
) -> None:
    """Raise ShapeError, with the first few mismatches, before any weight is read."""
    problems = shape_problems(names, tensors, values)
    if problems:
        source, sentence = problems[0]
        others = [name for name, _ in problems[1:]]
        more = f"; {len(others)} more differ: {', '.join(others[:_LISTED])}" if others else ""
        if len(others) > _LISTED:
            more += ", …"
        guilty = tensors[source]
        raise ShapeError(
            sentence + more,
            path=guilty.file.path if isinstance(guilty, StoredTensor) else config.parent,
            tensor=source,
            remedy=f"The weights and {config.name} belong to different models; download both from one place.",
        )
