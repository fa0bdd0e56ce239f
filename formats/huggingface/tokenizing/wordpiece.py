"""BERT's word pieces as a GGUF vocabulary, from ``tokenizer.json`` or from ``vocab.txt``.

BERT marks the pieces that continue a word with ``##``; GGUF, those that begin one with ``▁``, the space that llama.cpp imagines before every word.
Special tokens are written as they are. What llama.cpp does to a text before is BERT's own: control characters go, Chinese characters and
punctuation stand alone, and capitals and accents go unless ``tokenizer.ggml.normalizer.lowercase`` is false.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from ...metadata import boolean, string
from .files import TokenizerFiles, read_text
from .structure import Structure
from .vocabulary import MAX_TOKENS, TokenType, Vocabulary

__all__ = ["LOWERCASE_KEY", "read_vocab_txt", "word_pieces"]

LOWERCASE_KEY = "tokenizer.ggml.normalizer.lowercase"

_CONTINUES, _SPACE = "##", "▁"
# role → the key of tokenizer_config.json, and BERT's own text
_ROLES = {"bos": ("cls", "[CLS]"), "sep": ("sep", "[SEP]"), "unk": ("unk", "[UNK]"), "pad": ("pad", "[PAD]"), "mask": ("mask", "[MASK]")}  # fmt: skip
_NO_ACCENTS = ("NFD", "Lowercase", "StripAccents")
_REMEDY = "Pass --pre-tokenizer default to write the file in spite of that."


def word_pieces(
    ids: Mapping[str, int],
    model: Mapping[str, Any],
    structure: Structure,
    pre_tokenizer: object,
    path: Path,
    *,
    added: Collection[str],
    accept: bool,
) -> Vocabulary:
    """Return the vocabulary of a ``tokenizer.json`` of type WordPiece, without its added tokens.

    Args:
        ids: its vocabulary.
        model: its ``model``.
        structure: what it does to text before.
        pre_tokenizer: its ``pre_tokenizer``, which must be BERT's.
        path: the file.
        added: texts of added tokens, which are no pieces.
        accept: whether to write the file although runtimes of GGUF cut or normalize text otherwise.

    Raises TokenizerError for other marks than ``##``, and for other ways to cut and normalize than BERT's.
    """
    prefix = model.get("continuing_subword_prefix", _CONTINUES)
    if prefix != _CONTINUES:
        raise TokenizerError(
            f"pieces that continue a word are marked {prefix!r}, GGUF expects {_CONTINUES!r}", path=path
        )
    kind = pre_tokenizer.get("type") if isinstance(pre_tokenizer, dict) else None
    if kind != "BertPreTokenizer" and not accept:
        raise TokenizerError(
            f"its pre-tokenizer is {kind}, and runtimes of GGUF cut text for word pieces as BertPreTokenizer does",
            path=path,
            remedy=_REMEDY,
        )
    lowercase, notes = _normalizer(structure, path, accept)
    special = {role: ids[text] for role, (_, text) in _ROLES.items() if text in ids}
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in ids:
        special["unk"] = ids[unknown]
    return _vocabulary(ids, path, lowercase, frozenset(added), special, notes)


def read_vocab_txt(folder_files: TokenizerFiles) -> Vocabulary:
    """Return the vocabulary of ``vocab.txt``, one token a line; raises TokenizerError for one that is too long or has a token twice."""
    path = folder_files.paths["vocab.txt"]
    config = folder_files.tokenizer_config
    lines = read_text(path).rstrip("\n").split("\n")
    ids = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(lines) > MAX_TOKENS or len(ids) < len(lines):
        raise TokenizerError(f"its {len(lines)} lines are not as many different tokens, or too many", path=path)
    texts = {role: _text(config.get(f"{key}_token"), usual) for role, (key, usual) in _ROLES.items()}
    special = {role: ids[text] for role, text in texts.items() if text in ids}
    lowercase = config.get("do_lower_case", True) is not False
    accents = config.get("strip_accents")
    notes = () if accents in (None, lowercase) else (_accents_note(lowercase),)
    return _vocabulary(ids, path, lowercase, frozenset(texts.values()), special, notes)


def _text(value: object, usual: str) -> str:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else usual


def _normalizer(structure: Structure, path: Path, accept: bool) -> tuple[bool, tuple[str, ...]]:
    """Return whether capitals are made small, and notes."""
    steps = {str(step.get("type")): step for step in structure.normalizers}
    if list(steps) == ["BertNormalizer"]:
        step = steps["BertNormalizer"]
        lowercase = step.get("lowercase", True) is not False
        notes: tuple[str, ...] = () if step.get("strip_accents") in (None, lowercase) else (_accents_note(lowercase),)
        for key in ("clean_text", "handle_chinese_chars"):
            if step.get(key, True) is False:
                notes += (f"the tokenizer has {key} off, which runtimes of GGUF have on",)
        return lowercase, notes
    if steps and set(steps) <= set(_NO_ACCENTS) and "Lowercase" in steps:
        return True, () if "StripAccents" in steps else (_accents_note(True),)
    if not accept:
        listed = ", ".join(steps) or "nothing"
        raise TokenizerError(
            f"its normalizer does {listed}, and runtimes of GGUF do what BertNormalizer does", path=path, remedy=_REMEDY
        )
    return True, ("--pre-tokenizer default: the tokenizer normalizes text otherwise than runtimes of GGUF",)


def _accents_note(lowercase: bool) -> str:
    if lowercase:
        return "the tokenizer makes capitals small and keeps accents; runtimes of GGUF remove accents too"
    return "the tokenizer keeps capitals and removes accents; runtimes of GGUF keep accents too"


def _vocabulary(
    ids: Mapping[str, int],
    path: Path,
    lowercase: bool,
    special_texts: frozenset[str],
    special: Mapping[str, int],
    notes: tuple[str, ...],
) -> Vocabulary:
    length = max(ids.values()) + 1
    tokens = [f"[PAD{i}]" for i in range(length)]
    types = [TokenType.UNUSED] * length
    for text, token in ids.items():
        if text in special_texts:
            tokens[token], types[token] = text, TokenType.CONTROL
        else:
            tokens[token], types[token] = _phantom(text), TokenType.NORMAL
    return Vocabulary(
        model="bert",
        source=path,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=None,
        metadata={"tokenizer.ggml.pre": string("default"), LOWERCASE_KEY: boolean(lowercase)},
        special=special,
        notes=notes,
    )


def _phantom(piece: str) -> str:
    return piece.removeprefix(_CONTINUES) if piece.startswith(_CONTINUES) else _SPACE + piece
