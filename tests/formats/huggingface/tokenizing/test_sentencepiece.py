"""Sentencepiece: llama.cpp gives the tokens of the sentencepiece package, from tokenizer.model and from its tokenizer.json form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import CORPUS, TEXTS, fixture_texts, gguf_vocabulary, read, train_sentencepiece, write_folder

from qconv.errors import TokenizerError
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult
from qconv.formats.metadata import Field


def _same_tokens(metadata: Mapping[str, Field], model: bytes, texts: Iterable[str], folder: Path) -> int:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    compared = 0
    with LlamaVocabulary(write_vocabulary(folder / "v.gguf", metadata)) as vocabulary:
        assert len(vocabulary) == len(processor)
        for text in texts:
            assert vocabulary.tokenize(text) == processor.encode(text), text
            compared += 1
    return compared


def _json_form(model: bytes, **parts: Any) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a BPE ``model``: every division of a piece, by falling score."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = {processor.id_to_piece(i): i for i in range(len(processor))}
    merges = [
        (-processor.get_score(token), pieces[text[:i]], pieces[text[i:]], [text[:i], text[i:]])
        for text, token in pieces.items()
        for i in range(1, len(text))
        if text[:i] in pieces
        and text[i:] in pieces
        and not processor.is_byte(token)
        and not processor.is_control(token)
    ]
    special = [i for i in pieces.values() if processor.is_control(i) or processor.is_unknown(i)]
    return {
        "added_tokens": [{"id": i, "content": processor.id_to_piece(i), "special": True} for i in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": pieces,
            "merges": [merge for *_, merge in sorted(merges)],
        },
        **parts,
    }


@pytest.mark.shared
def test_llama_2_equals_llama_cpps_own_vocabulary(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "fixtures" / "tokenizers" / "llama-2" / "tokenizer.model", tmp_path)
    metadata = read(tmp_path, 32000).metadata
    expected = gguf_vocabulary(shared / "fixtures" / "vocab" / "ggml-vocab-llama-spm.gguf")
    keys = ("model", "pre", "tokens", "scores", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id")
    for key in (*keys, "add_bos_token", "add_eos_token"):
        name = f"tokenizer.ggml.{key}"
        assert np.array_equal(np.asarray(metadata[name].value), np.asarray(expected[name])), key


@pytest.mark.shared
@pytest.mark.oracles
def test_llama_2_gives_the_expected_tokens(shared: Path, tmp_path: Path) -> None:
    path = shared / "fixtures" / "tokenizers" / "llama-2" / "tokenizer.model"
    shutil.copy(path, tmp_path)
    texts, expected = fixture_texts(shared, "llama-spm")
    metadata = read(tmp_path, 32000).metadata
    assert _same_tokens(metadata, path.read_bytes(), (*texts, *TEXTS), tmp_path) > 40
    with LlamaVocabulary(tmp_path / "v.gguf") as vocabulary:
        assert [vocabulary.tokenize(text) for text in texts] == expected
        assert vocabulary.tokenize("x", add_special=True)[0] == vocabulary.special("bos") == 1


@pytest.mark.shared
@pytest.mark.oracles
def test_phi_3_added_tokens(shared: Path, tmp_path: Path) -> None:
    """Phi-3 is Llama 2's model with added tokens and padded rows; llama.cpp's own conversion is the measure."""
    shutil.copy(shared / "fixtures" / "tokenizers" / "llama-2" / "tokenizer.model", tmp_path)
    expected = gguf_vocabulary(shared / "fixtures" / "vocab" / "ggml-vocab-phi-3.gguf")
    tokens, kinds = expected["tokenizer.ggml.tokens"], expected["tokenizer.ggml.token_type"]
    decoder = {
        str(i): {"content": tokens[i], "special": kinds[i] == 3}
        for i in range(len(tokens))
        if i < 3 or (i >= 32000 and kinds[i] != 5)
    }
    write_folder(
        tmp_path,
        tokenizer_config={"added_tokens_decoder": decoder, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    )
    metadata = read(tmp_path, len(tokens)).metadata
    assert list(metadata["tokenizer.ggml.tokens"].value) == tokens  # type: ignore[arg-type] # an array of texts
    for key in ("eos_token_id", "padding_token_id", "bos_token_id", "add_bos_token"):
        assert metadata[f"tokenizer.ggml.{key}"].value == expected[f"tokenizer.ggml.{key}"], key
    texts, ids = fixture_texts(shared, "phi-3")
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        assert [vocabulary.tokenize(text) for text in texts] == ids
        assert vocabulary.tokenize("<|user|>", parse_special=True) == [tokens.index("<|user|>")]


@pytest.mark.shared
@pytest.mark.oracles
@pytest.mark.parametrize("name", ["prose-llama-7m", "stories260K/hf", "bitllama2-3M/hf", "babyllama-tok105/hf"])
def test_models_give_the_tokens_of_sentencepiece(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "models" / name
    config = json.loads((folder / "config.json").read_text())
    result = read(folder, config["vocab_size"], **config)
    data = (folder / "tokenizer.model").read_bytes()
    texts, _ = fixture_texts(shared, "llama-spm")
    texts += (shared / "text" / "tinystories.txt").read_text()[:20000].split("\n")
    if any("repeated spaces" in note for note in result.notes):
        texts = [text for text in texts if text == " ".join(text.split()) and text]
    if any("no byte tokens" in note for note in result.notes):
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        texts = [text for text in texts if processor.unk_id() not in processor.encode(text)]
    assert _same_tokens(result.metadata, data, texts, tmp_path) > 20


@pytest.mark.oracles
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
def test_trained_models(tmp_path: Path, kind: str, prefix: bool) -> None:
    model = train_sentencepiece(kind, add_dummy_prefix=prefix)
    metadata = read(write_folder(tmp_path, tokenizer__model=model), len(_processor(model))).metadata
    assert metadata["tokenizer.ggml.model"].value == {"bpe": "llama", "unigram": "t5"}[kind]
    assert metadata["tokenizer.ggml.add_space_prefix"].value is prefix
    assert metadata["tokenizer.ggml.add_bos_token"].value is (kind == "bpe")
    texts = TEXTS if kind == "bpe" else _unigram_texts(model)
    assert _same_tokens(metadata, model, texts, tmp_path) > 5


@pytest.mark.oracles
def test_unigram_models_drop_spaces_and_normalize(tmp_path: Path) -> None:
    """What llama.cpp's unigram tokenizer can do, it is told: repeated spaces and the compiled normalization."""
    model = train_sentencepiece("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    metadata = read(write_folder(tmp_path, tokenizer__model=model), len(_processor(model))).metadata
    assert metadata["tokenizer.ggml.remove_extra_whitespaces"].value is True
    texts = ["  the   quick brown  ", "ｔｈｅ ｆｏｘ ﬁｎｄｓ", "the fox"]
    assert _same_tokens(metadata, model, texts, tmp_path) == 3


@pytest.mark.oracles
def test_user_defined_pieces(tmp_path: Path) -> None:
    """They are found whole in plain text, even if they stand for spaces."""
    model = train_sentencepiece("bpe", user_defined_symbols=("<sep>", "▁▁▁▁"), add_dummy_prefix=False)
    processor = _processor(model)
    metadata = read(write_folder(tmp_path, tokenizer__model=model), len(processor)).metadata
    assert {"<sep>", "    "} <= set(metadata["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type] # texts
    texts = ["the<sep>fox", "the    fox", "quick<sep>    <sep>brown"]
    assert _same_tokens(metadata, model, texts, tmp_path) == 3


def _only_json(folder: Path, contents: Mapping[str, Any], rows: int, **parts: Any) -> TokenizerResult:
    return read(write_folder(folder, tokenizer=contents, **parts), rows)


def test_the_examples_json_form_equals_its_model(example_model: Path, tmp_path: Path) -> None:
    config = json.loads((example_model / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(example_model / name, tmp_path)
    found, expected = (read(folder, 4096, **config) for folder in (tmp_path, example_model))
    assert list(found.metadata) == list(expected.metadata)
    for key, field in expected.metadata.items():
        if key != "tokenizer.ggml.scores":
            assert np.array_equal(np.asarray(found.metadata[key].value), np.asarray(field.value)), key
    assert found.notes == expected.notes == ()


@pytest.mark.oracles
def test_the_examples_json_form_gives_the_same_tokens(example_model: Path, tmp_path: Path) -> None:
    shutil.copy(example_model / "tokenizer.json", tmp_path)
    metadata = read(tmp_path, 4096, bos_token_id=1, eos_token_id=2).metadata
    lines = (example_model.parents[1] / "errors.py").read_text().split("\n\n")
    assert _same_tokens(metadata, (example_model / "tokenizer.model").read_bytes(), (*TEXTS, *lines), tmp_path) > 50


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("parts", "prefix"),
    [
        ({}, True),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}, False),
        (
            {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
            True,
        ),
        (
            {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}},
            False,
        ),
        (
            {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}},
            True,
        ),
    ],
)
def test_json_forms(tmp_path: Path, parts: dict[str, Any], prefix: bool) -> None:
    model = train_sentencepiece("bpe", add_dummy_prefix=prefix)
    metadata = _only_json(tmp_path, _json_form(model, **parts), len(_processor(model))).metadata
    assert metadata["tokenizer.ggml.add_space_prefix"].value is prefix
    assert _same_tokens(metadata, model, TEXTS, tmp_path) == len(TEXTS)


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("module", "name", "prefix"), [("llama", "LlamaTokenizer", True), ("gemma", "GemmaTokenizer", False)]
)
def test_tokenizers_that_transformers_builds(tmp_path: Path, module: str, name: str, prefix: bool) -> None:
    model = train_sentencepiece("bpe", add_dummy_prefix=prefix)
    contents = _json_form(model)["model"]
    family = getattr(import_module(f"transformers.models.{module}.tokenization_{module}"), name)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "mask_token": None}
    tokenizer = family(vocab=contents["vocab"], merges=[tuple(merge) for merge in contents["merges"]], **special)
    tokenizer.save_pretrained(tmp_path / "hf")
    metadata = read(tmp_path / "hf", len(_processor(model))).metadata
    assert metadata["tokenizer.ggml.add_space_prefix"].value is prefix
    assert _same_tokens(metadata, model, TEXTS, tmp_path) == len(TEXTS)


@pytest.mark.oracles
def test_json_form_of_a_unigram_model(tmp_path: Path) -> None:
    model = train_sentencepiece("unigram")
    processor = _processor(model)
    contents = {
        "added_tokens": [{"id": i, "content": processor.id_to_piece(i), "special": True} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[processor.id_to_piece(i), processor.get_score(i)] for i in range(len(processor))],
        },
    }
    metadata = _only_json(tmp_path, contents, len(processor)).metadata
    texts = _unigram_texts(model)
    assert _same_tokens(metadata, model, texts, tmp_path) > 4


def test_merges_that_llama_cpp_cannot_keep_apart_are_refused(tmp_path: Path) -> None:
    contents = _json_form(train_sentencepiece("bpe"))
    left, right = contents["model"]["merges"].pop(3)
    folder = write_folder(tmp_path, tokenizer=contents)
    with pytest.raises(TokenizerError, match=r"no merge joins them .*--pre-tokenizer default"):
        read(folder, 500)
    assert any(f"{left!r} + {right!r}" in note for note in read(folder, 500, pre_tokenizer="default").notes)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": None}, "neither marked"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "digits each"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    ],
)
def test_other_structures_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    contents = _json_form(train_sentencepiece("bpe", split_digits=False), **parts)
    with pytest.raises(TokenizerError, match=message):
        _only_json(tmp_path, contents, 500)


def test_digits_that_no_token_joins_need_no_cutting(tmp_path: Path) -> None:
    model = train_sentencepiece("bpe", split_digits=True)
    contents = _json_form(model, pre_tokenizer={"type": "Digits", "individual_digits": True})
    assert _only_json(tmp_path, contents, len(_processor(model))).metadata["tokenizer.ggml.model"].value == "llama"


@pytest.mark.parametrize("kind", ["word", "char"])
def test_word_and_character_models_are_refused(tmp_path: Path, kind: str) -> None:
    model = train_sentencepiece(kind, byte_fallback=False)
    with pytest.raises(TokenizerError, match=f"type {kind.upper()}"):
        read(write_folder(tmp_path, tokenizer__model=model), 500)


def test_spaces_as_suffixes_are_refused(tmp_path: Path) -> None:
    model = train_sentencepiece("bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(TokenizerError, match="suffixes"):
        read(write_folder(tmp_path, tokenizer__model=model), 500)


def test_notes_say_what_llama_cpp_does_otherwise(tmp_path: Path) -> None:
    model = train_sentencepiece(
        "bpe", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False
    )
    notes = " ".join(read(write_folder(tmp_path, tokenizer__model=model), len(_processor(model)), "qwen2").notes)
    for words in ("nmt_nfkc", "repeated spaces", "no byte tokens", "--pre-tokenizer qwen2 changes nothing"):
        assert words in notes


def _unigram_texts(model: bytes) -> list[str]:
    """Texts without what llama.cpp's unigram tokenizer does otherwise: unknown characters, and nothing but spaces."""
    processor = _processor(model)
    return [
        text for text in (*CORPUS, *TEXTS) if text.strip() and not any(map(processor.is_byte, processor.encode(text)))
    ]


def _processor(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
