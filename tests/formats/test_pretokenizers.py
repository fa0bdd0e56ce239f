"""The table of pre-tokenizers: well formed, and every name means to llama.cpp what its stages do in the tokenizers package."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import TEXTS, read, train_byte_level, write_folder
from tokenizers import Tokenizer

from qconv.formats.metadata import string
from qconv.formats.pretokenizers import (
    PreTokenizer,
    Stage,
    canonical_pattern,
    find_pre_tokenizer,
    pre_tokenizer_names,
    pre_tokenizers,
    to_tokenizer_json,
)

_CAPITALS = "[À-ÖØ-ÞА-Я]"
_MARKS = "[\u0900-\u0dff\u0e00-\u0eff\u1780-\u17ff\ufe0f]"
# what ``deviation`` tells the user: texts on which llama.cpp is known to cut otherwise
_DEVIATES = {
    "gpt-4o": re.compile(f"{_CAPITALS}|{_MARKS}"),
    "granite-embed-multi-97m": re.compile(_CAPITALS),
    "tekken": re.compile(f"{_CAPITALS}|{_MARKS}"),
    "tiny_aya": re.compile(r"\d"),
}


def test_names_are_unique_and_found() -> None:
    counts = Counter(name for known in pre_tokenizers() for name in known.names)
    assert max(counts.values()) == 1
    assert pre_tokenizer_names() == tuple(sorted(counts))
    for known in pre_tokenizers():
        assert all(find_pre_tokenizer(name) is known for name in known.names)
    assert find_pre_tokenizer("no such name") is None


def test_entries_with_equal_stages_differ_in_what_tells_them_apart() -> None:
    told = Counter(
        (known.stages, known.ignore_merges, known.clean_spaces, known.normalizer, known.token)
        for known in pre_tokenizers()
    )
    assert max(told.values()) == 1


def test_the_families_of_the_specification_are_there() -> None:
    wanted = "gpt-2 llama-bpe qwen2 deepseek-llm deepseek-coder deepseek-v3 falcon starcoder refact stablelm2 olmo command-r dbrx"
    wanted += " smaug-bpe gpt-4o tekken smollm exaone minicpm5 chatglm-bpe glm4 qwen35"
    assert set(wanted.split()) <= set(pre_tokenizer_names())


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("[\r\n]", r"[\r\n]"),
        (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
        ("no pattern of ours", "no pattern of ours"),
    ],
)
def test_spellings(spelling: str, canonical: str) -> None:
    assert canonical_pattern(spelling) == canonical


@pytest.mark.parametrize("known", pre_tokenizers(), ids=lambda known: known.name)
def test_stages_lose_no_text(known: PreTokenizer) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(train_byte_level(known.name)))
    assert json.loads(tokenizer.to_str())["pre_tokenizer"]["type"] == "Sequence"
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_other_stages_are_written_as_they_were_read() -> None:
    step = {"type": "CharDelimiterSplit", "delimiter": "x"}
    assert to_tokenizer_json([Stage("other", json.dumps(step))])["pretokenizers"] == [step]


@pytest.mark.oracles
@pytest.mark.parametrize("known", pre_tokenizers(), ids=lambda known: known.name)
def test_llama_cpp_cuts_text_as_the_stages_do(known: PreTokenizer, tmp_path: Path) -> None:
    """Every name loads, and gives the ids of the tokenizers package for a vocabulary trained with these stages."""
    contents = train_byte_level(known.name)
    tokenizer = Tokenizer.from_str(json.dumps({**contents, "normalizer": None}))
    folder = write_folder(tmp_path / "hf", tokenizer=contents)
    metadata = dict(read(folder, 701, pre_tokenizer=known.name, bos_token_id=0, eos_token_id=0).metadata)
    deviates = _DEVIATES.get(known.name)
    assert (deviates is not None) == (known.deviation is not None)
    for name in known.names:
        metadata["tokenizer.ggml.pre"] = string(name)
        with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
            for text in TEXTS:
                if deviates is None or not deviates.search(text):
                    assert vocabulary.tokenize(text) == tokenizer.encode(text).ids, (name, text)


@pytest.mark.oracles
def test_llama_cpp_refuses_other_names(tmp_path: Path) -> None:
    """The test above would pass for any name if llama.cpp accepted any."""
    folder = write_folder(tmp_path / "hf", tokenizer=train_byte_level("gpt-2"))
    metadata = dict(read(folder, 700).metadata) | {"tokenizer.ggml.pre": string("no-such-name")}
    with pytest.raises(OSError, match="refuses"):
        LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata))
