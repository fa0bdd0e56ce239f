"""Find any flipped bit: compare every byte of a GGUF model with the digests that it carries.

Header and tensors have digests (:mod:`.writer` describes the keys); every other byte must be zero, and the file must end where its
last tensor's padding does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import final

from ...errors import VerificationError
from ...quantizers.base import Encoding
from ...quantizers.catalog import BUILT_IN
from ..getters import get_string, get_strings
from ..positional import PositionalFile
from . import constants as c
from .header import Header, TensorRecord
from .reader import OpenPart, open_parts

__all__ = [
    "PartCheck",
    "RecordedDigests",
    "TensorCheck",
    "VerifyReport",
    "expected_size",
    "header_digest",
    "read_digests",
    "verify_gguf",
    "verify_parts",
]

_SLAB = 2**22


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """Whether the bytes of one tensor have the digest recorded for them."""

    name: str
    nbytes: int
    ok: bool


@dataclass(frozen=True, slots=True)
class PartCheck:
    """What was found in one file.

    Attributes:
        path: the file.
        header_ok: whether the bytes before the data section have their recorded digest.
        padding_ok: whether all bytes that belong to no tensor are zero.
        size_ok: whether the file ends where it should.
        tensors: one check per tensor, in file order.
    """

    path: Path
    header_ok: bool
    padding_ok: bool
    size_ok: bool
    tensors: tuple[TensorCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return self.header_ok and self.padding_ok and self.size_ok and all(tensor.ok for tensor in self.tensors)

    def problems(self) -> Iterator[str]:
        """One sentence per thing that is wrong, in file order."""
        if not self.header_ok:
            yield f"{self.path}: the header differs from its digest"
        for tensor in self.tensors:
            if not tensor.ok:
                yield f"{self.path}: tensor {tensor.name} differs from its digest"
        if not self.padding_ok:
            yield f"{self.path}: padding between tensors is not zero"
        if not self.size_ok:
            yield f"{self.path}: the file does not end where its last tensor does"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The checks of all parts of a model, ``path`` being the first."""

    path: Path
    parts: tuple[PartCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte of every part is as it was written."""
        return all(part.ok for part in self.parts)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data with stable keys, for ``--json``."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "parts": [
                {
                    "path": str(part.path),
                    "ok": part.ok,
                    "header_ok": part.header_ok,
                    "padding_ok": part.padding_ok,
                    "size_ok": part.size_ok,
                    "tensors": [{"name": t.name, "bytes": t.nbytes, "ok": t.ok} for t in part.tensors],
                }
                for part in self.parts
            ],
        }

    def problems(self) -> tuple[str, ...]:
        """One sentence per thing that is wrong, in file order."""
        return tuple(problem for part in self.parts for problem in part.problems())


def verify_gguf(
    path: Path,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
    encodings: Mapping[str, Encoding] | None = None,
) -> VerifyReport:
    """Hash all parts of the model at ``path`` and compare.

    Args:
        path: a model's only file, or its first part.
        progress: called with the number of bytes just hashed, by one thread at a time, though not always the same.
        threads: how many tensors are hashed at once; None takes one per processor.
        encodings: the encodings that tensors may have, by name; None takes the built-in ones.

    Raises VerificationError where a part carries no digests, FormatError where damage leaves a header unreadable.
    """
    known = {encoding.name: encoding for encoding in BUILT_IN} if encodings is None else encodings
    with ExitStack() as stack:
        return VerifyReport(path, verify_parts(open_parts(path, known, stack), progress, threads))


def verify_parts(
    parts: Sequence[OpenPart], progress: Callable[[int], None] | None = None, threads: int | None = None
) -> tuple[PartCheck, ...]:
    """Hash parts that :func:`open_parts` opened; arguments and errors are those of :func:`verify_gguf`."""
    report = _Progress(progress)
    with ExitStack() as stack:
        recorded = [_present(header) for _, header in parts]
        pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
        stack.callback(pool.shutdown, cancel_futures=True)
        # The longest first, so that no thread starts a long one when the others are done.
        jobs = sorted(
            ((file, tensor) for file, header in parts for tensor in header.tensors),
            key=lambda job: job[1].nbytes,
            reverse=True,
        )
        found = dict(
            zip((job[1].name for job in jobs), pool.map(lambda job: _hash(job[0], job[1], report), jobs), strict=True)
        )
        return tuple(_check(*part, digests, found) for part, digests in zip(parts, recorded, strict=True))


@dataclass(frozen=True, slots=True)
class RecordedDigests:
    """The digests that a part carries: its header's, and its tensors' in file order."""

    header: str
    tensors: tuple[str, ...]


def read_digests(header: Header) -> RecordedDigests | None:
    """Return the digests that a part carries, None where it has none; raises VerificationError where they are damaged."""
    algorithm = get_string(header.metadata, c.DIGEST_ALGORITHM_KEY, header.path)
    own = get_string(header.metadata, c.DIGEST_HEADER_KEY, header.path)
    tensors = get_strings(header.metadata, c.DIGEST_TENSORS_KEY, header.path)
    if algorithm is None and own is None and tensors is None:
        return None
    if algorithm != c.DIGEST_ALGORITHM or own is None or len(own) != c.HEX_DIGITS or tensors is None:
        raise VerificationError("the digests that the file should carry are incomplete or damaged", path=header.path)
    if len(tensors) != len(header.tensors):
        raise VerificationError(
            f"the file carries digests of {len(tensors)} tensors, but has {len(header.tensors)}", path=header.path
        )
    return RecordedDigests(own, tuple(tensors))


def _present(header: Header) -> RecordedDigests:
    found = read_digests(header)
    if found is None:
        raise VerificationError(
            "the file carries no digests, so there is nothing to compare its bytes with",
            path=header.path,
            remedy="Files that qconv writes carry them: convert or quantize the model again.",
        )
    return found


def _check(file: PositionalFile, header: Header, recorded: RecordedDigests, found: Mapping[str, str]) -> PartCheck:
    return PartCheck(
        path=file.path,
        header_ok=header_digest(file, header) == recorded.header,
        padding_ok=all(_is_zero(file, start, stop) for start, stop in _gaps(header)),
        size_ok=file.size == expected_size(header),
        tensors=tuple(
            TensorCheck(tensor.name, tensor.nbytes, found[tensor.name] == digest)
            for tensor, digest in zip(header.tensors, recorded.tensors, strict=True)
        ),
    )


def header_digest(file: PositionalFile, header: Header) -> str:
    """Return the digest that a header with digests should carry."""
    data = bytearray(file.read(0, min(header.data_start, file.size)))
    start = header.value_offsets[c.DIGEST_HEADER_KEY] + 8  # behind the string's length
    data[start : start + c.HEX_DIGITS] = b"0" * c.HEX_DIGITS
    return sha256(data).hexdigest()


def _hash(file: PositionalFile, tensor: TensorRecord, report: _Progress) -> str:
    digest = sha256()
    slab = memoryview(bytearray(min(tensor.nbytes, _SLAB)))
    for start in range(0, tensor.nbytes, _SLAB):
        piece = slab[: min(_SLAB, tensor.nbytes - start)]
        file.read_into(piece, tensor.offset + start, tensor.name)
        digest.update(piece)
        report.add(len(piece))
    return digest.hexdigest()


def _gaps(header: Header) -> Iterator[tuple[int, int]]:
    """Stretches of the data section that belong to no tensor, up to the end of the file."""
    position = header.data_start
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
        yield position, tensor.offset
        position = tensor.offset + tensor.nbytes
    yield position, header.size


def _is_zero(file: PositionalFile, start: int, stop: int) -> bool:
    return all(not any(file.read(at, min(_SLAB, stop - at))) for at in range(start, stop, _SLAB))


def expected_size(header: Header) -> int:
    """Return the bytes of a whole file with this header, padding after the last tensor included."""
    end = max((tensor.offset + tensor.nbytes for tensor in header.tensors), default=header.data_start)
    return c.padded(end, header.alignment)


@final
class _Progress:
    """Calls the user's function from one thread at a time."""

    def __init__(self, call: Callable[[int], None] | None) -> None:
        self._call = call
        self._lock = Lock()

    def add(self, count: int) -> None:
        """Report ``count`` more bytes."""
        if self._call is not None:
            with self._lock:
                self._call(count)
