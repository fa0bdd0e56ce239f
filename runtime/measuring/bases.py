"""Base files of either kind: opened by their magic number, refused where they belong to something else, compared with rows of logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, ModelError
from ...formats.positional import PositionalFile
from . import compact_base, logits_file
from .compact_base import CompactBase, TopRows, open_compact_base
from .divergence import Compared, compare, compare_top
from .identity import ModelIdentity, same_lineage
from .logits_file import LogitsFile, open_logits_file
from .windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Base", "check_base", "compare_with_base", "open_base"]

Base = LogitsFile | CompactBase


def open_base(path: Path) -> Base:
    """Open a base file; raises FormatError where it is none, or damaged."""
    file = PositionalFile(path)
    try:
        magic = file.read(0, min(8, file.size))
    finally:
        file.close()
    if magic == logits_file.MAGIC:
        return open_logits_file(path)
    if magic == compact_base.MAGIC:
        return open_compact_base(path)
    raise FormatError(
        "it is no base of log-probabilities", path=path, remedy="Pass a file by --save-logits or --save-base."
    )


def check_base(
    base: Base, vocabulary: int, tokenizer: str, model: ModelIdentity, windows: Windows | None = None
) -> Windows:
    """Return the windows to run against ``base``: its tokens, the evaluated model's BOS in front where the base does not say.

    Args:
        base: the file.
        vocabulary: the evaluated model's number of tokens.
        tokenizer: digest of its tokenizer.
        model: its identity.
        windows: of the text that the user names, cut as the base's are, or None.

    Raises ModelError where the base was made with another vocabulary, tokenizer, model or text.
    """
    if base.vocabulary != vocabulary:
        raise ModelError(
            f"the base has a vocabulary of {base.vocabulary} tokens, the model one of {vocabulary}",
            path=base.path,
            remedy="Make the base with the source of this model.",
        )
    if windows is not None and not np.array_equal(windows.tokens, base.windows.tokens):
        raise ModelError(
            f"the base was made of another text: {_first_difference(windows, base.windows)}",
            path=base.path,
            remedy="Name the text of the base, or none: the base holds its tokens.",
        )
    if isinstance(base, LogitsFile):
        return base.windows
    if base.tokenizer != tokenizer:
        raise ModelError(
            "the base was made with another tokenizer",
            path=base.path,
            remedy="Make the base with the source of this model.",
        )
    if not same_lineage(base.model, model):
        raise ModelError(
            f"the base was made with {base.model.name!r} ({base.model.architecture}), of which the model "
            f"{model.name!r} ({model.architecture}) is no conversion",
            path=base.path,
            remedy="Make the base with the source of this model.",
        )
    return base.windows


def compare_with_base(rows: Floats | TopRows, part: slice, logits: Floats, targets: NDArray[np.integer]) -> Compared:
    """Compare ``part`` of a window's rows with logits, float32 (n, vocabulary), whose right tokens are ``targets`` (n,)."""
    if isinstance(rows, TopRows):
        return compare_top(
            rows.tokens[part], rows.log_probabilities[part], rows.tail[part], rows.target[part], logits, targets
        )
    return compare(rows[part], logits, targets)


def _first_difference(windows: Windows, base: Windows) -> str:
    """Say where two texts part."""
    if windows.tokens.shape != base.tokens.shape:
        return f"{len(base.tokens)} windows of {base.context} tokens, not {len(windows.tokens)} of {windows.context}"
    window, place = (int(axis[0]) for axis in np.nonzero(windows.tokens != base.tokens))
    return (
        f"window {window} has token {base.tokens[window, place]} in place {place}, not {windows.tokens[window, place]}"
    )
