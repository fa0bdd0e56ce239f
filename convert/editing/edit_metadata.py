"""Changing the metadata of a GGUF file: in place where the new header fits before the tensor data, else by an atomic rewrite.

What the file says about its own bytes stays true: digests of tensors are kept, that of the header is made anew. A damaged header is not
given a new digest, and keys whose change would break the file, or its ties to others, need ``force``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np

from ...errors import BusyError, DiskFullError, FormatError, QconvError, UsageError, VerificationError
from ...formats.getters import get_integer, get_strings
from ...formats.gguf.constants import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, DIGEST_PREFIX, PAD_KEY, SPLIT_NO_KEY, padded
from ...formats.gguf.edit import edit_journal, finish_edit, new_header, write_in_place
from ...formats.gguf.header import Header, parse_header
from ...formats.gguf.verify import header_digest, read_digests
from ...formats.metadata import Field, ValueType
from ...formats.positional import PositionalFile
from ...formats.whole_file import whole_file
from ...plugins.registry import nearest
from ...quantizers.base import Encoding
from ..output import output_error

try:
    import fcntl
except ImportError:  # Windows keeps others from replacing a file that is open
    fcntl = None  # type: ignore[assignment]  # the module is absent there

__all__ = ["Change", "Edited", "edit_metadata", "protected", "recover", "same_value"]

_PIECE: Final = 8 << 20
_PROTECTED: Final = (
    ("general.architecture", "readers choose names and shapes of all tensors by it"),
    ("general.alignment", "readers look for the tensors where it says"),
    ("general.type", "readers take the file for something else by it"),
    ("split.*", "parts find each other by it"),
    ("*.block_count", "it must be the number of blocks whose tensors are in the file"),
    ("qconv.receipt.*", "it says what was measured on this file"),
)
_COMPUTED: Final = (f"{DIGEST_PREFIX}*", PAD_KEY)


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs: None stands for its absence."""

    key: str
    before: Field | None
    after: Field | None


@dataclass(frozen=True)
class Edited:
    """What an edit did, or would do.

    Attributes:
        path: the file, links resolved.
        changes: keys that differ, in the order of the new header.
        in_place: whether the header is written over; otherwise the whole file is written anew.
        bytes_written: of the header, or of the whole file; 0 where nothing changes.
        notes: what the user should know.
    """

    path: Path
    changes: tuple[Change, ...]
    in_place: bool
    bytes_written: int
    notes: tuple[str, ...]


def protected(key: str) -> str | None:
    """Return why ``key`` should not be changed, or None where nothing speaks against it."""
    return next((reason for pattern, reason in _PROTECTED if fnmatchcase(key, pattern)), None)


def same_value(one: Field | None, other: Field | None) -> bool:
    """Whether two values have the same type and are equal; NaN equals itself."""
    if one is None or other is None or one.type is not other.type or one.element is not other.element:
        return one is other
    if isinstance(one.value, np.ndarray) and isinstance(other.value, np.ndarray):
        return np.array_equal(one.value, other.value, equal_nan=one.value.dtype.kind == "f")
    if one.is_array and other.is_array:
        return list(one.value) == list(other.value)  # type: ignore[arg-type]  # arrays of strings are sequences
    if isinstance(one.value, float) and isinstance(other.value, float):
        dtype = np.float32 if one.type is ValueType.FLOAT32 else np.float64  # as precise as a file holds it
        with np.errstate(over="ignore"):
            return bool(np.array_equal(dtype(one.value), dtype(other.value), equal_nan=True))
    return one.value == other.value


def edit_metadata(
    path: Path,
    assign: Callable[[Mapping[str, Field]], Mapping[str, Field]],
    remove: Sequence[str],
    encodings: Mapping[str, Encoding],
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Edited:
    """Set the keys that ``assign`` returns, given the metadata as they are, and remove others.

    After a kill at any moment the file has all of the old metadata or all of the new, if need be once ``qconv metadata`` has looked at it
    again (:mod:`qconv.formats.gguf.edit`). ``progress`` is called with the bytes moved by a rewrite.

    Raises UsageError for a key that is protected, without ``force``, or computed, or absent though it is to be removed; VerificationError for a header
    that differs from its digest; BusyError, DiskFullError, FormatError.
    """
    path = path.resolve()
    recover(path)
    with closing(PositionalFile(path)) as file, _locked(path):
        old = parse_header(file, encodings)
        _check_file(file, old, force)
        assigned = assign(old.metadata)
        changes = _changes(old.metadata, assigned, remove, force)
        metadata = {key: field for key, field in {**old.metadata, **assigned}.items() if key not in remove}
        if not force:
            _check_vocabulary(old, metadata)
        notes = _notes(old.metadata, changes)
        if not changes:
            return Edited(path, (), True, 0, notes)
        header = new_header(old, metadata, encodings)
        size = len(header) + _data_bytes(old, metadata)
        in_place = len(header) == old.data_start and size == old.size
        edited = Edited(path, changes, in_place, len(header) if in_place else size, notes)
        if dry_run:
            return edited
        try:
            if in_place:
                write_in_place(path, header)
            else:
                _rewrite(path, header, size, file, old, progress)
        except QconvError:
            raise
        except OSError as error:
            raise output_error(error, path) from error
    return edited


def recover(path: Path) -> None:
    """Finish an edit that a kill interrupted, if there is one; raises BusyError where it is still at work."""
    if path.is_file() and edit_journal(path).exists():
        with _locked(path):
            finish_edit(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second edit out; raises BusyError where one is at work, FormatError where the file may not be written."""
    try:
        file = path.open("r+b")
    except PermissionError:
        raise FormatError("you may not write this file", path=path, remedy="Change its permissions.") from None
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another process is changing this file", path=path, remedy="Wait for it.") from None
        yield


def _check_file(file: PositionalFile, header: Header, force: bool) -> None:
    """Refuse a file whose header cannot be written anew."""
    path = file.path
    if header.byte_order == ">":
        raise FormatError(
            "big-endian files are only read", path=path, remedy="Convert it first: qconv quantize IN OUT --type copy."
        )
    digests = read_digests(header)
    if digests is not None and header_digest(file, header) != digests.header and not force:
        raise VerificationError(
            "the header differs from its digest, and a change would hide that",
            path=path,
            remedy="Download or convert it again; --force takes the header for what it should be.",
        )
    if (get_integer(header.metadata, SPLIT_NO_KEY, path) or 0) > 0 and not force:
        raise FormatError("this is a later part of a model; the metadata are in the first", path=path)


def _changes(
    old: Mapping[str, Field], assigned: Mapping[str, Field], remove: Sequence[str], force: bool
) -> tuple[Change, ...]:
    for key in remove:
        if key not in old:
            raise UsageError(f"there is no key {key}", remedy=nearest(key, old))
    changes = [Change(key, old.get(key), field) for key, field in assigned.items() if key not in remove]
    changes += [Change(key, old[key], None) for key in remove]
    changes = [change for change in changes if not same_value(change.before, change.after)]
    for change in changes:
        if any(fnmatchcase(change.key, pattern) for pattern in _COMPUTED):
            raise UsageError(f"{change.key} is computed when the file is written, and cannot be changed")
        reason = protected(change.key)
        if reason is not None and not force:
            raise UsageError(f"{change.key} should not be changed: {reason}", remedy="--force changes it all the same.")
    return tuple(changes)


def _check_vocabulary(header: Header, metadata: Mapping[str, Field]) -> None:
    """Refuse a vocabulary of another size than the embedding table has rows."""
    tokens = get_strings(metadata, "tokenizer.ggml.tokens", header.path)
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if tokens is not None and rows is not None and len(tokens) != rows:
        if same_value(metadata["tokenizer.ggml.tokens"], header.metadata.get("tokenizer.ggml.tokens")):
            return  # that is how the file came
        raise UsageError(
            f"the vocabulary has {len(tokens):,} tokens, but token_embd.weight {rows:,} rows",
            remedy="Take the tokenizer of the same model; --force sets it all the same.",
        )


def _notes(old: Mapping[str, Field], changes: Sequence[Change]) -> tuple[str, ...]:
    measured = ("tokenizer.", f"{old['general.architecture'].value}." if "general.architecture" in old else "general.")
    if "qconv.receipt.passed" in old and any(change.key.startswith(measured) for change in changes):
        return ("the receipt in the file (qconv.receipt.*) speaks of the metadata as they were; validate it again",)
    return ()


def _data_bytes(old: Header, metadata: Mapping[str, Field]) -> int:
    """Return the bytes behind the header: with another alignment there is other padding behind the last tensor."""
    alignment = get_integer(metadata, ALIGNMENT_KEY, old.path) or DEFAULT_ALIGNMENT
    if alignment == old.alignment:
        return max(0, old.size - old.data_start)
    end = max((tensor.offset + tensor.nbytes for tensor in old.tensors), default=old.data_start)
    return padded(end - old.data_start, alignment)


def _rewrite(
    path: Path, header: bytes, size: int, file: PositionalFile, old: Header, progress: Callable[[int], None]
) -> None:
    """Write the file anew beside itself and rename it into place; the system copies the data where it can."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DiskFullError(
            f"the file must be written anew, which takes {size:,} bytes; {free:,} are free",
            path=path,
            remedy="Free some space.",
        )
    with whole_file(path) as out:
        if hasattr(os, "fchmod"):
            os.fchmod(out.fileno(), path.stat().st_mode & 0o7777)
        out.write(header)
        out.flush()
        count = min(size - len(header), max(0, old.size - old.data_start))
        for start in range(0, count, _PIECE):
            piece = min(_PIECE, count - start)
            if not file.copy_into(out.fileno(), len(header) + start, old.data_start + start, piece):
                out.seek(len(header) + start)
                out.write(file.read(old.data_start + start, piece))
                out.flush()
            progress(piece)
        out.truncate(size)
