"""Which weight files make up a checkpoint, and all of their tensors under one roof: safetensors, or torch's ``pytorch_model*.bin``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError, MissingFileError
from ..positional import PositionalFile
from ..stored import StoredTensor
from .json_files import read_json_object
from .safetensors import read_header

__all__ = [
    "CONSOLIDATED",
    "CONSOLIDATED_PICKLES",
    "NO_CHECKPOINT",
    "Checkpoint",
    "WeightFiles",
    "checkpoint_files",
    "open_checkpoint",
]

_LISTED = 8  # names per message
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.(?:safetensors|bin)")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """One form of weight files: what they are called, and what reads one of them."""

    stem: str
    suffix: str
    pattern: str
    read: Callable[[PositionalFile], Mapping[str, StoredTensor]]

    @property
    def single(self) -> str:
        """The name of a file that holds the whole model."""
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        """The name of the list of weight files."""
        return f"{self.single}.index.json"

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Return the files of a folder that can hold a model's weights, by name."""
        found = sorted(path for path in folder.glob(self.pattern) if not path.name.startswith((".", "adapter_")))
        others = tuple(path for path in found if not path.name.startswith("consolidated"))
        return others or tuple(found)

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such files, or a list of them."""
        return bool(self.files(folder)) or (folder / self.index).exists()


def _read_pickled(file: PositionalFile) -> Mapping[str, StoredTensor]:
    from ..pickles import read_pickled_checkpoint  # only old folders need its many modules

    return read_pickled_checkpoint(file).tensors


_SAFETENSORS = WeightFiles("model", ".safetensors", "*.safetensors", lambda file: read_header(file)[0])
_PICKLES = WeightFiles("pytorch_model", ".bin", "pytorch_model*.bin", _read_pickled)
# AutoGPTQ's name for them, with the bits and the group size in it
_GPTQ_PICKLES = WeightFiles("gptq_model", ".bin", "gptq_model*.bin", _read_pickled)
CONSOLIDATED = WeightFiles("consolidated", ".safetensors", "consolidated*.safetensors", _SAFETENSORS.read)
"""Those of Mistral's own form."""
CONSOLIDATED_PICKLES = tuple(
    WeightFiles("consolidated", suffix, f"consolidated*{suffix}", _read_pickled) for suffix in (".pt", ".pth")
)
"""Those of its first releases."""


@dataclass(frozen=True)
class Checkpoint:
    """The open files of a checkpoint.

    Attributes:
        tensors: every tensor by name, file by file in the order of their data.
        files: the weight files, and the index if there is one.
        notes: what the user should know.
        handles: to close.
    """

    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    handles: tuple[PositionalFile, ...]

    def close(self) -> None:
        """Release every file."""
        for handle in self.handles:
            handle.close()


NO_CHECKPOINT = Checkpoint({}, (), (), ())
"""That of a model of which only the vocabulary is asked for."""


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a folder, by name: ``*.safetensors``, or where there is none ``pytorch_model*.bin``."""
    return _SAFETENSORS.files(folder) or _PICKLES.files(folder) or _GPTQ_PICKLES.files(folder)


def open_checkpoint(folder: Path, kind: WeightFiles | None = None) -> Checkpoint:
    """Open the files of a checkpoint and check them against its index; raises FormatError or MissingFileError.

    As in transformers, safetensors come before ``pytorch_model*.bin`` where the caller asks for no ``kind``, and a single file
    (``model.safetensors``) before an index; without either, every file of the kind is read.
    """
    notes: list[str] = []
    if kind is None:
        kind = _SAFETENSORS
        if not _SAFETENSORS.are_in(folder):
            kind = next((it for it in (_PICKLES, _GPTQ_PICKLES) if it.are_in(folder)), _SAFETENSORS)
    index = folder / kind.index
    weight_map: dict[str, str] | None = None
    if (folder / kind.single).exists():
        paths: tuple[Path, ...] = (folder / kind.single,)
        if index.exists():
            notes.append(f"{kind.index} is ignored, since {kind.single} is there too")
        spare = [path.name for path in kind.files(folder) if path.name != kind.single]
        if spare and not index.exists():
            listed = ", ".join(spare[:_LISTED]) + (", …" if len(spare) > _LISTED else "")
            notes.append(f"{listed} {'is' if len(spare) == 1 else 'are'} ignored, since {kind.single} is there too")
    elif index.exists():
        weight_map = _read_index(index, kind)
        paths = tuple(folder / name for name in dict.fromkeys(weight_map.values()))
        others = kind.files(folder)
        if others and not any(path.exists() for path in paths):
            # quantizers copy the index of their source, and name their own files otherwise
            notes.append(f"{index.name} is ignored, since none of the files that it names is there, and others are")
            weight_map, paths = None, others
            _check_parts(folder, paths)
        _demand(f"that {index.name} names", [path for path in paths if not path.exists()])
    else:
        paths = kind.files(folder)
        _check_parts(folder, paths)
    handles: list[PositionalFile] = []
    try:
        tensors: dict[str, StoredTensor] = {}
        for path in paths:
            handles.append(PositionalFile(path))
            for name, stored in kind.read(handles[-1]).items():
                if name in tensors:
                    raise FormatError(
                        f"is in {tensors[name].file.path.name} and again in {path.name}",
                        path=folder,
                        tensor=name,
                        remedy="Remove the file that does not belong to this model.",
                    )
                tensors[name] = stored
        if weight_map is not None:
            _compare(index, weight_map, tensors)
    except BaseException:
        for handle in handles:
            handle.close()
        raise
    files = (*paths, index) if weight_map is not None else paths
    return Checkpoint(tensors, files, tuple(notes), tuple(handles))


def _read_index(path: Path, kind: WeightFiles) -> dict[str, str]:
    weight_map = read_json_object(path, "the list of weight files").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("has no weight_map from tensors to files", path=path, remedy="Download it again.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain(file, kind.suffix):
            raise FormatError(
                f"puts the tensor into {file!r}, which is no name of a {kind.suffix[1:]} file in this folder",
                path=path,
                tensor=name,
                remedy="File names in an index have no folders; do not trust this download.",
            )
    return weight_map


def _is_plain(name: str, suffix: str) -> bool:
    """Whether ``name`` is a file name with the suffix and without folders, on any system."""
    return name.endswith(suffix) and not name.startswith(".") and not set(name) & set('/\\:\0"<>|?*')


def _demand(which: str, missing: list[Path]) -> None:
    if missing:
        names = ", ".join(path.name for path in missing[:_LISTED]) + (", …" if len(missing) > _LISTED else "")
        raise MissingFileError(
            f"{len(missing)} of the weight files {which} {'is' if len(missing) == 1 else 'are'} missing: {names}",
            path=missing[0],
            remedy="Download them into the folder.",
        )


def _check_parts(folder: Path, paths: tuple[Path, ...]) -> None:
    """Demand all parts of files called ``NAME-00001-of-00003.safetensors``; raises MissingFileError."""
    if not paths:
        raise MissingFileError(
            "the folder has no .safetensors file, nor pytorch_model.bin",
            path=folder,
            remedy="Download the model's weights in safetensors form.",
        )
    names = {path.name for path in paths}
    for name in sorted(names):
        if match := _PART.fullmatch(name):
            count = int(match["count"])
            suffix = Path(name).suffix
            missing = [f"{match['stem']}-{part:05d}-of-{count:05d}{suffix}" for part in range(1, count + 1)]
            _demand(f"that belong to {name}", [folder / part for part in missing if part not in names])


def _compare(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse an index that disagrees with its files; raises FormatError."""
    absent = [name for name in weight_map if name not in tensors]
    extra = [name for name in tensors if name not in weight_map]
    moved = [
        name for name, stored in tensors.items() if weight_map.get(name, stored.file.path.name) != stored.file.path.name
    ]
    for names, problem in (
        (absent, "it names tensors that its files lack"),
        (moved, "it names other files than those which hold the tensors"),
        (extra, "its files hold tensors that it does not name"),
    ):
        if names:
            listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            raise FormatError(
                f"{problem}: {listed}",
                path=index,
                remedy=f"The files are of different versions; download them again, or remove {index.name} to read the files as they are.",
            )
