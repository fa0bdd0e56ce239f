"""``tokenizer.json`` (and GPT-2's ``vocab.json`` with ``merges.txt``) as a GGUF vocabulary: byte-level BPE becomes ``gpt2``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from ....errors import TokenizerError
from ...metadata import string, strings
from ...pretokenizers import PreTokenizer
from ..json_files import read_json_object
from .files import TokenizerFiles, expect, read_text
from .metaspace import metaspace_bpe, unigram
from .ranked import ranked_bpe
from .structure import Structure, chosen_pre_tokenizer, identify_pre_tokenizer, read_structure
from .vocabulary import MAX_TOKENS, TokenType, Vocabulary, check_gaps
from .wordpiece import word_pieces

__all__ = ["read_tokenizer_json", "read_vocab_and_merges"]

Merge = tuple[str, str]


def read_tokenizer_json(
    tokenizer: Mapping[str, Any],
    path: Path,
    *,
    pre_tokenizer: str | None,
    clean_spaces: bool | None,
    ranked: bool = False,
) -> Vocabulary:
    """Return the vocabulary of the ``tokenizer.json`` in ``path``, without its added tokens.

    ``pre_tokenizer`` is the user's choice, where the structure does not tell; ``clean_spaces`` is the configuration's
    ``clean_up_tokenization_spaces``; ``ranked`` asks for the kind ``gemma4`` where spaces are marked with ``▁``. Raises FormatError where the file is malformed, TokenizerError where GGUF cannot hold it.
    """
    model = expect(tokenizer.get("model"), dict, "model", path)
    structure = read_structure(tokenizer, path)
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else None)
    if kind == "Unigram":
        return unigram(model, structure, path)
    entries = expect(tokenizer.get("added_tokens") or [], list, "added_tokens", path)
    added = {str(token["content"]) for token in entries if isinstance(token, dict) and "content" in token}
    if kind == "WordPiece":
        ids = token_ids(model.get("vocab"), "model.vocab", path)
        cuts, accept = tokenizer.get("pre_tokenizer"), pre_tokenizer == "default"
        return word_pieces(ids, model, structure, cuts, path, added=added, accept=accept)
    if kind != "BPE":
        raise TokenizerError(
            f"a tokenizer of type {kind} has no counterpart in GGUF that qconv knows (BPE, Unigram and WordPiece have)",
            path=path,
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"its {key} {model[key]!r} has no counterpart in GGUF", path=path)
    ids = token_ids(model.get("vocab"), "model.vocab", path)
    merges = read_merges(expect(model.get("merges"), list, "model.merges", path), ids, path)
    if not structure.is_byte_level:
        marked = ranked_bpe if ranked else metaspace_bpe
        return marked(model, structure, ids, merges, path, added=added, accept=pre_tokenizer == "default")
    return _byte_level(ids, merges, structure, path, model, added, pre_tokenizer, clean_spaces)


def read_vocab_and_merges(folder_files: TokenizerFiles, *, pre_tokenizer: str | None) -> Vocabulary:
    """Return the vocabulary of ``vocab.json`` and ``merges.txt``, as GPT-2 has them.

    The pre-tokenizer follows from ``tokenizer_class``: these files do not describe it. Raises as :func:`read_tokenizer_json`.
    """
    path = folder_files.paths["vocab.json"]
    ids = token_ids(read_json_object(path, "the vocabulary"), "the vocabulary", path)
    lines = read_text(folder_files.paths["merges.txt"]).split("\n")
    lines = [line.rstrip("\r") for line in (lines[1:] if lines[0].startswith("#version") else lines)]
    merges = read_merges([line for line in lines if line], ids, folder_files.paths["merges.txt"])
    classes: dict[str, str] = json.loads(
        files(__package__).joinpath("slow_tokenizers.json").read_text(encoding="utf-8")
    )
    tokenizer_class = folder_files.tokenizer_config.get("tokenizer_class", "GPT2Tokenizer")
    name = pre_tokenizer or classes.get(str(tokenizer_class).removesuffix("Fast"))
    if name is None:
        raise TokenizerError(
            f"{tokenizer_class} with vocab.json and merges.txt is none of the tokenizers that qconv knows: {', '.join(classes)}",
            path=folder_files.paths.get("tokenizer_config.json", path),
            remedy="Save the model with a tokenizer.json, or pass --pre-tokenizer NAME.",
        )
    return _vocabulary(ids, merges, chosen_pre_tokenizer(name, path), path, [])


def token_ids(value: object, what: str, path: Path) -> dict[str, int]:
    """Return ``value`` checked to be a vocabulary: texts to different ids from 0 to MAX_TOKENS; raises FormatError."""
    ids = expect(value, dict, what, path)
    if not ids:
        raise TokenizerError(f"{what} is empty", path=path)
    for text, token in ids.items():
        if type(token) is not int or not 0 <= token < MAX_TOKENS:
            raise TokenizerError(
                f"the id of the token {text!r} is {token!r}, not a number below {MAX_TOKENS}", path=path
            )
    if len(set(ids.values())) < len(ids):
        raise TokenizerError(f"two tokens of {what} have the same id", path=path)
    return ids


def read_merges(values: Sequence[object], ids: Mapping[str, int], path: Path) -> list[Merge]:
    """Return merges in either form, ``"a b"`` or ``["a", "b"]``, as pairs; raises TokenizerError where a token is missing.

    Where a string has several spaces, the one counts that divides it into two tokens.
    """
    merges = []
    for value in values:
        if isinstance(value, str):
            pairs: Iterable[object] = ((value[:i], value[i + 1 :]) for i in range(1, len(value) - 1) if value[i] == " ")
        else:
            pairs = (tuple(value),) if isinstance(value, list) else ()
        for pair in pairs:
            if _joins(pair, ids):
                merges.append(pair)
                break
        else:
            raise TokenizerError(f"the merge {value!r} joins no two tokens of the vocabulary into a third", path=path)
    return merges


def _joins(pair: object, ids: Mapping[str, int]) -> TypeGuard[Merge]:
    match pair:
        case (str() as left, str() as right):
            return left in ids and right in ids and left + right in ids
    return False


def _byte_level(
    ids: Mapping[str, int],
    merges: Sequence[Merge],
    structure: Structure,
    path: Path,
    model: Mapping[str, Any],
    added: Collection[str],
    pre_tokenizer: str | None,
    clean_spaces: bool | None,
) -> Vocabulary:
    ignore_merges = model.get("ignore_merges") is True
    if not merges and not ignore_merges and any(len(text) > 1 for text in ids):
        raise TokenizerError("the tokenizer has no merges, so no text would become its longer tokens", path=path)
    notes = []
    if pre_tokenizer is not None:
        known = chosen_pre_tokenizer(pre_tokenizer, path)
        notes.append(f"--pre-tokenizer {pre_tokenizer} is used whatever {path.name} says")
    else:
        known = identify_pre_tokenizer(
            structure,
            path,
            ignore_merges=ignore_merges,
            clean_spaces=clean_spaces,
            tokens=ids,
            added=added,
            merges=merges,
        )
    if structure.normalizers:
        rules = ", ".join(str(step.get("type")) for step in structure.normalizers)
        notes.append(
            f"the tokenizer normalizes text ({rules}); GGUF runtimes do not, so text not in that form gives other tokens"
        )
    if structure.adds_space:
        notes.append("the tokenizer puts a space in front of text; llama.cpp does not do so for byte-level BPE")
    if known.deviation:
        notes.append(known.deviation)
    return _vocabulary(ids, merges, known, path, notes)


def _vocabulary(
    ids: Mapping[str, int], merges: Sequence[Merge], known: PreTokenizer, path: Path, notes: Sequence[str]
) -> Vocabulary:
    spaced = next((pair for pair in merges if " " in pair[0] or " " in pair[1]), None)
    if spaced is not None:
        raise TokenizerError(f"the merge {spaced!r} holds a space, which GGUF's merges cannot", path=path)
    length = max(ids.values()) + 1
    check_gaps(length, len(ids), path)
    tokens = [f"[PAD{i}]" for i in range(length)]
    types = [TokenType.UNUSED] * length
    for text, token in ids.items():
        tokens[token], types[token] = text, TokenType.NORMAL
    return Vocabulary(
        model="gpt2",
        source=path,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=None,
        metadata={
            "tokenizer.ggml.pre": string(known.name),
            "tokenizer.ggml.merges": strings(f"{left} {right}" for left, right in merges),
        },
        notes=tuple(notes),
    )
