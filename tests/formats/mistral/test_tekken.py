"""``tekken.json``: its tokens, and the same tokens as tiktoken gives."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from mistral_files import tekken, write_small
from tokenizer_folders import CORPUS, TEXTS, fixture_texts
from tokenizers import Tokenizer

import qconv
from qconv.errors import FormatError, QconvError, TokenizerError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface.tokenizing.vocabulary import TokenType
from qconv.formats.mistral import open_mistral
from qconv.formats.mistral.tekken import tekken_vocabulary
from qconv.runtime.tokenizing.tokenizer import load_tokenizer

FIXTURES = ("deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")


def write(path: Path, contents: object) -> Path:
    path.write_text(json.dumps(contents))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tekken.json"


def tiny(*tokens: bytes, special: object = None, **config: Any) -> dict[str, Any]:
    """A file with the 256 bytes, further tokens, and three special ones."""
    words = [*(bytes([value]) for value in range(256)), *tokens]
    made = tekken()
    sizes = {"default_vocab_size": len(words) + 3, "default_num_special_tokens": 3}
    return {
        "config": made["config"] | sizes | config,
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(it).decode(), "token_str": None} for i, it in enumerate(words)],
        "special_tokens": special,
    }  # fmt: skip


def test_vocabulary(path: Path) -> None:
    special = [{"rank": 1, "token_str": "<s>", "is_control": True}, {"rank": 0, "token_str": "x", "is_control": False}]
    write(path, tiny(b"ab", b"bc", b" a", b"abc", "é".encode(), special=special))
    found = tekken_vocabulary(path, None)
    assert found.tokens[:3] == ("x", "<s>", "<SPECIAL_2>")
    assert found.types[:4] == (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL)
    assert found.tokens[3 + 0x41] == "A"
    assert found.tokens[259:] == ("ab", "bc", "Ġa", "abc", "Ã©")
    assert found.metadata["tokenizer.ggml.merges"].value == ("a b", "b c", "Ġ a", "a bc", "ab c", "Ã ©")
    assert found.metadata["tokenizer.ggml.pre"].value == "tekken"
    assert found.special == {"bos": 1}


def test_files_of_the_first_versions_name_no_special_tokens(path: Path) -> None:
    contents = tiny(b"ab", default_vocab_size=256 + 1 + 22, default_num_special_tokens=22)
    write(path, contents)
    found = tekken_vocabulary(path, None)
    assert found.tokens[:4] == ("<unk>", "<s>", "</s>", "[INST]")
    assert found.tokens[19:22] == ("[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_21>")
    assert found.special == {"unk": 0, "bos": 1, "eos": 2, "pad": 11}


def test_tokens_beyond_the_size_are_left_out(path: Path) -> None:
    found = tekken_vocabulary(write(path, tiny(b"ab", b"bc", default_vocab_size=3 + 257)), None)
    assert found.tokens[-1] == "ab"
    assert len(found.tokens) == 260
    assert found.metadata["tokenizer.ggml.merges"].value == ("a b",)


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda made: {name: value for name, value in made.items() if name != key}


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda made: made | {"config": made["config"] | changes}


def _entry(place: int, **changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(made: dict[str, Any]) -> dict[str, Any]:
        made["vocab"][place] |= changes
        return made

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without("config"), "config should be an object"),
        (_without("vocab"), "vocab should be a list"),
        (_with(default_vocab_size="all"), "config.default_vocab_size should be an integer"),
        (_with(default_num_special_tokens=0), "config.default_num_special_tokens is 0"),
        (_with(default_vocab_size=3), "config asks for 0 tokens beside the special ones"),
        (_with(default_vocab_size=1000), "config asks for 997 tokens beside the special ones, vocab has 257"),
        (_with(default_vocab_size=1 << 30), "config.default_vocab_size is 1073741824"),
        (_with(pattern=None), "config.pattern should be a string"),
        (_with(pattern="[a-z]+"), "its pre-tokenizer is none that GGUF runtimes know"),
        (_entry(256, rank=7), "the entry 256 of vocab has another rank"),
        (_entry(256, token_bytes="YQ=="), "the entry 256 of vocab has another rank, or its token is there twice"),
        (_entry(256, token_bytes="é"), "the entry 256 of vocab has no token"),
        (_entry(256, token_bytes="Y"), "the entry 256 of vocab has no token"),
        (_entry(256, token_bytes=""), "the entry 256 of vocab has no token"),
        (_entry(256, token_bytes=base64.b64encode(bytes(1025)).decode()), "the entry 256 of vocab has no token"),
        (_entry(0, token_bytes="YWI="), "the entry 256 of vocab has another rank, or its token is there twice"),
        (_entry(0, token_bytes="YWJj"), "no token is the byte 0x00"),
        (_entry(256, token_bytes="eHl6"), "no token is made of two others"),
        (lambda made: made | {"special_tokens": [{"rank": 3, "token_str": "<x>"}]}, "special_tokens has the rank 3"),
        (lambda made: made | {"special_tokens": [{"rank": 0, "token_str": "<x>"}] * 2}, "special_tokens has the rank 0"),
        (lambda made: made | {"special_tokens": [{"rank": 0, "token_str": ""}]}, "special_tokens has the rank 0"),
        (lambda made: made | {"special_tokens": {}}, "special_tokens should be a list"),
        (lambda made: made | {"vocab": [1] * 300}, "the entry 0 of vocab should be an object"),
    ],
)  # fmt: skip
def test_malformed_files(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], problem: str) -> None:
    write(path, change(tiny(b"ab")))
    with pytest.raises(QconvError, match=problem.replace("[", r"\[")) as caught:
        tekken_vocabulary(path, None)
    assert isinstance(caught.value, FormatError | TokenizerError)
    assert caught.value.path == path


def test_the_user_may_choose_how_text_is_cut(path: Path) -> None:
    write(path, tiny(b"ab", pattern="[a-z]+"))
    found = tekken_vocabulary(path, "tekken")
    assert found.metadata["tokenizer.ggml.pre"].value == "tekken"
    assert any("--pre-tokenizer tekken is used" in note for note in found.notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("tekken") / "model")


def reference(text: str) -> list[int]:
    """What tiktoken makes of a text, behind the special tokens and the first of them, as mistral-common has it."""
    import tiktoken

    made = tekken()
    config = made["config"]
    special = config["default_num_special_tokens"]
    kept = made["vocab"][: config["default_vocab_size"] - special]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in kept}
    encoding = tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
    return [1, *(token + special for token in encoding.encode_ordinary(text))]


def check_tokens(folder: Path, context: OpenContext, texts: Sequence[str]) -> None:
    with open_mistral(folder, context) as model:
        tokenizer = load_tokenizer(model)
        for text in texts:
            assert tokenizer.encode(text).tolist() == reference(text), text


@pytest.mark.oracles
def test_the_same_tokens_as_tiktoken(folder: Path, context: OpenContext) -> None:
    check_tokens(folder, context, [*TEXTS, *CORPUS])
    assert len({tuple(reference(text)) for text in TEXTS}) == len(TEXTS)


@pytest.mark.oracles
@pytest.mark.shared
@pytest.mark.parametrize("name", FIXTURES)
def test_the_same_tokens_of_llama_cpps_texts(folder: Path, context: OpenContext, shared: Path, name: str) -> None:
    check_tokens(folder, context, fixture_texts(shared, name)[0])


@pytest.mark.oracles
def test_the_same_tokens_in_hugging_faces_form(folder: Path, tmp_path: Path) -> None:
    qconv.convert_model(folder, tmp_path / "out", to="huggingface")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in (*TEXTS, *CORPUS):
        assert [1, *tokenizer.encode(text, add_special_tokens=False).ids] == reference(text), text


@pytest.mark.oracles
def test_the_same_tokens_as_llama_cpp(folder: Path, context: OpenContext, tmp_path: Path) -> None:
    with open_mistral(folder, context) as model:
        path = write_vocabulary(tmp_path / "vocabulary.gguf", model.metadata)
    with LlamaVocabulary(path) as vocabulary:
        assert (vocabulary.special("bos"), vocabulary.special("eos"), vocabulary.special("pad")) == (1, 2, 5)
        assert vocabulary.adds_bos
        for text in CORPUS:
            assert vocabulary.tokenize(text, add_special=True) == reference(text)
        assert vocabulary.tokenize("[INST]a</s>", parse_special=True) == [3, *reference("a")[1:], 2]
