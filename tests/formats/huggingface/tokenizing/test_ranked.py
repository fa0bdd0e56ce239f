"""Gemma 4's kind of BPE: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import TEXTS, read_ranked, train_ranked
from tokenizers import Tokenizer

from qconv.errors import TokenizerError
from qconv.formats.base import Model
from qconv.formats.getters import get_strings
from qconv.formats.huggingface.out.record import record_source
from qconv.formats.huggingface.out.source import read_recorded
from qconv.formats.huggingface.out.tokenizer import rebuild_tokenizer
from qconv.formats.huggingface.tokenizing.vocabulary import TokenType


def with_model(**changes: Any) -> dict[str, Any]:
    contents = train_ranked()
    return {**contents, "model": {**contents["model"], **changes}}


def test_merges_are_kept(tmp_path: Path) -> None:
    contents = train_ranked()
    result = read_ranked(tmp_path, contents)
    assert result.notes == ()
    metadata = result.metadata
    assert metadata["tokenizer.ggml.model"].value == metadata["tokenizer.ggml.pre"].value == "gemma4"
    assert "tokenizer.ggml.scores" not in metadata
    wanted = [" ".join(pair) for pair in contents["model"]["merges"]]
    assert list(get_strings(metadata, "tokenizer.ggml.merges") or ()) == wanted
    tokens = list(get_strings(metadata, "tokenizer.ggml.tokens") or ())
    types = dict(zip(tokens, metadata["tokenizer.ggml.token_type"].value, strict=True))  # type: ignore[arg-type] # an array
    assert types["<|turn>"] == TokenType.CONTROL
    assert types["<|channel>"] == TokenType.USER_DEFINED, "shown to who reads the answer"
    assert types["<0x0A>"] == TokenType.BYTE
    assert types["<unk>"] == TokenType.UNKNOWN


@pytest.mark.parametrize("recorded", [True, False])
def test_the_way_back(recorded: bool, tmp_path: Path) -> None:
    contents = train_ranked()
    (tmp_path / "config.json").write_text("{}")
    result = read_ranked(tmp_path, contents)
    metadata = {**result.metadata, **(record_source(tmp_path, {}, result, {}) if recorded else {})}
    files, _ = rebuild_tokenizer(Model(Path("model.gguf"), "gguf", metadata, {}), read_recorded(metadata), 0)
    if recorded:
        assert json.loads(files["tokenizer.json"]) == contents
    again, source = Tokenizer.from_str(files["tokenizer.json"].decode()), Tokenizer.from_str(json.dumps(contents))
    for text in (*TEXTS, "<|turn> x<|channel>\n\n\n"):
        found = source.encode(text, add_special_tokens=False).ids
        assert again.encode(text, add_special_tokens=False).ids == found
        assert again.decode(found, skip_special_tokens=False) == source.decode(found, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (with_model(ignore_merges=True), "prefers tokens to merges"),
        (
            {**train_ranked(), "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, train_ranked()["normalizer"],
            ]}},
            "puts a space before text",
        ),
        ({**train_ranked(), "normalizer": {"type": "Lowercase"}}, "none that GGUF runtimes know"),
        ({**train_ranked(), "pre_tokenizer": {"type": "Whitespace"}}, "none that GGUF runtimes know"),
    ],
)  # fmt: skip
def test_other_structures_are_refused(contents: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=words):
        read_ranked(tmp_path, contents)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "words"),
    [
        ({"e\n": 0}, [["e", "\n"]], "newlines beside other characters"),
        ({"\n" * 7: 0}, [], "do not lead to the token"),
    ],
)
def test_newlines_that_llama_cpp_treats_otherwise(
    vocabulary: dict[str, int], merges: list[list[str]], words: str, tmp_path: Path
) -> None:
    contents = train_ranked()
    model, size = contents["model"], 1 + max(token["id"] for token in contents["added_tokens"])
    odd = with_model(
        vocab={**model["vocab"], **{text: size + place for text, place in vocabulary.items()}},
        merges=[*model["merges"], *merges],
    )
    odd["added_tokens"] = [
        *contents["added_tokens"],
        {**contents["added_tokens"][-1], "id": size + 1, "content": "<z>"},
    ]
    with pytest.raises(TokenizerError, match=words) as caught:
        read_ranked(tmp_path, odd)
    assert "--pre-tokenizer default" in str(caught.value)
    (note, *_) = read_ranked(tmp_path, odd, "default").notes
    assert words in note


def test_a_vocabulary_without_bytes_is_noted(tmp_path: Path) -> None:
    (note,) = read_ranked(tmp_path, with_model(byte_fallback=False)).notes
    assert "byte" in note
