"""What a path is that no reader recognises, in words for who named it; files and folders that people mistake for models are in ``unrecognised.json``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from ..errors import MissingFileError, UnknownFormatError

__all__ = ["absent", "unrecognised"]

_UNKNOWN: Final = "no reader recognises this"
_HEAD: Final = 512  # bytes
_LISTED: Final = 4
_ENTRIES_MAX: Final = 4096  # of a folder that are looked at
_DOWNLOAD: Final = "qconv downloads nothing: fetch the model first, for example with 'hf download NAME --local-dir FOLDER', and name the folder."
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")
_PART: Final = re.compile(r".*-(?P<part>\d{5})-of-\d{5}")
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth")
_FOREIGN: Final = (".onnx", ".h5", ".msgpack", ".tflite", ".pb", ".npz", ".ot", ".mlmodel")


def absent(path: Path) -> MissingFileError:
    """Return the error for a path where nothing is: with the names that are meant perhaps, or that nothing is downloaded."""
    text = path.as_posix()
    if re.match(r"https?:/", text):
        return MissingFileError("this is an address, not a file or folder", path=path, remedy=_DOWNLOAD)
    near = _near(path)
    if path.is_symlink():
        return MissingFileError(
            "this link leads nowhere",
            path=path,
            remedy=f"It names {path.readlink()}: restore that, or name the model itself.",
        )
    if near:
        remedy = f"There is {' and '.join(near)}."
    elif not path.is_absolute() and _REPOSITORY.fullmatch(text) and not path.parent.exists():
        remedy = f"If this is a name on the Hugging Face Hub: {_DOWNLOAD}"
    else:
        remedy = "Check the spelling, and from which folder the command is run."
    return MissingFileError("no such file or folder", path=path, remedy=remedy)


def _near(path: Path) -> list[str]:
    try:
        names = [item.name for _, item in zip(range(_ENTRIES_MAX), path.parent.iterdir(), strict=False)]
    except OSError:
        return []
    names = [name for name in names if path.with_name(name).exists()]
    return [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, names, 2, 0.75)]


def unrecognised(path: Path, readable: Sequence[str], known: Callable[[Path], bool]) -> UnknownFormatError:
    """Return the error for a path that none of the formats ``readable`` recognises; ``known`` tells whether one of them recognises another path."""
    try:
        problem, remedy = _folder(path, known) if path.is_dir() else _file(path)
    except OSError as error:
        problem, remedy = f"cannot be read ({error.strerror})", "Check its permissions."
    if problem.startswith(_UNKNOWN):
        remedy += f" Readable formats: {', '.join(readable)}."
    return UnknownFormatError(problem, path=path, remedy=remedy)


def _file(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "this file is empty", "Download or copy it again."
    for entry in _table()["beginnings"]:
        if head[entry["at"] :].startswith(bytes.fromhex(entry["hex"])):
            return f"this is {entry['is']}", entry["do"]
    for entry in _table()["suffixes"]:
        if path.suffix.lower() in entry["suffixes"]:
            return f"this is {entry['is']}", entry["do"]
    return (
        f"{_UNKNOWN} file, which begins with {head[:4].hex(' ')}",
        "It is of another kind, damaged or encrypted: compare it with its source.",
    )


def _folder(path: Path, known: Callable[[Path], bool]) -> tuple[str, str]:
    items = sorted(item for _, item in zip(range(_ENTRIES_MAX), path.iterdir(), strict=False))
    names = {item.name for item in items}
    if not items:
        return "this folder is empty", "Download the model into it."
    for entry in _table()["folders"]:
        if names.issuperset(entry["has"]):
            return f"this is {entry['is']}", entry["do"]
    models = [item for item in items if item.suffix == ".gguf" and known(item)]
    first = [item for item in models if (part := _PART.fullmatch(item.stem)) is None or int(part["part"]) == 1]
    if models:
        return _one_of("this folder holds GGUF files, which are models by themselves", first or models)
    weights = [item.name for item in items if item.suffix in _WEIGHTS]
    foreign = [item.name for item in items if item.suffix in _FOREIGN]
    if "config.json" in names:
        return _without_weights(weights, foreign)
    if weights:
        which = "params.json" if all(name.startswith("consolidated") for name in weights) else "config.json"
        return f"this folder has weights ({_list(weights)}), but no {which}", f"Copy {which} from where the model came from."  # fmt: skip
    inner = [item for item in (*items, *path.glob("snapshots/*")) if item.is_dir() and known(item)]
    if inner:
        return _one_of("this folder holds no model itself, but folders in it do", inner)
    return f"{_UNKNOWN} folder, which has {_list(sorted(names))}", "Name the folder that holds the model."


def _without_weights(weights: Sequence[str], foreign: Sequence[str]) -> tuple[str, str]:
    found = f", but {_list([*weights, *foreign])}" if weights or foreign else ""
    remedy = "Download the model's weights in safetensors form."
    if weights:
        remedy = "Call torch's weights pytorch_model.bin, if that is what they are."
    return f"this folder has no weights that qconv reads (*.safetensors or pytorch_model*.bin){found}", remedy


def _one_of(problem: str, found: Sequence[Path]) -> tuple[str, str]:
    return problem, f"Name {'it' if len(found) == 1 else 'one of them'}: {_list([str(item) for item in found])}."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("unrecognised.json").read_text(encoding="utf-8"))
    return table
