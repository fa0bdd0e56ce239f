"""Pre-tokenizers are known by their structure; what is unknown is described, with the nearest known one and the way out."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import TEXTS, read, train_byte_level, write_folder

from qconv.errors import FormatError, TokenizerError
from qconv.formats.pretokenizers import find_pre_tokenizer, pre_tokenizer_names

_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _pre(folder: Path, contents: dict[str, Any], pre_tokenizer: str | None = None, **config: Any) -> object:
    written = write_folder(folder, tokenizer=contents, tokenizer_config=config)
    return read(written, 1000, pre_tokenizer).metadata["tokenizer.ggml.pre"].value


def _with(name: str, pre_tokenizer: object, **model: Any) -> dict[str, Any]:
    contents = deepcopy(train_byte_level(name))
    contents["pre_tokenizer"] = pre_tokenizer
    contents["model"] |= model
    return contents


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False}, "gpt-2"),
        (_sequence({"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}), "starcoder"),
        (_sequence(_split(r"\p{N}"), {"type": "ByteLevel"}), "starcoder"),
        (_sequence(_sequence(_split(_CL100K)), _BYTES), "smaug-bpe"),
        (_sequence(_split(_CL100K, "Removed", True), _BYTES), "smaug-bpe"),
        (_sequence(_split(_CL100K.replace(r"\r\n", "\r\n")), _BYTES), "smaug-bpe"),
        (
            _sequence(
                _split(
                    _CL100K.replace(
                        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
                    )
                ),
                _BYTES,
            ),
            "smaug-bpe",
        ),
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, pre_tokenizer: object, name: str) -> None:
    assert _pre(tmp_path, _with("gpt-2", pre_tokenizer)) == name


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("module", "name", "pre"),
    [
        ("qwen2", "Qwen2Tokenizer", "qwen2"),
        ("qwen3_5", "Qwen3_5Tokenizer", "qwen35"),
        ("gpt2", "GPT2Tokenizer", "gpt-2"),
        ("gpt_neox", "GPTNeoXTokenizer", "olmo"),
        ("cohere", "CohereTokenizer", "command-r"),
    ],
)
def test_tokenizers_that_transformers_builds(tmp_path: Path, module: str, name: str, pre: str) -> None:
    """transformers defines these families in its own code; llama.cpp gives their tokens after our conversion."""
    model = train_byte_level("gpt-2")["model"]
    family = getattr(import_module(f"transformers.models.{module}.tokenization_{module}"), name)
    tokenizer = family(vocab=dict(model["vocab"]), merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.save_pretrained(tmp_path / "hf")
    metadata = read(tmp_path / "hf", len(tokenizer)).metadata
    assert metadata["tokenizer.ggml.pre"].value == pre
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        for text in TEXTS:
            expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            assert vocabulary.tokenize(text) == expected, text


def test_added_tokens_change_nothing(tmp_path: Path) -> None:
    contents = deepcopy(train_byte_level("qwen2"))
    contents["added_tokens"] = [{"id": 700 + i, "content": f"<|extra_{i}|>", "special": True} for i in range(50)]
    assert _pre(tmp_path, contents) == "qwen2"


@pytest.mark.parametrize(("clean", "name"), [(True, "stablelm2"), (False, "qwen2")])
def test_clean_up_decides_between_equal_structures(tmp_path: Path, clean: bool, name: str) -> None:
    contents = _with("qwen2", train_byte_level("qwen2")["pre_tokenizer"]) | {"normalizer": None}
    assert _pre(tmp_path, contents, clean_up_tokenization_spaces=clean) == name


def test_a_marking_token_decides_between_equal_structures(tmp_path: Path) -> None:
    contents = deepcopy(train_byte_level("smaug-bpe"))
    assert _pre(tmp_path / "a", contents) == "smaug-bpe"
    contents["added_tokens"] = [{"id": 700, "content": "[gMASK]", "special": True}]
    assert _pre(tmp_path / "b", contents) == "glm4"


def test_ignore_merges_that_matter_not_are_ignored(tmp_path: Path) -> None:
    """Where merges lead to every token, ignoring them changes no text's tokens, so qwen2 may be written."""
    contents = _with("qwen2", train_byte_level("qwen2")["pre_tokenizer"], ignore_merges=True)
    contents["added_tokens"] = [{"id": len(contents["model"]["vocab"]), "content": "<|im_end|>", "special": True}]
    assert _pre(tmp_path, contents) == "qwen2"


def test_ignore_merges_that_matter_are_refused(tmp_path: Path) -> None:
    contents = _with("qwen2", train_byte_level("qwen2")["pre_tokenizer"], ignore_merges=True)
    contents["model"]["vocab"]["Ġzyzzyva"] = len(contents["model"]["vocab"])
    with pytest.raises(TokenizerError, match=r"ignore_merges is True.*'Ġzyzzyva'.*--pre-tokenizer qwen2"):
        _pre(tmp_path, contents)


@pytest.mark.parametrize(
    ("pre_tokenizer", "found", "nearest"),
    [
        (_sequence(_split(_CL100K.replace("{1,3}", "{1,2}")), _BYTES), "{1,2}", "smaug-bpe|llama-bpe"),
        (
            _sequence({"type": "Punctuation"}, {"type": "ByteLevel"}),
            "punctuation isolated",
            "chameleon|gpt-2|falcon|starcoder",
        ),
        (_sequence(_split(_CL100K, "Removed", False), _BYTES), "Removed", "llama-bpe|smaug-bpe"),
        (_sequence({"type": "WhitespaceSplit"}, {"type": "ByteLevel"}), "WhitespaceSplit", ""),
    ],
)
def test_unknown_structures_are_described(tmp_path: Path, pre_tokenizer: object, found: str, nearest: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        _pre(tmp_path, _with("gpt-2", pre_tokenizer))
    message = str(caught.value)
    assert found in message
    assert any(f"nearest is {name}" in message and f"--pre-tokenizer {name}" in message for name in nearest.split("|"))
    assert caught.value.path == tmp_path / "tokenizer.json"


def test_normalizers_that_matter_are_refused(tmp_path: Path) -> None:
    contents = train_byte_level("gpt-2") | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}
    with pytest.raises(TokenizerError, match=r"Lowercase.*--pre-tokenizer NAME"):
        _pre(tmp_path, contents)


@pytest.mark.parametrize("name", ["gpt-2", "dbrx", "llama3"])
def test_the_users_choice_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    assert _pre(tmp_path, _with("gpt-2", _sequence({"type": "Punctuation"}, {"type": "ByteLevel"})), name) == name
    assert find_pre_tokenizer(name) is not None


def test_an_unknown_choice_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"'quen2'.*did you mean 'qwen2'") as caught:
        _pre(tmp_path, train_byte_level("gpt-2"), "quen2")
    assert all(name in str(caught.value) for name in pre_tokenizer_names())


@pytest.mark.parametrize("pre_tokenizer", [7, [], {"type": "Sequence"}, {"type": "Sequence", "pretokenizers": [1]}])
def test_malformed_structures(tmp_path: Path, pre_tokenizer: object) -> None:
    with pytest.raises(FormatError, match="pre_tokenizer"):
        _pre(tmp_path, _with("gpt-2", pre_tokenizer))
