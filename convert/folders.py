"""Outputs that are folders: what may be replaced, and how a whole folder takes its name at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import OutputExistsError
from ..formats.base import Layout

__all__ = ["check_folder", "put_in_place", "sync_folder"]

_OLD = ".qconv-old"
_LISTED = 3


def check_folder(layout: Layout, folder: Path, sources: Sequence[Path], force: bool) -> None:
    """Refuse a folder that holds the input, anything at all (without ``force``), or what no output of its format has.

    Raises OutputExistsError.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink() or folder.is_mount():
        kind = "a mounted folder" if folder.is_mount() else "a link" if folder.is_symlink() else "a file"
        raise OutputExistsError(
            f"the output is a folder, and this is {kind}", path=folder, remedy="Choose another output."
        )
    whole = folder.resolve()
    if whole == Path.cwd():  # the folder is replaced, and the shell would be left in the old one
        raise OutputExistsError(
            "the output is the folder that you are in",
            path=folder,
            remedy="Choose another output, or leave the folder.",
        )
    if any(source.exists() and source.resolve().is_relative_to(whole) for source in sources):
        raise OutputExistsError("the output is the input itself", path=folder, remedy="Choose another output.")
    found = sorted(folder.iterdir())
    if not found:
        return
    foreign = [item.name for item in found if not _belongs(item, layout.belongings)]
    if foreign:
        more = ", …" if len(foreign) > _LISTED else ""
        raise OutputExistsError(
            f"the folder holds what no conversion writes ({', '.join(foreign[:_LISTED])}{more})",
            path=folder,
            remedy="Choose another output, or empty the folder.",
        )
    if not force:
        raise OutputExistsError(
            "the output exists", path=folder, remedy="Use --force to replace it, or choose another output."
        )


def _belongs(item: Path, known: Sequence[str]) -> bool:
    """Whether an output may have such a file, or a folder with such files only."""
    if item.is_dir() and not item.is_symlink():
        inner = [inside.name if inside.is_dir() else f"{item.name}/{inside.name}" for inside in item.iterdir()]
        return bool(inner) and all(any(fnmatchcase(name, each) for each in known) for name in inner)
    return not item.is_symlink() and any(fnmatchcase(item.name, each) for each in known)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the sealed ``temporary`` to ``folder``, in place of an older one, which is deleted afterwards.

    At no moment is there a folder of that name that is not whole; called again after a kill, it goes on.
    """
    old = folder.with_name(folder.name + _OLD)
    if temporary.is_dir():
        sync_folder(temporary)
        if folder.is_dir():
            if old.is_dir():
                shutil.rmtree(old)
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
    if old.is_dir():
        shutil.rmtree(old)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
