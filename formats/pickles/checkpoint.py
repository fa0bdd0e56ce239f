"""torch's checkpoint files, both of their forms, as descriptions of tensors: zip archives (torch 1.6 and later) and plain pickles before.

A zip archive holds ``P/data.pkl``, a pickle of the object that was saved, and ``P/data/K``, the elements of storage K. The older form is five pickles
(a magic number, a version, sizes of C's types, the object, a list of storage keys), then per key a 64-bit length and the elements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...errors import FormatError, TruncatedError
from ..positional import PositionalFile
from ..stored import StoredTensor
from ..strided import contiguous_strides
from .allowed import ITEM_BYTES
from .archive import Member, read_archive
from .machine import run_pickle
from .rebuild import Storage, TensorView
from .stream import Budget, PickleStream

__all__ = ["PickledCheckpoint", "is_pickled_checkpoint", "read_pickled_checkpoint"]

PICKLE_MAX = 256 << 20  # bytes
NAME_MAX = 1 << 10  # characters

_ZIP = b"PK\3\4"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickled magic number
_LEGACY_VERSION = 1001
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")  # keys under which training programs put the weights
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class PickledCheckpoint:
    """What a file holds.

    Attributes:
        tensors: by name, in the order of the pickle; several may share bytes.
        container: ``zip`` or ``legacy``.
        notes: what the user should know.
    """

    tensors: Mapping[str, StoredTensor]
    container: str
    notes: tuple[str, ...] = ()


def is_pickled_checkpoint(path: Path) -> bool:
    """Whether the file starts as torch's checkpoints do; False where it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(512)
            if head.startswith(_ZIP) and b"/data.pkl" not in head:  # packed again by another program, perhaps
                size = file.seek(0, 2)
                file.seek(max(0, size - (1 << 20)))
                return b"/data.pkl" in file.read()
    except OSError:
        return False
    return head.startswith((_ZIP, _LEGACY))


def read_pickled_checkpoint(file: PositionalFile) -> PickledCheckpoint:
    """Return the tensors of a checkpoint; no element is read, and nothing in the file is run.

    Raises FormatError, with its place, for anything but plain weights; TruncatedError where the file ends early.
    """
    head = file.read(0, min(file.size, 32))
    if head.startswith(_ZIP):
        value, places = _read_zip(file)
        container = "zip"
    elif head.startswith(_LEGACY):
        value, places = _read_legacy(file)
        container = "legacy"
    else:
        remedy = "Run 'git lfs pull' in the folder, or download the file itself."
        if not head.startswith(_LFS_POINTER):
            remedy = "torch 1.6 and later write a zip archive, earlier ones a pickle that starts with 80 02 8a 0a."
        raise FormatError("this is no checkpoint of torch's", path=file.path, offset=0, remedy=remedy)
    found, notes = _state(file, value)
    tensors = {name: _stored(file, name, view, places) for name, view in found.items()}
    return PickledCheckpoint(tensors, container, notes)


# --- containers -------------------------------------------------------------------------------------------------------------------


def _read_zip(file: PositionalFile) -> tuple[object, dict[str, int]]:
    """Return the saved object, and the position of every storage that it mentions."""
    members = read_archive(file)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FormatError(
            f"the zip archive holds {len(pickles)} files data.pkl, a checkpoint of torch's has one",
            path=file.path,
            remedy="Is this a checkpoint?",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    stray = next((name for name in members if not name.startswith(prefix)), None)
    if stray is not None:
        raise FormatError(
            f"the member {stray!a} of the zip archive lies outside of {prefix!a}",
            path=file.path,
            remedy="Download it again; if it stays so, do not trust it.",
        )
    if f"{prefix}constants.pkl" in members:
        raise FormatError(
            "this is a TorchScript program, not a checkpoint of weights",
            path=file.path,
            remedy="Save the model's state_dict() instead.",
        )
    order = members.get(f"{prefix}byteorder")
    if order is not None and (order.size != 6 or file.read(order.offset, 6) != b"little"):
        raise FormatError(
            "the elements are not in little-endian order",
            path=file.path,
            offset=order.offset,
            remedy="Save it again on a little-endian machine.",
        )
    pickle = members[pickles[0]]
    if pickle.size > PICKLE_MAX:
        raise FormatError(
            f"its pickle of {pickle.size} bytes is longer than any checkpoint of weights needs",
            path=file.path,
            offset=pickle.offset,
        )
    storages: dict[str, Storage] = {}
    stream = PickleStream(file, pickle.offset, pickle.offset + pickle.size)
    value = run_pickle(stream, Budget(file), storages)
    if stream.position != pickle.offset + pickle.size:
        stream.refuse("bytes follow the pickle")
    return value, {key: _place(file, members, prefix, storage) for key, storage in storages.items()}


def _place(file: PositionalFile, members: Mapping[str, Member], prefix: str, storage: Storage) -> int:
    member = members.get(f"{prefix}data/{storage.key}")
    if member is None:
        raise FormatError(
            f"storage {storage.key}, which the pickle names, is not in the archive",
            path=file.path,
            remedy="The file is incomplete; download it again.",
        )
    if member.size != storage.nbytes:
        raise FormatError(
            f"storage {storage.key} has {member.size} bytes, the pickle gives {storage.nbytes}",
            path=file.path,
            offset=member.offset,
            remedy="The file is damaged; download it again.",
        )
    return member.offset


def _read_legacy(file: PositionalFile) -> tuple[object, dict[str, int]]:
    """Return the saved object, and the position of every storage that it mentions."""
    stream = PickleStream(file, len(_LEGACY), min(file.size, PICKLE_MAX))
    budget = Budget(file)
    storages: dict[str, Storage] = {}
    if run_pickle(stream, budget, {}) != _LEGACY_VERSION:
        stream.refuse(f"its version is not {_LEGACY_VERSION}")
    system = run_pickle(stream, budget, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        stream.refuse("the elements are not said to be in little-endian order")
    value = run_pickle(stream, budget, storages, with_views=True)
    keys = run_pickle(stream, budget, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        stream.refuse("the list of storages does not name those that the tensors view")
    if len(keys) != len(storages):
        stream.refuse("the list of storages names one twice")
    places = {}
    position = stream.position
    for key in keys:
        length = int.from_bytes(file.read(position, 8), "little")
        storage = storages[key]
        if length != storage.length:
            stream.refuse(f"storage {key} has {length} elements, its tensors give {storage.length}", position)
        places[key] = position + 8
        position += 8 + storage.nbytes
        if position > file.size:
            raise TruncatedError(
                f"storage {key} ends at byte {position}, the file at {file.size}",
                path=file.path,
                offset=places[key],
                remedy="The download broke off; download the file again.",
            )
    if position != file.size:
        stream.refuse(f"{file.size - position} bytes follow the last storage", position)
    return value, places


# --- tensors ----------------------------------------------------------------------------------------------------------------------


def _state(file: PositionalFile, value: object) -> tuple[dict[str, TensorView], tuple[str, ...]]:
    """Return the dictionary of tensors that was saved, by itself or inside of what a training program keeps."""
    if isinstance(value, dict):
        for candidate in (value, *(value.get(key) for key in _WRAPPERS)):
            if isinstance(candidate, dict):
                found = {name: view for name, view in candidate.items() if isinstance(view, TensorView)}
                if found or not value:
                    left = tuple(name for name in candidate if name not in found)
                    return found, (_left_note(file.path, left),) if left else ()
    raise FormatError(
        "the file holds no dictionary of tensors",
        path=file.path,
        remedy=f"Save the model's state_dict(), by itself or under one of the keys {', '.join(_WRAPPERS)}.",
    )


def _left_note(path: Path, names: tuple[str, ...]) -> str:
    shown = ", ".join(re.sub(r"[^ -~]", "?", name[:60]) for name in names[:5]) + (", …" if len(names) > 5 else "")
    return f"{path.name} holds besides tensors: {shown}; these are left out"


def _stored(file: PositionalFile, name: str, view: TensorView, places: Mapping[str, int]) -> StoredTensor:
    if not name or len(name) > NAME_MAX:
        raise FormatError(f"a tensor's name has {len(name)} characters, 1 to {NAME_MAX} are accepted", path=file.path)
    item = ITEM_BYTES[view.dtype]
    elements = prod(view.shape)
    usual = contiguous_strides(view.shape)
    # an axis of one element is never stepped along, and nothing is in an empty tensor
    steps = zip(view.shape, view.strides, usual, strict=True)
    contiguous = not elements or all(size == 1 or stride == wanted for size, stride, wanted in steps)
    return StoredTensor(
        name,
        view.dtype,
        view.shape,
        places[view.storage.key] + view.offset * item,
        elements * item,
        file,
        None if contiguous else view.strides,
    )
