"""Vocabularies from metadata: defaults, what is refused, and how each message helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from runtime_tokenizers import llama_metadata, model_of, tokenizer_of, with_keys
from tokenizer_folders import read, train_byte_level, write_folder

from qconv.errors import FormatError, TokenizerError
from qconv.formats.metadata import Field, ValueType, numbers
from qconv.runtime.tokenizing.special import partition
from qconv.runtime.tokenizing.vocabulary import read_vocabulary

TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "<0x41>", "ab"]
TYPES = [2, 3, 3, 1, 1, 6, 1]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Field]:
    folder = write_folder(tmp_path_factory.mktemp("bpe"), tokenizer=train_byte_level("gpt-2"))
    return read(folder, 700, bos_token_id=0, eos_token_id=0).metadata


def _llama(**keys: Any) -> dict[str, Field]:
    return with_keys(llama_metadata(TOKENS, types=TYPES), **keys)


def test_defaults_of_sentencepiece() -> None:
    found = read_vocabulary(model_of(_llama(token_type=None, scores=None)))
    assert (found.kind, found.pre, found.add_bos, found.add_eos, found.add_space) == (
        "llama",
        "default",
        True,
        False,
        True,
    )
    assert found.roles == {"unk": 0, "bos": 1, "eos": 2}
    assert set(found.types) == {1, 3}  # </s> is known by its text
    assert list(found.scores) == [0.0] * 7
    assert found.ends == {2}
    assert "tokens=" not in repr(found)


def test_defaults_of_byte_level_bpe(byte_level: Mapping[str, Field]) -> None:
    keys = dict.fromkeys(("pre", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "token_type"))
    found = read_vocabulary(model_of(with_keys(byte_level, **keys)))
    assert (found.kind, found.pre, found.add_bos, found.add_eos, found.add_space) == (
        "gpt2",
        "default",
        False,
        False,
        False,
    )
    assert found.roles == {"bos": 11, "eos": 11}
    assert found.merges[0].count(" ") == 1
    assert list(found.scores) == []


def test_scores_may_be_whole_numbers() -> None:
    found = read_vocabulary(model_of(_llama(scores=numbers(range(7), ValueType.INT32))))
    assert list(found.scores) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_unknown_types_and_empty_tokens_have_no_text() -> None:
    metadata = llama_metadata(["<unk>", "<s>", "</s>", "a", "", "b"], types=[2, 3, 3, 1, 1, 77])
    tokenizer = tokenizer_of(metadata)
    assert [tokenizer.piece(i) for i in (3, 5)] == [b"a", b""]
    assert tokenizer.vocabulary.tokens[4] == "[EMPTY_4]"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("t5", r"of the kind 't5' \(unigram\), and the runtime knows llama .* gpt2 .*another runtime"),
        ("bert", r"'bert' \(WordPiece\)"),
        ("rwkv", r"'rwkv'"),
        ("something", r"of the kind 'something', and"),
        ("no_vocab", r"has no tokenizer .*tokenizer's files"),
        (None, r"has no tokenizer"),
    ],
)
def test_other_kinds_are_named(kind: str | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_of(_llama(model=kind))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": None}, "no tokens"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "tokens 3 and 6 have the same text 'a'"),
        ({"token_type": numbers([1] * 6, ValueType.INT32)}, "6 types for 7 tokens"),
        ({"scores": numbers([0.0] * 8, ValueType.FLOAT32)}, "8 scores for 7 tokens"),
        ({"scores": numbers([0.0, np.nan] + [0.0] * 5, ValueType.FLOAT32)}, "score of token 1 is no number"),
        ({"token_type": numbers([2, 3, 3, 6, 1, 6, 1], ValueType.INT32)}, "token 3 'a' should be a byte"),
        ({"eos_token_id": 7}, r"eos_token_id is 7, but the vocabulary has 7 tokens"),
        ({"eot_token_id": 4294967295}, r"eot_token_id is 4294967295"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_of(_llama(**keys))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"merges": None}, "no merges"),
        ({"merges": ["a zz"]}, "merges do not fit the tokens"),
        ({"merges": ["ab"]}, "merges do not fit the tokens"),
        ({"pre": "qwen9"}, r"'qwen9' is unknown \(names like it: qwen2.*tokenizer\.ggml\.pre"),
        ({"pre": "?"}, r"'\?' is unknown\."),
    ],
)
def test_byte_level_contradictions_are_refused(
    byte_level: Mapping[str, Field], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_of(with_keys(byte_level, **keys))
    assert caught.value.remedy


def test_tokens_that_are_no_text_are_refused_in_byte_level_bpe(byte_level: Mapping[str, Field]) -> None:
    tokens = list(byte_level["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type] # an array of texts
    with pytest.raises(TokenizerError, match=r"token 500 .* is no valid UTF-8"):
        tokenizer_of(with_keys(byte_level, tokens=[*tokens[:500], "\udcff", *tokens[501:]]))


def test_a_token_to_be_added_must_be_named(byte_level: Mapping[str, Field]) -> None:
    metadata = with_keys(byte_level, pre="glm4", bos_token_id=None, add_bos_token=True)
    with pytest.raises(TokenizerError, match=r"should get a token bos.*tokenizer\.ggml\.bos_token_id"):
        tokenizer_of(metadata)


@pytest.mark.parametrize(
    "keys",
    [
        {"tokens": "text"},
        {"token_type": numbers([0.0] * 7, ValueType.FLOAT32)},
        {"add_bos_token": 1},
        {"bos_token_id": "1"},
        {"model": 1},
    ],
)
def test_values_of_another_type_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=rf"tokenizer\.ggml\.{next(iter(keys))} should be"):
        tokenizer_of(_llama(**keys))


def test_texts_are_cut_at_markers_in_their_order() -> None:
    markers = (("bcd", 1), ("ab", 2), ("a", 3))
    assert partition("abcd ab aa", markers, ()) == [3, 1, " ", 2, " ", 3, 3]
    assert partition("", markers, ()) == []
    assert partition("xyz", markers, ()) == ["xyz"]
    assert partition("a \n b a x", markers, {3}) == [3, "b ", 3, "x"]
    assert partition("a \u00a0", markers, {3}) == [3, "\u00a0"]
