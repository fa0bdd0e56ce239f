"""Which tokens are special: added tokens, and the ids of begin, end, turn, padding … merged from every file that names them.

For each role the files are asked in this order, and the first answer is written: ``tokenizer_config.json``,
``special_tokens_map.json`` (both by text), ``generation_config.json``, ``config.json`` (both by id, lists included), then the
vocabulary file itself. Other answers are notes, with one exception: further ends become ``eot`` (end of turn) and ``eom`` (end of message)
where their text is known as such, or is the turn's end in the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from .files import TokenizerFiles, expect
from .vocabulary import MAX_TOKENS, AddedToken, Vocabulary

__all__ = ["SpecialTokens", "added_tokens", "looks_special", "special_token_key", "special_tokens"]

_TEXT_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids by role (``bos``, ``eos``, ``eot``, ``eom``, ``unk``, ``sep``, ``pad``, ``mask``, ``fim_pre`` …), and what was odd."""

    ids: Mapping[str, int]
    notes: tuple[str, ...]


def special_token_key(role: str) -> str:
    """Return the GGUF key for the id of ``role``."""
    return f"tokenizer.ggml.{_table()['keys'][role]}"


def looks_special(text: str) -> bool:
    """Whether an added token is markup by its looks (``<|…|>``), even if its file does not call it special.

    llama.cpp's converter treats these as control tokens too, so that user text cannot forge them.
    """
    markup = _table()["markup"]
    return text in markup["exact"] or any(
        text.startswith(start) and text.endswith(end) for start, end in markup["enclosed"]
    )


def added_tokens(folder_files: TokenizerFiles) -> tuple[AddedToken, ...]:
    """Return the added tokens of all files, by id.

    ``tokenizer_config.json`` (``added_tokens_decoder``) is believed before ``tokenizer.json``, and that before
    ``added_tokens.json``, which does not say what is special: there, what another file names as special token is. Raises FormatError for
    malformed entries.
    """
    found: dict[int, AddedToken] = {}
    path = folder_files.paths.get("tokenizer_config.json", folder_files.folder)
    decoder = expect(
        folder_files.tokenizer_config.get("added_tokens_decoder") or {}, dict, "added_tokens_decoder", path
    )
    for key, value in decoder.items():
        if not key.isdecimal():
            raise TokenizerError(f"added_tokens_decoder has the id {key!r}", path=path)
        _add(found, int(key), expect(value, dict, f"added token {key}", path), path)
    if folder_files.tokenizer is not None:
        path = folder_files.paths["tokenizer.json"]
        for value in expect(folder_files.tokenizer.get("added_tokens") or [], list, "added_tokens", path):
            token = expect(value, dict, "an added token", path)
            _add(found, expect(token.get("id"), int, "the id of an added token", path), token, path)
    if folder_files.added_tokens:
        path = folder_files.paths["added_tokens.json"]
        named = _named_texts(folder_files)
        for text, token_id in folder_files.added_tokens.items():
            entry = {"content": text, "special": text in named}
            _add(found, expect(token_id, int, f"the id of the added token {text!r}", path), entry, path)
    return tuple(found[token] for token in sorted(found))


def special_tokens(
    vocabulary: Vocabulary, folder_files: TokenizerFiles, config: Mapping[str, Any], rows: int, template: str | None
) -> SpecialTokens:
    """Return the special ids of ``vocabulary``, with added tokens in place.

    ``config`` is ``config.json``; ``rows`` the number of embedding rows; ``template`` the chat template, if any. Raises TokenizerError for
    an id that is neither a token nor a row.
    """
    ids_of_text = {text: i for i, text in enumerate(vocabulary.tokens)}
    size = max(len(vocabulary.tokens), rows)
    ids: dict[str, int] = {}
    notes: list[str] = []
    ends: list[int] = []
    for role in _TEXT_ROLES:
        answers = list(_answers(role, ids_of_text, folder_files, config, size, notes))
        if role == "bos" and not answers and vocabulary.model == "bert":
            answers += _answers("cls", ids_of_text, folder_files, config, size, notes)
        if role in vocabulary.special:
            answers.append((vocabulary.source.name, [vocabulary.special[role]]))
        if not answers:
            continue
        source, (chosen, *_) = answers[0]
        ids[role] = chosen
        others = {token: name for name, tokens in reversed(answers) for token in tokens if token != chosen}
        if role == "eos":
            ends = list(dict.fromkeys(token for _, tokens in answers for token in tokens if token != chosen))
        elif others:
            listed = ", ".join(f"{name} {_show(vocabulary, token)}" for token, name in sorted(others.items()))
            notes.append(f"{source} says {role} is {_show(vocabulary, chosen)}, but {listed}; the first is written")
    _turns(ids, ends, ids_of_text, vocabulary, template, notes)
    for role, texts in _table()["texts"].items():
        match = next((ids_of_text[text] for text in texts if text in ids_of_text), None)
        if match is not None:
            ids[role] = match
    return SpecialTokens({role: ids[role] for role in _table()["keys"] if role in ids}, tuple(notes))


def _turns(
    ids: dict[str, int],
    ends: Iterable[int],
    ids_of_text: Mapping[str, int],
    vocabulary: Vocabulary,
    template: str | None,
    notes: list[str],
) -> None:
    eos = ids.get("eos")
    in_template = [text for text in _table()["turn_ends"] if template and text in template and text in ids_of_text]
    if in_template and eos not in {ids_of_text[text] for text in in_template}:
        ids["eot"] = ids_of_text[in_template[0]]
    rest = []
    for end in ends:
        text = vocabulary.tokens[end] if end < len(vocabulary.tokens) else ""
        if text in _table()["message_ends"]:
            ids.setdefault("eom", end)
        elif text in _table()["turn_ends"]:
            ids.setdefault("eot", end)
        if end not in ids.values():
            rest.append(end)
    ends_turns = eos is not None and _text(vocabulary, eos) in _table()["turn_ends"]
    for end in rest:
        if "eot" not in ids and not ends_turns and template and _text(vocabulary, end) in template:
            ids["eot"] = end
        else:
            notes.append(f"{_show(vocabulary, end)} ends generation as well, which GGUF has no key for")


def _answers(
    role: str,
    ids_of_text: Mapping[str, int],
    folder_files: TokenizerFiles,
    config: Mapping[str, Any],
    size: int,
    notes: list[str],
) -> Iterable[tuple[str, list[int]]]:
    for name, mapping in (
        ("tokenizer_config.json", folder_files.tokenizer_config),
        ("special_tokens_map.json", folder_files.special_tokens_map),
    ):
        text = _token_text(mapping.get(f"{role}_token"))
        if text is None:
            continue
        if text in ids_of_text:
            yield name, [ids_of_text[text]]
        else:
            notes.append(f"{name} names {text!r} as {role}, but that is no token")
    text_config = config.get("text_config")
    configuration = {**(text_config if isinstance(text_config, dict) else {}), **config}
    for name, mapping in (("generation_config.json", folder_files.generation_config), ("config.json", configuration)):
        value = mapping.get(f"{role}_token_id")
        values = value if isinstance(value, list) else [value]
        tokens = []
        for token in values:
            if token is None or (type(token) is int and token < 0):
                continue  # libraries write -1 for none
            if type(token) is not int or token >= size:
                raise TokenizerError(
                    f"{role}_token_id is {token!r}, but the vocabulary has {size} tokens",
                    path=folder_files.folder / name,
                    remedy=f"Correct or remove {role}_token_id.",
                )
            tokens.append(token)
        if tokens:
            yield name, tokens


def _add(found: dict[int, AddedToken], token: int, entry: Mapping[str, Any], path: Path) -> None:
    if not 0 <= token < MAX_TOKENS:
        raise TokenizerError(f"an added token has the id {token}, not a number below {MAX_TOKENS}", path=path)
    text = expect(entry.get("content"), str, f"the text of the added token {token}", path)
    special = entry.get("special") is True or looks_special(text)
    strips = entry.get("lstrip") is True or entry.get("rstrip") is True
    found.setdefault(token, AddedToken(token, text, special, strips, path.name))


def _named_texts(folder_files: TokenizerFiles) -> set[str]:
    named: set[str] = set()
    for mapping in (folder_files.tokenizer_config, folder_files.special_tokens_map):
        for key, value in mapping.items():
            if key.endswith("_token"):
                named.add(_token_text(value) or "")
            elif key == "additional_special_tokens" and isinstance(value, list):
                named.update(_token_text(item) or "" for item in value)
    return named


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _text(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.tokens[token] if token < len(vocabulary.tokens) else f"[PAD{token}]"


def _show(vocabulary: Vocabulary, token: int) -> str:
    return f"{token} {_text(vocabulary, token)!r}"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("special_tokens.json").read_text(encoding="utf-8"))
    return table
