"""What a tokenizer puts around text: a begin token, an end token, a space.

``tokenizer_config.json`` (``add_bos_token``) is asked first, then the post-processor of ``tokenizer.json``, then the architecture, then the
custom of the tokenizer's kind: sentencepiece and word pieces have a begin token in front, byte-level BPE nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import FormatError
from ...metadata import Scalar
from .files import TokenizerFiles, expect
from .ranked import RANKED
from .vocabulary import Vocabulary

__all__ = ["Affixes", "read_affixes"]


@dataclass(frozen=True)
class Affixes:
    """What surrounds text.

    Attributes:
        bos: whether the begin token is put in front.
        eos: whether the end token is put behind.
        space: whether a space is put in front; None for byte-level BPE and word pieces, which have no such setting.
        ids: ``bos`` and ``eos`` as the post-processor has them, where no file names them.
        notes: what the user should know.
    """

    bos: bool
    eos: bool
    space: bool | None
    ids: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _PostProcessor:
    """Ids that the post-processor of ``tokenizer.json`` puts in front of and behind a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def read_affixes(
    vocabulary: Vocabulary, folder_files: TokenizerFiles, ids: Mapping[str, int], hints: Mapping[str, Scalar]
) -> Affixes:
    """Return what the tokenizer puts around text; ``ids`` are the special ids known so far.

    Raises FormatError where the post-processor is malformed.
    """
    config = folder_files.tokenizer_config
    post = _read_post_processor(folder_files)
    notes: list[str] = []
    found: dict[str, int] = {}
    result: dict[str, bool] = {}
    customs = {"bos": vocabulary.model in ("llama", "bert", RANKED), "eos": vocabulary.model == "t5"}
    for role, around in (("bos", None if post is None else post.before), ("eos", None if post is None else post.after)):
        key = f"add_{role}_token"
        declared = config.get(key)
        implied = None
        if around is not None:
            if around and role not in ids:
                found[role] = around[0]
            implied = bool(around) and around[0] == ids.get(role, found.get(role))
            if len(around) > 1 or (around and not implied):
                listed = ", ".join(repr(vocabulary.tokens[i]) for i in around if i < len(vocabulary.tokens))
                notes.append(
                    f"the tokenizer puts {listed} around text; GGUF can tell {'one' if implied else 'none'} of them"
                )
        if isinstance(declared, bool):
            result[role] = declared
            if implied is not None and implied != declared:
                notes.append(
                    f"tokenizer_config.json says {key} is {declared}, tokenizer.json does otherwise; the first is written"
                )
        elif implied is not None:
            result[role] = implied
        else:
            hint = hints.get(key)
            result[role] = hint if isinstance(hint, bool) else customs[role]
        if result[role] and role not in ids and role not in found:
            result[role] = False
            notes.append(f"the tokenizer is to add a {role} token, but has none")
    if vocabulary.model == "bert" and "eos" in found and "sep" not in ids:
        found["sep"] = found["eos"]  # what runtimes put behind word pieces
    space: bool | None = None
    if vocabulary.model == RANKED:
        space = False
    elif vocabulary.model not in ("gpt2", "bert"):
        declared = config.get("add_prefix_space")
        space = declared if isinstance(declared, bool) else vocabulary.adds_space
        hint = hints.get("add_space_prefix", space)
        if hint != space:
            notes.append(f"add_space_prefix is {space} by the tokenizer's files; for this architecture {hint} is usual")
    return Affixes(result["bos"], result["eos"], space, found, tuple(notes))


def _read_post_processor(folder_files: TokenizerFiles) -> _PostProcessor | None:
    if folder_files.tokenizer is None:
        return None
    path = folder_files.paths["tokenizer.json"]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    for step in _steps(folder_files.tokenizer.get("post_processor"), path):
        match step:
            case {"type": "TemplateProcessing"}:
                before, after = _template(step, path)
            case {
                "type": "RobertaProcessing" | "BertProcessing",
                "cls": [str(), cls],
                "sep": [str(), sep],
            }:
                before, after = (_token_id(cls, "cls", path),), (_token_id(sep, "sep", path),)
    return _PostProcessor(before, after)


def _template(step: Mapping[str, Any], path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens = expect(step.get("special_tokens"), dict, "post_processor.special_tokens", path)
    around: tuple[list[int], list[int]] = ([], [])
    seen_text = False
    for part in expect(step.get("single"), list, "post_processor.single", path):
        match part:
            case {"Sequence": _}:
                seen_text = True
            case {"SpecialToken": {"id": str() as name}}:
                entry = expect(tokens.get(name), dict, f"post_processor.special_tokens[{name!r}]", path)
                for token in expect(entry.get("ids"), list, f"the ids of {name!r}", path):
                    around[seen_text].append(_token_id(token, name, path))
    return tuple(around[0]), tuple(around[1])


def _token_id(value: object, name: str, path: Path) -> int:
    token = expect(value, int, f"an id of {name!r} in post_processor", path)
    if token < 0:
        raise FormatError(f"the post_processor gives {name!r} the id {token}, but ids count from 0", path=path)
    return token


def _steps(value: object, path: Path) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    step = expect(value, dict, "post_processor", path)
    if step.get("type") != "Sequence":
        return [step]
    children = expect(step.get("processors"), list, "post_processor.processors", path)
    return [leaf for child in children for leaf in _steps(child, path)]
