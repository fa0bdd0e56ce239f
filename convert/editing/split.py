"""Cutting a GGUF model into parts, and joining parts into one file, with llama.cpp's names and keys.

Nothing is decoded: :mod:`.transfer` moves the bytes. Neither command hides damage. Cutting compares each header with the digest that it
carries, for it is written anew, and carries the tensors' digests over. Joining looks at every part before a byte is written: whether all
are there, belong together, end where they should, and, where they carry digests, have the bytes that were written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...errors import FormatError, OutputExistsError, UsageError, VerificationError
from ...formats.base import OpenContext, WriteOptions
from ...formats.getters import get_integer
from ...formats.gguf.constants import SPLIT_COUNT_KEY
from ...formats.gguf.reader import OpenPart, build_model, open_parts
from ...formats.gguf.verify import PartCheck, RecordedDigests, expected_size, header_digest, read_digests, verify_parts
from ...formats.gguf.writer import lay_out_gguf, lay_out_parts
from .transfer import Transfer, output_tensor

__all__ = ["check_bytes", "plan_merge", "plan_split"]

_MOST_TOLD = 3  # problems in a message


@contextmanager
def plan_split(source: Path, prefix: Path, context: OpenContext, options: WriteOptions) -> Iterator[Transfer]:
    """Yield what cuts the model ``source`` into ``prefix-00001-of-00003.gguf`` and so on; its files are open until the block ends.

    A model that is in parts already is cut anew.

    Raises UsageError where ``options`` set no limit, OutputExistsError where ``prefix`` is a folder, VerificationError where a header differs from its
    digest, and what the reader raises.
    """
    if options.split_max_size is None and options.split_max_tensors is None:
        raise UsageError("say how large a part may be", remedy="Use --max-size 2G, or --max-tensors 128, or both.")
    if prefix.is_dir():
        raise OutputExistsError(
            "the output is a folder",
            path=prefix,
            remedy=f"Name the parts' prefix in it, such as {prefix / source.stem}.",
        )
    with ExitStack() as stack:
        parts = open_parts(source, context.encodings, stack)
        model = build_model(source, parts)
        recorded = [read_digests(header) for _, header in parts]
        for (file, header), digests in zip(parts, recorded, strict=True):
            if digests is not None and header_digest(file, header) != digests.header:
                raise VerificationError(
                    "the header differs from its digest", path=file.path, remedy="Download or convert it again."
                )
        tensors = tuple(model.tensors.values())
        layout = lay_out_parts(prefix, model.metadata, [output_tensor(tensor) for tensor in tensors], options)
        yield Transfer(layout, tensors, model.files, _by_name(parts, recorded), options.digests)


@contextmanager
def plan_merge(
    first: Path, output: Path, context: OpenContext, digests: bool = True
) -> Iterator[tuple[Transfer, Sequence[OpenPart]]]:
    """Yield what joins the parts that begin with ``first``, and the opened parts, for :func:`check_bytes`; they are open until the block ends.

    Every part is there, belongs to the others, and is as long as its tensors need; its bytes have not been looked at.

    Raises UsageError where ``first`` is no part, MissingFileError that names what is missing, FormatError, TruncatedError.
    """
    with ExitStack() as stack:
        parts = open_parts(first, context.encodings, stack)
        if get_integer(parts[0][1].metadata, SPLIT_COUNT_KEY, first) is None:
            raise UsageError(f"{first} is a whole model, no part of one")
        model = build_model(first, parts)
        for part in parts:
            _check_size(part)
        tensors = tuple(model.tensors.values())
        layout = lay_out_gguf(
            output, model.metadata, [output_tensor(tensor) for tensor in tensors], WriteOptions(digests=digests)
        )
        recorded = [read_digests(header) for _, header in parts]
        yield Transfer(layout, tensors, model.files, _by_name(parts, recorded), digests), parts


def check_bytes(
    parts: Sequence[OpenPart], threads: int, progress: Callable[[int], None] | None = None
) -> tuple[PartCheck, ...]:
    """Compare every byte of the parts that carry digests with them; parts without are left out of what is returned.

    ``progress`` is called with the number of bytes just hashed. Raises VerificationError that names what is damaged.
    """
    checks = verify_parts([part for part in parts if read_digests(part[1]) is not None], progress, threads)
    problems = [problem for check in checks for problem in check.problems()]
    if problems:
        more = f", and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
        raise VerificationError(
            f"{'; '.join(problems[:_MOST_TOLD])}{more}; nothing was written", remedy="Download or split it again."
        )
    return checks


def _by_name(parts: Sequence[OpenPart], recorded: Sequence[RecordedDigests | None]) -> Mapping[str, str]:
    """Return the digest of each tensor whose part carries it."""
    return {
        tensor.name: digest
        for (_, header), digests in zip(parts, recorded, strict=True)
        if digests is not None
        for tensor, digest in zip(header.tensors, digests.tensors, strict=True)
    }


def _check_size(part: OpenPart) -> None:
    """Refuse a part with bytes after its last tensor; where one ends too early, its header could not be read."""
    file, header = part
    expected = expected_size(header)
    if file.size > expected:
        raise FormatError(
            f"it has {file.size} bytes, {file.size - expected} more than its tensors take",
            path=file.path,
            offset=expected,
            remedy="Download or copy it again.",
        )
