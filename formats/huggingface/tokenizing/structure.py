"""Identify the pre-tokenizer of a byte-level BPE ``tokenizer.json`` by its structure: regular expressions, digits, punctuation.

No token ids are compared, so a fine-tune with more tokens, or another release of a library, is recognised as what it is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from ...pretokenizers import (
    PreTokenizer,
    Stage,
    canonical_pattern,
    find_pre_tokenizer,
    pre_tokenizer_names,
    pre_tokenizers,
)
from .files import expect

__all__ = ["Structure", "chosen_pre_tokenizer", "first_unreachable", "identify_pre_tokenizer", "read_structure"]

_GPT2_STAGE = Stage(
    "split", canonical_pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
)
_HARMLESS_NORMALIZERS = ("NFC",)


@dataclass(frozen=True)
class Structure:
    """What a ``tokenizer.json`` does to text before its model sees it.

    Attributes:
        stages: the pre-tokenizer's steps, in canonical form.
        normalizers: the normalizer's steps, sequences resolved.
        adds_space: whether ``ByteLevel`` puts a space in front of text.
    """

    stages: tuple[Stage, ...]
    normalizers: tuple[Mapping[str, Any], ...]
    adds_space: bool

    @property
    def is_byte_level(self) -> bool:
        """Whether text is spelled in GPT-2's byte alphabet."""
        return Stage("bytes") in self.stages


def read_structure(tokenizer: Mapping[str, Any], path: Path) -> Structure:
    """Return the structure of the ``tokenizer.json`` in ``path``; raises FormatError where it is malformed."""
    stages: list[Stage] = []
    adds_space = False
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer", path):
        stages += _stages(step)
        adds_space |= step.get("type") == "ByteLevel" and step.get("add_prefix_space") is True
    normalizers = tuple(_steps(tokenizer.get("normalizer"), "normalizers", "normalizer", path))
    return Structure(tuple(stages), normalizers, adds_space)


def identify_pre_tokenizer(
    structure: Structure,
    path: Path,
    *,
    ignore_merges: bool,
    clean_spaces: bool | None,
    tokens: Collection[str],
    added: Collection[str],
    merges: Sequence[tuple[str, str]],
) -> PreTokenizer:
    """Return the known pre-tokenizer that does what ``structure`` does.

    Among several with equal stages, the one wins whose marking token is in ``tokens`` or ``added`` and whose normalizer and ``clean_spaces``
    (``clean_up_tokenization_spaces``, None where it is not said) agree. ``ignore_merges`` has to agree, unless it makes no difference:
    unless some token cannot be reached by ``merges``. Raises TokenizerError naming what was found, the nearest known
    pre-tokenizer and the way out.
    """
    foreign = [step for step in structure.normalizers if step.get("type") not in _HARMLESS_NORMALIZERS]
    if foreign:
        raise TokenizerError(
            f"its normalizer does what no GGUF runtime does: {json.dumps(foreign, ensure_ascii=False)[:200]}",
            path=path,
            remedy=_remedy("write the file in spite of that", None),
        )
    alike = [known for known in pre_tokenizers() if known.stages == structure.stages]
    if not alike:
        raise _unknown(structure, path)
    fitting = [known for known in alike if known.ignore_merges == ignore_merges]
    if not fitting:
        unreachable = first_unreachable((token for token in tokens if token not in added), merges)
        if unreachable is not None:
            raise TokenizerError(
                f"its pre-tokenizer cuts text as {alike[0].name} does, but ignore_merges is {ignore_merges}, and that matters: "
                f"merges do not lead to the token {unreachable!r}",
                path=path,
                remedy=_remedy("accept other tokens", alike[0]),
            )
        fitting = alike
    normalizer = structure.normalizers[0].get("type") if structure.normalizers else None

    def agreement(known: PreTokenizer) -> tuple[bool, int]:
        return (
            known.token is not None,
            (known.normalizer == normalizer) + (clean_spaces is not None and known.clean_spaces == clean_spaces),
        )

    present = [known for known in fitting if known.token is None or known.token in tokens or known.token in added]
    return max(present, key=agreement)


def chosen_pre_tokenizer(name: str, path: Path) -> PreTokenizer:
    """Return the pre-tokenizer that the user chose by ``name``; raises TokenizerError listing the names there are."""
    known = find_pre_tokenizer(name)
    if known is None:
        near = difflib.get_close_matches(name, pre_tokenizer_names(), 1)
        raise TokenizerError(
            f"there is no pre-tokenizer {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}",
            path=path,
            remedy=f"Choose one of: {', '.join(pre_tokenizer_names())}.",
        )
    return replace(known, names=(name,))


def _steps(value: object, children: str, what: str, path: Path) -> Iterable[Mapping[str, Any]]:
    if value is None:
        return
    step = expect(value, dict, what, path)
    if step.get("type") == "Sequence":
        for child in expect(step.get(children), list, f"{what}.{children}", path):
            yield from _steps(child, children, what, path)
    else:
        yield step


def _stages(step: Mapping[str, Any]) -> tuple[Stage, ...]:
    kind = step.get("type")
    if kind == "ByteLevel":
        return (Stage("bytes"),) if step.get("use_regex") is False else (_GPT2_STAGE, Stage("bytes"))
    if kind == "Digits":
        return (Stage("digits", "each" if step.get("individual_digits") is True else "runs"),)
    if kind == "Punctuation":
        return (Stage("punctuation", str(step.get("behavior", "Isolated")).lower()),)
    pattern = step.get("pattern")
    if kind == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        regex = canonical_pattern(pattern["Regex"])
        digits = {r"\p{N}": "each", r"\p{N}+": "runs"}.get(regex)
        if step.get("behavior") == "Isolated":
            return (Stage("digits", digits) if digits else Stage("split", regex),)
        # to remove all but the matches is to isolate them, where the last alternative leaves nothing unmatched
        if step.get("behavior") == "Removed" and step.get("invert") is True and regex.endswith(r"|\s+"):
            return (Stage("split", regex),)
    return (Stage("other", json.dumps(step, ensure_ascii=False, sort_keys=True)),)


def _unknown(structure: Structure, path: Path) -> TokenizerError:
    found = " · ".join(map(str, structure.stages)) or "nothing"
    nearest = max(
        pre_tokenizers(),
        key=lambda known: difflib.SequenceMatcher(
            None, found, " · ".join(map(str, known.stages)), autojunk=False
        ).ratio(),
    )
    return TokenizerError(
        f"its pre-tokenizer is none that GGUF runtimes know: {found}; the nearest is {nearest.name}",
        path=path,
        remedy=_remedy("use a known one in spite of that", nearest),
    )


def _remedy(purpose: str, known: PreTokenizer | None) -> str:
    return f"Pass --pre-tokenizer {known.name if known else 'NAME'} to {purpose}."


def first_unreachable(tokens: Iterable[str], merges: Sequence[tuple[str, str]]) -> str | None:
    """Return the first token that merges do not make of its characters, None where they make all."""
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    worst = len(merges)
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            rank, i = min((ranks.get((parts[i], parts[i + 1]), worst), i) for i in range(len(parts) - 1))
            if rank == worst:
                return token
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return None
