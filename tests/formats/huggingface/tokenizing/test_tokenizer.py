"""The whole: which vocabulary file is read, how many tokens there are, and what happens to folders that are not sound."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import context, read, train_byte_level, train_sentencepiece, write_folder

from qconv.errors import FormatError, QconvError, TokenizerError
from qconv.formats.huggingface.tokenizing import files as tokenizer_files
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult, read_tokenizer


def _column(result: TokenizerResult, key: str) -> list[Any]:
    return list(result.metadata[f"tokenizer.ggml.{key}"].value)  # type: ignore[arg-type] # an array


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"no tokenizer: neither tokenizer\.model.*Copy the tokenizer's files"
    ) as caught:
        read(write_folder(tmp_path, tokenizer_config={}), 10)
    assert caught.value.path == tmp_path


def test_the_order_of_keys_is_that_of_other_converters(example_model: Path) -> None:
    config = json.loads((example_model / "config.json").read_text())
    result = read_tokenizer(example_model, config, context(), vocab_rows=4096)
    keys = [key.removeprefix("tokenizer.ggml.") for key in result.metadata]
    assert keys[:5] == ["model", "pre", "tokens", "scores", "token_type"]
    assert set(result.files) == {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert [_column(result, key)[3] for key in ("tokens", "token_type")] == ["<0x00>", Kind.BYTE]


def test_another_format_named_tokenizer_model(tmp_path: Path) -> None:
    """Tiktoken's lists of base64 go by this name too; the tokenizer.json beside one is used, and alone it is an error."""
    write_folder(tmp_path, tokenizer__model=b"IQ== 0\nIg== 1\n", tokenizer=train_byte_level("gpt-2"))
    result = read(tmp_path, 700)
    assert result.metadata["tokenizer.ggml.model"].value == "gpt2"
    assert "tokenizer.model is no sentencepiece model; tokenizer.json is used" in result.notes
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FormatError) as caught:
        read(tmp_path, 700)
    assert caught.value.path == tmp_path / "tokenizer.model"


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows(tmp_path: Path, rows: int) -> None:
    with pytest.raises(TokenizerError, match="rows"):
        read(tmp_path, rows)


def test_rows_beyond_the_tokens_are_unused(tmp_path: Path) -> None:
    result = read(write_folder(tmp_path, tokenizer__model=train_sentencepiece("bpe")), 520)
    size = 520 - sum(token.startswith("[PAD") for token in _column(result, "tokens"))
    assert _column(result, "tokens")[size:] == [f"[PAD{i}]" for i in range(size, 520)]
    assert set(_column(result, "token_type")[size:]) == {Kind.UNUSED}
    assert len(_column(result, "scores")) == 520
    assert f"the embedding matrix has {520 - size} rows beyond the vocabulary; they are named [PADn]" in result.notes


@pytest.mark.oracles
def test_llama_cpp_loads_padded_vocabularies(tmp_path: Path) -> None:
    contents = deepcopy(train_byte_level("gpt-2"))
    contents["added_tokens"] = [{"id": 705, "content": "[PAD710]", "special": False}]
    metadata = read(write_folder(tmp_path, tokenizer=contents), 720, eos_token_id=5).metadata
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        assert len(vocabulary) == 720
        assert vocabulary.tokenize("the[PAD710]") == [*vocabulary.tokenize("the"), 705]
        assert 711 not in vocabulary.tokenize("[PAD711]")


def _with_added(folder: Path, *texts: str, **files: Any) -> tuple[Path, int]:
    contents = deepcopy(train_byte_level("gpt-2"))
    size = len(contents["model"]["vocab"])
    contents["added_tokens"] = [{"id": size + i, "content": text, "special": True} for i, text in enumerate(texts)]
    return write_folder(folder, tokenizer=contents, **files), size


def test_added_tokens_without_rows_are_dropped(tmp_path: Path) -> None:
    folder, size = _with_added(tmp_path, "<|a|>", "<|image|>", "<|pad|>", tokenizer_config={"pad_token": "<|pad|>"})
    result = read(folder, size + 1)
    assert _column(result, "tokens")[-1] == "<|a|>"
    assert "dropped 2 added tokens that have no embedding: '<|image|>', '<|pad|>'" in result.notes
    assert "the pad token has no embedding; pad is not written" in result.notes
    assert "tokenizer.ggml.padding_token_id" not in result.metadata


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer_config": {"eos_token": "<|b|>"}}, "its eos token"),
        ({"tokenizer_config": {"chat_template": "{{ x }}<|b|>"}}, "part of its chat template"),
    ],
)
def test_added_tokens_that_matter_are_not_dropped(tmp_path: Path, files: dict[str, Any], reason: str) -> None:
    folder, size = _with_added(tmp_path, "<|a|>", "<|b|>", **files)
    with pytest.raises(TokenizerError, match=rf"{size + 2} tokens.*{size + 1} rows.*'<\|b\|>' is {reason}"):
        read(folder, size + 1)


def test_ordinary_tokens_are_not_dropped(tmp_path: Path) -> None:
    folder, size = _with_added(tmp_path)
    with pytest.raises(TokenizerError, match="is an ordinary token"):
        read(folder, size - 1)


def test_gaps_between_ids_are_unused(tmp_path: Path) -> None:
    contents = deepcopy(train_byte_level("gpt-2"))
    contents["model"]["vocab"] = {text: 2 * token for text, token in contents["model"]["vocab"].items()}
    result = read(write_folder(tmp_path, tokenizer=contents), 1400)
    assert _column(result, "tokens")[1::2] == [f"[PAD{i}]" for i in range(1, 1400, 2)]
    assert set(_column(result, "token_type")[1::2]) == {Kind.UNUSED}


def test_ordinary_tokens_shadowed_by_added_ones(tmp_path: Path) -> None:
    folder, size = _with_added(tmp_path, "the")
    shadowed = train_byte_level("gpt-2")["model"]["vocab"].get("the")
    result = read(folder, size + 1)
    assert _column(result, "tokens")[size] == "the"
    if shadowed is not None:
        assert Kind(_column(result, "token_type")[shadowed]) is Kind.UNUSED
        assert any("have the text of an added token" in note for note in result.notes)


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    """Added tokens of ▁▁ and of two spaces are one text to GGUF runtimes."""
    folder = write_folder(tmp_path, tokenizer__model=train_sentencepiece("bpe"), added_tokens={"▁▁": 501, "  ": 502})
    with pytest.raises(TokenizerError, match="have the same text '  '"):
        read(folder, 510)


@pytest.mark.parametrize("text", ["", "\0x"])
def test_tokens_that_gguf_cannot_hold_become_unused(tmp_path: Path, text: str) -> None:
    folder, size = _with_added(tmp_path, text)
    result = read(folder, size + 1)
    assert (_column(result, "tokens")[size], _column(result, "token_type")[size]) == (f"[PAD{size}]", Kind.UNUSED)
    assert any("marked unused" in note for note in result.notes)


@pytest.mark.parametrize("far", [1 << 16, (1 << 21) - 1])
def test_an_id_far_beyond_the_others_is_refused(tmp_path: Path, far: int) -> None:
    """Each id without a token would cost a placeholder: megabytes for a file of some bytes."""
    vocabulary = {chr(0x21 + i): i for i in range(90)} | {"!!": far}
    files = {"vocab.json": json.dumps(vocabulary), "merges.txt": "#version: 0.2\n! !\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(TokenizerError, match=f"the token {far} has the largest id, but there are only 91 tokens"):
        read(tmp_path, 600)


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    folder, size = _with_added(tmp_path, "\ud800")
    with pytest.raises(TokenizerError, match="no valid Unicode"):
        read(folder, size + 1)


def test_hints_that_contradict_the_files_are_notes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer__model=train_sentencepiece("bpe"))
    result = read_tokenizer(
        folder, {}, context(), vocab_rows=510, hints={"add_space_prefix": False, "add_eos_token": True}
    )
    assert result.metadata["tokenizer.ggml.add_space_prefix"].value is True
    assert result.metadata["tokenizer.ggml.add_eos_token"].value is True
    assert any("add_space_prefix is True by the tokenizer's files" in note for note in result.notes)


def test_add_prefix_space_of_the_configuration(tmp_path: Path) -> None:
    model = train_sentencepiece("bpe")
    folder = write_folder(tmp_path, tokenizer__model=model, tokenizer_config={"add_prefix_space": False})
    assert read(folder, 510).metadata["tokenizer.ggml.add_space_prefix"].value is False


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"[" * 100_000, b'{"a": ' + b"9" * 9999 + b"}"])
def test_broken_json(tmp_path: Path, name: str, content: bytes) -> None:
    write_folder(tmp_path, tokenizer=train_byte_level("gpt-2"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read(tmp_path, 700)
    assert caught.value.path == tmp_path / name


def test_large_and_pointer_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, tokenizer__model=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(FormatError, match="git lfs pull"):
        read(tmp_path, 700)
    monkeypatch.setattr(tokenizer_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(FormatError, match="may exceed 10 bytes"):
        read(tmp_path, 700)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "content",
                    "id",
                    "ids",
                    "special",
                    "pattern",
                    "Regex",
                    "pretokenizers",
                    "normalizers",
                    "vocab",
                    "merges",
                ]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_PLACES = [
    "model",
    "pre_tokenizer",
    "normalizer",
    "post_processor",
    "added_tokens",
    "model.vocab",
    "model.merges",
    "model.unk_token",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(_PLACES),
    value=_JSON,
    config=st.dictionaries(
        st.sampled_from(
            ["bos_token", "eos_token", "add_bos_token", "chat_template", "added_tokens_decoder", "pad_token"]
        ),
        _JSON,
    ),
    generation=st.dictionaries(st.sampled_from(["bos_token_id", "eos_token_id"]), _JSON),
)
def test_any_json_gives_a_tokenizer_or_our_error(
    tmp_path: Path, place: str, value: object, config: dict[str, Any], generation: dict[str, Any]
) -> None:
    contents = deepcopy(train_byte_level("gpt-2", 280))
    target = contents["model"] if place.startswith("model.") else contents
    target[place.removeprefix("model.")] = value
    folder = tmp_path / "hf"
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, tokenizer=contents, tokenizer_config=config, generation_config=generation)
    try:
        result = read(folder, 300)
    except QconvError as error:
        assert error.path is not None
        assert folder in (error.path, *error.path.parents)
    else:
        assert len(_column(result, "tokens")) == 300 == len(np.unique(_column(result, "tokens")))
