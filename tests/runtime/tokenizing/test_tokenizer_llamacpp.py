"""The runtime's tokenizers beside real llama.cpp: the same tokens for the same text, special tokens and damaged bytes included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from runtime_tokenizers import folder_metadata, odd_texts, tokenizer_of, tokenizer_of_gguf, with_keys
from tokenizer_folders import (
    TEXTS,
    fixture_texts,
    read,
    read_ranked,
    train_byte_level,
    train_ranked,
    train_sentencepiece,
    write_folder,
)
from tokenizers import Tokenizer as LibraryTokenizer

from qconv.formats.metadata import ValueType, numbers, string
from qconv.runtime.tokenizing.tokenizer import Tokenizer

VOCABULARIES = ("deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")


@dataclass(frozen=True)
class Pair:
    """A tokenizer of ours and llama.cpp's for the same vocabulary."""

    ours: Tokenizer
    theirs: LlamaVocabulary

    def compare(self, text: str) -> None:
        """Fail unless both give the same tokens, in all four modes."""
        for add_special in (False, True):
            for parse_special in (False, True):
                modes: dict[str, Any] = {"add_special": add_special, "parse_special": parse_special}
                assert self.ours.encode(text, **modes).tolist() == self.theirs.tokenize(text, **modes), (text, modes)


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def example(stack: ExitStack, example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tokenizer of the model that ships with the project."""
    metadata = folder_metadata(example_model)
    path = write_vocabulary(tmp_path_factory.mktemp("example") / "v.gguf", metadata)
    return Pair(tokenizer_of(metadata), stack.enter_context(LlamaVocabulary(path)))


@pytest.fixture(scope="module", params=VOCABULARIES)
def fixture_pair(request: pytest.FixtureRequest, stack: ExitStack, shared: Path) -> Pair:
    """Each vocabulary of real models."""
    path = shared / "fixtures" / "vocab" / f"ggml-vocab-{request.param}.gguf"
    return Pair(tokenizer_of_gguf(path), stack.enter_context(LlamaVocabulary(path)))


@pytest.mark.shared
@pytest.mark.parametrize("name", VOCABULARIES)
def test_fixtures_tokenize_exactly(shared: Path, name: str) -> None:
    texts, expected = fixture_texts(shared, name)
    tokenizer = tokenizer_of_gguf(shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf")
    assert len(texts) == 47
    for text, tokens in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special=False).tolist() == tokens, text
        assert tokenizer.decode(tokens) == text


@pytest.mark.oracles
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_example_on_any_text(example: Pair, data: st.DataObject) -> None:
    example.compare(data.draw(odd_texts(example.ours.vocabulary.tokens, damaged=True)))


@pytest.mark.oracles
@pytest.mark.parametrize(
    "text", [*TEXTS, "<s>", "a<s> b</s></s>\n<unk>", "<0x41>", "</s", "\0", "x" * 5000, " " * 3000]
)
def test_the_example_on_known_texts(example: Pair, text: str) -> None:
    example.compare(text)


@pytest.mark.oracles
def test_the_example_on_its_own_sources(example: Pair, root: Path) -> None:
    example.compare((root / "errors.py").read_text())


@pytest.mark.shared
@pytest.mark.oracles
@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_real_vocabularies_on_any_text(fixture_pair: Pair, data: st.DataObject) -> None:
    fixture_pair.compare(data.draw(odd_texts(fixture_pair.ours.vocabulary.tokens, damaged=True)))


@pytest.mark.shared
@pytest.mark.oracles
def test_real_vocabularies_mean_the_same(fixture_pair: Pair) -> None:
    """Every token's bytes, every end of generation, every special id."""
    ours, theirs = fixture_pair.ours, fixture_pair.theirs
    assert ours.size == len(theirs)
    for special in (False, True):
        pieces = ((i, ours.piece(i, special=special), theirs.piece(i, special=special)) for i in range(ours.size))
        assert [found for found in pieces if found[1] != found[2]] == []
    ends = [i for i in range(ours.size) if theirs.ends_generation(i)]
    assert [i for i in range(ours.size) if ours.is_end_of_generation(i)] == ends != []
    for role in ("bos", "eos", "eot", "pad"):
        assert ours.vocabulary.roles.get(role, -1) == theirs.special(role), role
    assert ours.adds_bos == theirs.adds_bos


@pytest.mark.shared
@pytest.mark.oracles
def test_real_vocabularies_decode_alike(fixture_pair: Pair) -> None:
    """Texts that llama.cpp does not tidy: it drops spaces before punctuation for some pre-tokenizers."""
    for text in TEXTS:
        tokens = fixture_pair.ours.encode(text, add_special=False).tolist()
        assert fixture_pair.ours.decode(tokens) == text
        if not any(mark in text for mark in (" '", " .", " ,", " ?", " !")):
            assert fixture_pair.theirs.detokenize(tokens).decode() == text


@pytest.mark.shared
@pytest.mark.oracles
def test_a_whole_text(fixture_pair: Pair, shared: Path) -> None:
    fixture_pair.compare((shared / "text" / "wiki.test.raw").read_text()[:60_000])


@pytest.mark.oracles
def test_phi_3s_tokens_take_the_spaces_behind_them(tmp_path: Path) -> None:
    model = train_sentencepiece("bpe", user_defined_symbols=("<|user|>", "<|x|>"), control_symbols=("<|endoftext|>",))
    metadata = dict(read(write_folder(tmp_path / "hf", tokenizer__model=model), 500).metadata)
    for name in ("Phi-3 mini", "tiny phi3", "other"):
        path = write_vocabulary(tmp_path / "v.gguf", metadata | {"general.name": string(name)})
        with LlamaVocabulary(path) as vocabulary:
            pair = Pair(tokenizer_of_gguf(path), vocabulary)
            texts = ("<|user|> \n\tthe fox<|x|>  <|endoftext|>  y", "<s> x", "</s> x<|user|> ", "<|user|>\u00a0x <|x|>")
            for text in texts:
                pair.compare(text)
            assert (pair.ours.encode(texts[0]).tolist() == pair.ours.encode(texts[0].replace("\n", "")).tolist()) == (
                name != "other"
            )


@pytest.mark.oracles
@pytest.mark.parametrize("prefix", [True, False])
def test_trained_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    """User-defined tokens that overlap, hold spaces, and contain one another."""
    symbols = ("<sep>", "ab<sep>", "▁▁▁▁", "<se", "sep>x")
    model = train_sentencepiece("bpe", user_defined_symbols=symbols, add_dummy_prefix=prefix)
    metadata = read(write_folder(tmp_path / "hf", tokenizer__model=model), 500).metadata
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        pair = Pair(tokenizer_of(metadata), vocabulary)
        for text in (
            *TEXTS,
            "ab<sep>x  the     fox<se p",
            "<sep><sep> <sep>",
            "     ",
            "ab<sep>    ab<sep>x",
            "</s><sep>",
        ):
            pair.compare(text)


@pytest.fixture(scope="module")
def ranked(stack: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Gemma 4's kind of tokenizer."""
    folder = tmp_path_factory.mktemp("ranked")
    metadata = read_ranked(folder / "hf", train_ranked()).metadata
    path = write_vocabulary(folder / "v.gguf", metadata)
    return Pair(tokenizer_of(metadata), stack.enter_context(LlamaVocabulary(path)))


@pytest.mark.oracles
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_gemma_4s_kind_on_any_text(ranked: Pair, data: st.DataObject) -> None:
    ranked.compare(data.draw(odd_texts(ranked.ours.vocabulary.tokens, damaged=True)))


@pytest.mark.oracles
def test_gemma_4s_kind_is_that_of_its_source(ranked: Pair) -> None:
    source = LibraryTokenizer.from_str(json.dumps(train_ranked()))
    texts = (*TEXTS, "a" + "\n" * 9 + "b", "<|turn> x <turn|>\n<|channel>", "x" * 3000, " " * 3000)
    for text in texts:
        found = ranked.ours.encode(text, add_special=False, parse_special=True).tolist()
        assert found == source.encode(text, add_special_tokens=False).ids, text
        assert ranked.ours.decode(found, special=True) == text
        ranked.compare(text)


@pytest.mark.oracles
def test_gemma_4s_kind_means_the_same(ranked: Pair) -> None:
    ours, theirs = ranked.ours, ranked.theirs
    for special in (False, True):
        assert [ours.piece(i, special=special) for i in range(ours.size)] == [
            theirs.piece(i, special=special) for i in range(ours.size)
        ]
    ends = [i for i in range(ours.size) if theirs.ends_generation(i)]
    assert [i for i in range(ours.size) if ours.is_end_of_generation(i)] == ends != []
    assert ours.adds_bos == theirs.adds_bos is True
    for role in ("bos", "eos", "eot", "pad"):
        assert ours.vocabulary.roles.get(role, -1) == theirs.special(role), role


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "tekken", "chameleon", "glm4", "qwen2", "default"])
def test_what_is_added_by_default(tmp_path: Path, name: str) -> None:
    """Without keys, whether a text starts with BOS depends on the pre-tokenizer."""
    metadata = dict(read(write_folder(tmp_path / "hf", tokenizer=train_byte_level(name)), 701, name).metadata)
    for key in ("add_bos_token", "add_eos_token", "bos_token_id", "eos_token_id"):
        metadata.pop(f"tokenizer.ggml.{key}", None)
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        pair = Pair(tokenizer_of(metadata), vocabulary)
        pair.compare("the fox")
        assert [pair.ours.vocabulary.roles.get(role, -1) for role in ("bos", "eos")] == [
            vocabulary.special(role) for role in ("bos", "eos")
        ]


@pytest.mark.oracles
@pytest.mark.parametrize(
    "texts",
    [
        ("<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>"),
        ("<|calls|>", "<|flush|>", "<|end|>"),
        ("<|end|>", "<|call|>"),
        ("<|tool_response>", "</s>", "<eos>"),
        ("<fim_prefix>", "<|file_sep|>", "<fim_pad>", "<|repo_name|>", "<|eom_id|>"),
        ("<|fim_suffix|>", "<|fim_middle|>", "[EOT]"),
    ],
)
def test_what_texts_decide(tmp_path: Path, texts: tuple[str, ...]) -> None:
    """Tokens that are ordinary by their type become special by their text."""
    contents = train_byte_level("gpt-2")
    metadata = read(write_folder(tmp_path / "hf", tokenizer=contents), 700, bos_token_id=0, eos_token_id=0).metadata
    tokens = [*metadata["tokenizer.ggml.tokens"].value, *texts]  # type: ignore[misc] # an array of texts
    types = numbers([1] * len(tokens), ValueType.INT32)
    metadata = with_keys(metadata, tokens=tokens, token_type=types)
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as theirs:
        ours = tokenizer_of(metadata)
        Pair(ours, theirs).compare("the " + " fox".join(texts) + "x")
        assert [i for i in range(ours.size) if theirs.ends_generation(i)] == sorted(ours.vocabulary.ends)
        for i in range(700, ours.size):
            assert ours.piece(i) == theirs.piece(i, special=False)
