"""Where an importance matrix comes from: keys ``qconv.imatrix.*`` of its GGUF form.

=============================== ==========================================================================
``qconv.imatrix.models``        SHA-256 of each model that it was measured on (:mod:`qconv.runtime.measuring.identity`)
``qconv.imatrix.tokenizer``     SHA-256 of the tokenizer
``qconv.imatrix.texts``         SHA-256 of each text, in the order of ``imatrix.datasets``
``qconv.imatrix.bos``           ``left out``, ``kept`` or ``none``: what happened to the row of the first token
=============================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from .base import OpenContext
from .getters import get_string, get_strings
from .gguf import detect_gguf, open_gguf
from .metadata import Field, string, strings

__all__ = ["Provenance", "merge_provenance", "read_provenance"]

_PREFIX = "qconv.imatrix."


@dataclass(frozen=True)
class Provenance:
    """The keys of the module's table."""

    models: tuple[str, ...]
    tokenizer: str
    texts: tuple[str, ...]
    bos: str

    def fields(self) -> dict[str, Field]:
        """Return them as metadata."""
        return {
            _PREFIX + "models": strings(self.models),
            _PREFIX + "tokenizer": string(self.tokenizer),
            _PREFIX + "texts": strings(self.texts),
            _PREFIX + "bos": string(self.bos),
        }


def read_provenance(path: Path, context: OpenContext) -> Provenance | None:
    """Return the provenance of a file, None for one of another tool or form; raises FormatError for keys of a wrong type."""
    if not detect_gguf(path):
        return None
    with open_gguf(path, context) as model:
        tokenizer = get_string(model.metadata, _PREFIX + "tokenizer", path)
        bos = get_string(model.metadata, _PREFIX + "bos", path)
        if tokenizer is None or bos is None:
            return None
        return Provenance(
            tuple(get_strings(model.metadata, _PREFIX + "models", path) or ()),
            tokenizer,
            tuple(get_strings(model.metadata, _PREFIX + "texts", path) or ()),
            bos,
        )


def merge_provenance(named: Sequence[tuple[str, Provenance | None]]) -> Provenance | None:
    """Return the provenance of a sum, None where any part has none; ``named`` gives each part's name for messages.

    Raises ModelError for parts of different tokenizers, or of which only some left BOS out: their sum would mean nothing.
    """
    known = [(name, it) for name, it in named if it is not None]
    for name, it in known[1:]:
        for what, mine, theirs in (
            ("tokenizers", it.tokenizer, known[0][1].tokenizer),
            ("treatments of BOS", it.bos, known[0][1].bos),
        ):
            if mine != theirs:
                raise ModelError(
                    f"{name} and {known[0][0]} were measured with different {what}",
                    remedy="Merge only importance matrices of one model, measured alike.",
                )
    if len(known) < len(named) or not known:
        return None
    parts = [it for _, it in known]
    return Provenance(
        tuple(dict.fromkeys(digest for it in parts for digest in it.models)),
        parts[0].tokenizer,
        tuple(dict.fromkeys(digest for it in parts for digest in it.texts)),
        parts[0].bos,
    )
