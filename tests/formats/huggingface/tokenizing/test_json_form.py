"""Byte-level BPE: the tokens of tokenizer.json, of GGUF metadata made from it by qconv, and of llama.cpp are the same."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import (
    TEXTS,
    fixture_texts,
    gguf_vocabulary,
    read,
    tokenizer_json,
    tokenizer_json_of_gguf,
    train_byte_level,
    write_folder,
)
from tokenizers import Tokenizer

from qconv.errors import FormatError, TokenizerError
from qconv.formats.huggingface.tokenizing.json_form import read_merges, token_ids
from qconv.formats.pretokenizers import PreTokenizer, Stage, pre_tokenizers

_BYTE_LEVEL = ("deepseek-llm", "falcon", "gpt-2", "llama-bpe", "qwen2")


@pytest.mark.shared
@pytest.mark.parametrize("name", _BYTE_LEVEL)
def test_vocabularies_of_real_models_come_back(shared: Path, tmp_path: Path, name: str) -> None:
    """From llama.cpp's own GGUF to a tokenizer.json and back: the same name, tokens, types and merges."""
    path = shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf"
    expected = gguf_vocabulary(path)
    ids = {f"{role}_token_id": expected.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    folder = write_folder(tmp_path, tokenizer=tokenizer_json_of_gguf(path))
    metadata = read(folder, len(expected["tokenizer.ggml.tokens"]), **ids).metadata
    for key in ("model", "pre", "tokens", "merges", "token_type"):
        found = np.asarray(metadata[f"tokenizer.ggml.{key}"].value)
        different = np.flatnonzero(found != np.asarray(expected[f"tokenizer.ggml.{key}"]))
        # llama.cpp's older files call end tokens ordinary
        assert set(different.tolist()) <= (set(ids.values()) if key == "token_type" else set()), key


@pytest.mark.shared
@pytest.mark.parametrize("name", _BYTE_LEVEL)
def test_stages_give_the_tokens_that_llama_cpp_expects(shared: Path, name: str) -> None:
    contents = tokenizer_json_of_gguf(shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf")
    tokenizer = Tokenizer.from_str(json.dumps({**contents, "normalizer": None}))
    for text, expected in zip(*fixture_texts(shared, name), strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text


@pytest.mark.shared
@pytest.mark.oracles
@pytest.mark.parametrize("name", _BYTE_LEVEL)
def test_llama_cpp_gives_the_same_tokens(shared: Path, tmp_path: Path, name: str) -> None:
    contents = tokenizer_json_of_gguf(shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf")
    folder = write_folder(tmp_path / "hf", tokenizer=contents)
    rows = max(*contents["model"]["vocab"].values(), *(token["id"] for token in contents["added_tokens"]), 0) + 1
    metadata = read(folder, rows, bos_token_id=0, eos_token_id=0).metadata
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        assert len(vocabulary) == rows
        for text, expected in zip(*fixture_texts(shared, name), strict=True):
            assert vocabulary.tokenize(text) == expected, text


@pytest.mark.parametrize("known", pre_tokenizers(), ids=lambda known: known.name)
def test_every_structure_is_identified(known: PreTokenizer, tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        tokenizer=train_byte_level(known.name),
        tokenizer_config={"clean_up_tokenization_spaces": known.clean_spaces},
    )
    assert read(folder, 701).metadata["tokenizer.ggml.pre"].value == known.name


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "deepseek-v3", "falcon", "starcoder"])
def test_added_tokens_are_found_in_text(name: str, tmp_path: Path) -> None:
    """Markup is one token when special tokens are parsed; tokens that are text always are, in both libraries."""
    contents = train_byte_level(name)
    size = len(contents["model"]["vocab"])
    added = [(size, "<|im_start|>", True), (size + 1, "<think>", False), (size + 2, "    ", False)]
    known = {
        **contents,
        "added_tokens": tokenizer_json({}, [], [], added=added)["added_tokens"],
        "normalizer": None,
    }
    tokenizer = Tokenizer.from_str(json.dumps(known))
    folder = write_folder(tmp_path / "hf", tokenizer=known)
    metadata = read(folder, size + 8, eos_token_id=size).metadata
    text = "<|im_start|>user\nfox<think>the    quick brown</think>"
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        assert vocabulary.tokenize(text, parse_special=True) == tokenizer.encode(text).ids
        assert size not in vocabulary.tokenize(text)
        assert {size + 1, size + 2} <= set(vocabulary.tokenize(text))


@pytest.mark.oracles
def test_ignore_merges_is_implied_by_the_name(tmp_path: Path) -> None:
    """A token that no merge makes becomes a word's token with llama-bpe (ignore_merges), and stays in parts with smaug-bpe."""
    for name, ignores in (("llama-bpe", True), ("smaug-bpe", False)):
        contents = train_byte_level(name)
        vocab = {**contents["model"]["vocab"], "Ġzyzzyva": len(contents["model"]["vocab"])}
        contents = {**contents, "model": {**contents["model"], "vocab": vocab}}
        folder = write_folder(tmp_path / name, tokenizer=contents)
        metadata = read(folder, len(vocab), eos_token_id=0).metadata
        assert metadata["tokenizer.ggml.pre"].value == name
        with LlamaVocabulary(write_vocabulary(tmp_path / f"{name}.gguf", metadata)) as vocabulary:
            ids = vocabulary.tokenize("the zyzzyva")
        assert ids == Tokenizer.from_str(json.dumps(contents)).encode("the zyzzyva").ids
        assert (len(vocab) - 1 in ids) == ignores


def test_vocab_and_merges_of_gpt2(tmp_path: Path) -> None:
    model = train_byte_level("gpt-2")["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    slow = write_folder(tmp_path / "slow", vocab=model["vocab"], merges__txt=merges)
    fast = write_folder(tmp_path / "fast", tokenizer=train_byte_level("gpt-2"))
    found, expected = read(slow, 700, eos_token_id=5).metadata, read(fast, 700, eos_token_id=5).metadata
    assert list(found) == list(expected)
    for key, field in expected.items():
        assert np.array_equal(np.asarray(found[key].value), np.asarray(field.value)), key


@pytest.mark.parametrize(("name", "pre"), [("Qwen2Tokenizer", "qwen2"), ("GPT2TokenizerFast", "gpt-2")])
def test_vocab_and_merges_by_class(tmp_path: Path, name: str, pre: str) -> None:
    model = train_byte_level("gpt-2")["model"]
    merges = "\r\n".join(f"{left} {right}" for left, right in model["merges"])
    folder = write_folder(
        tmp_path, vocab=model["vocab"], merges__txt=merges, tokenizer_config={"tokenizer_class": name}
    )
    assert read(folder, 700).metadata["tokenizer.ggml.pre"].value == pre


def test_vocab_and_merges_of_an_unknown_class(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path, vocab={"a": 0}, merges__txt="", tokenizer_config={"tokenizer_class": "BertTokenizer"}
    )
    with pytest.raises(TokenizerError, match=r"BertTokenizer .* --pre-tokenizer NAME"):
        read(folder, 1)
    assert read(folder, 1, pre_tokenizer="phi-2").metadata["tokenizer.ggml.pre"].value == "phi-2"


@pytest.mark.parametrize("merge", ["a b", ["a", "b"]])
def test_merges_in_both_forms(merge: object) -> None:
    assert read_merges([merge], {"a": 0, "b": 1, "ab": 2}, Path("t")) == [("a", "b")]


def test_merges_of_tokens_with_spaces() -> None:
    ids = {"a ": 0, "b": 1, "a b": 2, " ": 3, "  ": 4}
    assert read_merges(["a  b", "   "], ids, Path("t")) == [("a ", "b"), (" ", " ")]


@pytest.mark.parametrize("merge", ["ab", "a c", "a b c", ["a"], ["a", 1], 7, None, ["a", "b", "c"], ["b", "a"], ""])
def test_merges_of_no_tokens_are_refused(merge: object) -> None:
    with pytest.raises(TokenizerError, match="joins no two tokens"):
        read_merges([merge], {"a": 0, "b": 1, "ab": 2}, Path("t"))


@pytest.mark.parametrize(
    "value", [{}, {"a": -1}, {"a": "0"}, {"a": True}, {"a": 1 << 40}, {"a": 1, "b": 1}, {"a": 1.5}]
)
def test_impossible_ids_are_refused(value: object) -> None:
    with pytest.raises(TokenizerError):
        token_ids(value, "model.vocab", Path("t"))


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordPiece", "vocab": {"a": 0}},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"},
        {"type": "BPE", "vocab": {"a": 0}, "merges": "a b"},
        {"type": "BPE", "vocab": ["a"], "merges": []},
        {"type": "BPE", "vocab": {"a": 0, "bc": 1}, "merges": []},
        {"vocab": {"a": 0}},
        [],
        None,
    ],
)
def test_other_models_are_refused(tmp_path: Path, model: object) -> None:
    contents = {**train_byte_level("gpt-2"), "model": model}
    with pytest.raises((TokenizerError, FormatError)) as caught:
        read(write_folder(tmp_path, tokenizer=contents), 10)
    assert caught.value.path == tmp_path / "tokenizer.json"


def test_notes_say_what_llama_cpp_does_otherwise(tmp_path: Path) -> None:
    contents = deepcopy(train_byte_level("tekken")) | {"normalizer": {"type": "NFC"}}
    contents["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True
    notes = " ".join(read(write_folder(tmp_path, tokenizer=contents), 700).notes)
    for word in ("NFC", "combining marks", "puts a space in front", "token 11"):
        assert word in notes


def test_texts_cover_every_stage() -> None:
    """Guards the tests above: no pre-tokenizer may cut all texts as another does, unless their stages are equal."""
    cuts: dict[str, tuple[Stage, ...]] = {}
    for known in pre_tokenizers():
        cutter = Tokenizer.from_str(json.dumps(train_byte_level(known.name))).pre_tokenizer
        key = json.dumps([cutter.pre_tokenize_str(text) for text in TEXTS])
        if known.name != "bailingmoe":  # other expressions for what qwen2's do
            assert cuts.setdefault(key, known.stages) == known.stages, known.name
