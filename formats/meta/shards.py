"""Which files make up a checkpoint: ``consolidated.00.pth``, ``consolidated.01.pth`` … in one folder, all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError, MissingFileError, ShapeError
from ..pickles import PickledCheckpoint, read_pickled_checkpoint
from ..positional import PositionalFile

__all__ = ["Shards", "find_shards", "missing_shards", "open_shards", "shards_in"]

SHARDS_MAX = 100
_NAME = re.compile(r"(?P<stem>.+)\.(?P<number>\d{2})\.pth")
_USUAL = "consolidated"


@dataclass(frozen=True)
class Shards:
    """The open files of a checkpoint, in order, and what they hold.

    Attributes:
        paths: the files.
        parts: their contents.
        handles: to close.
    """

    paths: tuple[Path, ...]
    parts: tuple[PickledCheckpoint, ...]
    handles: tuple[PositionalFile, ...]

    def close(self) -> None:
        """Release every file."""
        for handle in self.handles:
            handle.close()


def shards_in(folder: Path, stem: str = _USUAL) -> tuple[Path, ...]:
    """Return the files ``STEM.NN.pth`` of a folder in order."""
    found = sorted(folder.glob("*.pth"))
    return tuple(path for path in found if (match := _NAME.fullmatch(path.name)) and match["stem"] == stem)


def find_shards(path: Path) -> tuple[Path, ...]:
    """Return every shard of the checkpoint in a folder, or of the one that a file belongs to.

    Raises MissingFileError, with the names, where a number is missing among them.
    """
    match = None if path.is_dir() else _NAME.fullmatch(path.name)
    if not path.is_dir() and match is None:
        return (path,)
    stem = match["stem"] if match else _USUAL
    folder = path if path.is_dir() else path.parent
    found = shards_in(folder, stem)
    if not found:
        raise MissingFileError(
            "the folder has no consolidated.00.pth",
            path=folder,
            remedy="Download the model's weights into the folder of params.json.",
        )
    count = int(found[-1].name.split(".")[-2]) + 1
    _demand(folder, stem, range(count), {shard.name for shard in found}, f"{found[-1].name} is there")
    return found


def missing_shards(paths: Sequence[Path], count: int, reason: str) -> None:
    """Raise MissingFileError, with the names of the absent ones, if ``count`` shards are needed and ``paths`` are fewer."""
    match = _NAME.fullmatch(paths[0].name)
    if match is None:
        raise MissingFileError(
            f"{reason}, and this is one of them",
            path=paths[0],
            remedy="Copy all shards into one folder, under the names consolidated.00.pth, consolidated.01.pth …",
        )
    _demand(paths[0].parent, match["stem"], range(count), {path.name for path in paths}, reason)


def _demand(folder: Path, stem: str, numbers: range, present: set[str], reason: str) -> None:
    missing = [name for number in numbers if (name := f"{stem}.{number:02d}.pth") not in present]
    if missing:
        raise MissingFileError(
            f"{reason}, but {len(missing)} of the {len(numbers)} shards are missing: {', '.join(missing[:20])}",
            path=folder / missing[0],
            remedy="Download them into the folder.",
        )


def open_shards(paths: Sequence[Path]) -> Shards:
    """Open every shard; raises FormatError for one that is no checkpoint, ShapeError where they hold different tensors."""
    if len(paths) > SHARDS_MAX:
        raise FormatError(f"{len(paths)} shards are more than any model has", path=paths[0].parent)
    handles: list[PositionalFile] = []
    try:
        parts = []
        for path in paths:
            handles.append(PositionalFile(path))
            parts.append(read_pickled_checkpoint(handles[-1]))
        for path, part in zip(paths, parts, strict=True):
            different = sorted(part.tensors.keys() ^ parts[0].tensors.keys())
            if different:
                raise ShapeError(
                    f"{len(different)} tensors are in one of {paths[0].name} and {path.name} only, such as {different[0]!a}",
                    path=path,
                    remedy="The shards belong to different models; download them from one place.",
                )
    except BaseException:
        for handle in handles:
            handle.close()
        raise
    return Shards(tuple(paths), tuple(parts), tuple(handles))
