"""Word pieces: from ``tokenizer.json`` and ``vocab.txt``, with what runtimes of GGUF do otherwise told or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import read, write_folder

from qconv.errors import TokenizerError
from qconv.formats.huggingface.tokenizing.vocabulary import TokenType

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##re", "fox", "#", "\u6771")
SPECIAL = [
    {
        "id": i,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    for i, text in enumerate(PIECES[:5])
]
NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}


def word_pieces(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": SPECIAL,
        "normalizer": NORMALIZER,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "vocab": {text: i for i, text in enumerate(PIECES)},
        },
    } | changes


def values(folder: Path, **options: Any) -> dict[str, Any]:
    found = read(folder, len(PIECES), **options).metadata
    return {key.removeprefix("tokenizer.ggml."): field.value for key, field in found.items()}


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_beginnings_of_words_are_marked(form: str, tmp_path: Path) -> None:
    if form == "vocab.txt":
        folder = write_folder(tmp_path, vocab__txt="\n".join(PIECES) + "\n", tokenizer_config={"do_lower_case": True})
    else:
        folder = write_folder(tmp_path, tokenizer=word_pieces())
    found = values(folder)
    assert found["model"] == "bert"
    assert tuple(found["tokens"]) == (*PIECES[:5], "\u2581the", "re", "\u2581fox", "\u2581#", "\u2581\u6771")
    assert list(found["token_type"]) == [TokenType.CONTROL] * 5 + [TokenType.NORMAL] * 5
    ids = {name: found[f"{name}_token_id"] for name in ("bos", "seperator", "unknown", "padding")}
    assert ids == {"bos": 2, "seperator": 3, "unknown": 1, "padding": 0}
    assert found["normalizer.lowercase"] is True
    assert "add_space_prefix" not in found


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_capitals_are_kept_where_the_tokenizer_keeps_them(form: str, tmp_path: Path) -> None:
    if form == "vocab.txt":
        folder = write_folder(tmp_path, vocab__txt="\n".join(PIECES), tokenizer_config={"do_lower_case": False})
    else:
        folder = write_folder(tmp_path, tokenizer=word_pieces(normalizer=NORMALIZER | {"lowercase": False}))
    assert values(folder)["normalizer.lowercase"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strip_accents": False}, "keeps accents"),
        ({"strip_accents": True, "lowercase": False}, "removes accents"),
        ({"clean_text": False}, "clean_text off"),
        ({"handle_chinese_chars": False}, "handle_chinese_chars off"),
    ],
)
def test_what_runtimes_do_otherwise_is_told(change: dict[str, bool], message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer=word_pieces(normalizer=NORMALIZER | change))
    assert any(message in note for note in read(folder, len(PIECES)).notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "BertPreTokenizer does"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer does NFKC"),
        ({"normalizer": None}, "normalizer does nothing"),
    ],
)
def test_other_ways_to_cut_are_refused_unless_the_user_insists(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, tokenizer=word_pieces(**change))
    with pytest.raises(TokenizerError, match=message):
        read(folder, len(PIECES))
    assert values(folder, pre_tokenizer="default")["model"] == "bert"


def test_another_mark_is_refused(tmp_path: Path) -> None:
    model = word_pieces()["model"] | {"continuing_subword_prefix": "@@"}
    with pytest.raises(TokenizerError, match="'@@'"):
        read(write_folder(tmp_path, tokenizer=word_pieces(model=model)), len(PIECES))


def test_a_token_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not as many different tokens"):
        read(write_folder(tmp_path, vocab__txt="[UNK]\nthe\nthe\n"), 3)
