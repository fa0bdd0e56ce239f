"""Pre-tokenizers of byte-level BPE: how text is cut into words before merges apply.

GGUF stores only a name (``tokenizer.ggml.pre``); ``pretokenizers.json`` holds what each name means, so that a converter can find
the name for a ``tokenizer.json`` and a runtime can cut text by the name. Names are those that llama.cpp accepts.

A pre-tokenizer is a sequence of stages, each of which cuts every piece that the stages before it left:

========================  =====================================================================================
``split`` *pattern*       matches of a regular expression (Oniguruma, Unicode) become pieces of their own
``digits`` *each | runs*  digits (Unicode category N) become pieces, one by one or in runs
``punctuation`` *how*     punctuation becomes pieces, ``isolated`` or in ``contiguous`` runs
``bytes``                 each piece is spelled in GPT-2's byte alphabet (one printable character per UTF-8 byte)
========================  =====================================================================================

The JSON file has ``patterns`` (name to equivalent spellings, the canonical one first), ``rewrites`` (literal replacements that lead
other spellings to the canonical one) and ``pre_tokenizers``; unknown keys are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

__all__ = [
    "PreTokenizer",
    "Stage",
    "canonical_pattern",
    "find_pre_tokenizer",
    "pre_tokenizer_names",
    "pre_tokenizers",
    "to_tokenizer_json",
]

StageKind = Literal["split", "digits", "punctuation", "bytes", "other"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pre-tokenizer.

    Attributes:
        kind: what it does; ``other`` stands for a step of a ``tokenizer.json`` that no known pre-tokenizer has.
        detail: the pattern of ``split`` in its canonical spelling, ``each`` or ``runs``, ``isolated`` or ``contiguous``, empty for
            ``bytes``, the JSON text of ``other``.
    """

    kind: StageKind
    detail: str = ""

    def __str__(self) -> str:
        """The stage as messages show it."""
        return f"{self.kind} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way to cut text, and the names that llama.cpp knows it by.

    Attributes:
        names: the name that is written first, then others that cut text alike.
        stages: the steps in order.
        ignore_merges: whether a word that is a token becomes that token, whatever the merges say.
        clean_spaces: whether llama.cpp drops spaces before punctuation when it turns tokens into text.
        normalizer: the normalizer that tokenizers of the first name have, None for none; GGUF runtimes apply none.
        token: a token that tells this pre-tokenizer from others with the same stages, or None.
        deviation: what llama.cpp is known to cut otherwise than ``stages``, None for nothing.
    """

    names: tuple[str, ...]
    stages: tuple[Stage, ...]
    ignore_merges: bool = False
    clean_spaces: bool = False
    normalizer: str | None = None
    token: str | None = None
    deviation: str | None = None

    @property
    def name(self) -> str:
        """The name to write into a file."""
        return self.names[0]


@cache
def pre_tokenizers() -> tuple[PreTokenizer, ...]:
    """Every known pre-tokenizer, in order of preference where several have the same stages."""
    patterns = _table()["patterns"]
    return tuple(
        PreTokenizer(**{**entry, "names": tuple(entry["names"]), "stages": _stages(entry["stages"], patterns)})
        for entry in _table()["pre_tokenizers"]
    )


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """Return the pre-tokenizer that llama.cpp knows by ``name``, or None."""
    return next((known for known in pre_tokenizers() if name in known.names), None)


def pre_tokenizer_names() -> tuple[str, ...]:
    """Every name that :func:`find_pre_tokenizer` finds, sorted."""
    return tuple(sorted(name for known in pre_tokenizers() for name in known.names))


def canonical_pattern(pattern: str) -> str:
    """Return the canonical spelling of a regular expression, or ``pattern`` itself where it is unknown.

    >>> canonical_pattern("[\\r\\n]") == r"[\\r\\n]"
    True
    """
    for spelling, canonical in _table()["rewrites"]:
        pattern = pattern.replace(spelling, canonical)
    return _spellings().get(pattern, pattern)


def to_tokenizer_json(stages: Iterable[Stage]) -> dict[str, Any]:
    """Return the ``pre_tokenizer`` object of a ``tokenizer.json`` that does what ``stages`` do.

    The tokenizers package reads it, so this is how a runtime cuts text by the name that a GGUF file gives.
    """
    return {"type": "Sequence", "pretokenizers": [_step(stage) for stage in stages]}


def _step(stage: Stage) -> dict[str, Any]:
    if stage.kind == "split":
        return {"type": "Split", "pattern": {"Regex": stage.detail}, "behavior": "Isolated", "invert": False}
    if stage.kind == "digits":
        return {"type": "Digits", "individual_digits": stage.detail == "each"}
    if stage.kind == "punctuation":
        return {"type": "Punctuation", "behavior": stage.detail.capitalize()}
    if stage.kind == "bytes":
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    step: dict[str, Any] = json.loads(stage.detail)
    return step


def _stages(entries: Iterable[Any], patterns: Mapping[str, list[str]]) -> tuple[Stage, ...]:
    stages = []
    for entry in entries:
        if entry == "bytes":
            stages.append(Stage("bytes"))
            continue
        ((kind, detail),) = entry.items()
        stages.append(Stage(kind, patterns[detail][0] if kind == "split" else detail))
    return tuple(stages)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("pretokenizers.json").read_text(encoding="utf-8"))
    return table


@cache
def _spellings() -> Mapping[str, str]:
    return {spelling: spellings[0] for spellings in _table()["patterns"].values() for spelling in spellings}
