"""Llama 3's ``tokenizer.model``."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from qconv_encodings import ENCODINGS

from qconv.errors import FormatError, QconvError, TokenizerError
from qconv.formats.base import OpenContext
from qconv.formats.byte_ranks import byte_alphabet
from qconv.formats.gguf import open_gguf
from qconv.formats.meta.tiktoken import is_tiktoken, tiktoken_vocabulary

BYTES = [bytes([value]) for value in range(256)]


def lines(*tokens: bytes) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate([*BYTES, *tokens]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokenizer.model"


def test_vocabulary(path: Path) -> None:
    path.write_bytes(lines(b"ab", b"bc", b" a", b"abc", "é".encode()))
    assert is_tiktoken(path)
    found = tiktoken_vocabulary(path, later=False)
    assert found.tokens[0x41] == "A"
    assert found.tokens[256:261] == ("ab", "bc", "Ġa", "abc", "Ã©")
    merges = found.metadata["tokenizer.ggml.merges"].value
    assert merges == ("a b", "b c", "Ġ a", "a bc", "ab c", "Ã ©")
    assert len(found.tokens) == 261 + 256
    assert found.special == {"bos": 261, "eos": 262}
    assert len(set(found.tokens)) == len(found.tokens)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (False, {2: "reserved_special_token_0", 4: "reserved_special_token_2", 8: "reserved_special_token_4", 9: "eot_id", 10: "reserved_special_token_5", 255: "reserved_special_token_250"}),
        (True, {2: "reserved_special_token_0", 4: "finetune_right_pad_id", 5: "reserved_special_token_2", 8: "eom_id", 9: "eot_id", 10: "python_tag", 11: "reserved_special_token_3", 255: "reserved_special_token_247"}),
    ],
)  # fmt: skip
def test_special_tokens(path: Path, later: bool, expected: dict[int, str]) -> None:
    path.write_bytes(lines(b"ab"))
    tokens = tiktoken_vocabulary(path, later=later).tokens[257:]
    assert tokens[0] == "<|begin_of_text|>"
    assert {place: tokens[place] for place in expected} == {place: f"<|{name}|>" for place, name in expected.items()}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lines(b"ab") + b"!!!! 257\n", "a line is not a token"),
        (lines(b"ab") + b"YWI= x\n", "a line is not a token"),
        (lines(b"ab") + b"YWI=\n", "a line is not a token"),
        (lines(b"ab") + b" 257\n", "a line is not a token"),
        (lines(b"ab") + b"YWJj 258\n", "rank 258 is not the next one"),
        (lines(b"ab") + b"YWI= 257\n", "is there twice"),
        (lines(b"ab") + base64.b64encode(bytes(1025)) + b" 257\n", "a line is not a token"),
        (lines(), "no token is made of two others"),
        (b"YWI= 0\nYQ== 1\n", "no token is the byte 0x00"),
    ],
)
def test_malformed_files(path: Path, content: bytes, problem: str) -> None:
    path.write_bytes(content)
    with pytest.raises(QconvError, match=problem) as caught:
        tiktoken_vocabulary(path, later=False)
    assert isinstance(caught.value, FormatError | TokenizerError)


@pytest.mark.parametrize("content", [b"", b"\n", b"IQ==", b"IQ== 1\n", b"\x0a\x0e\x0a\x05<unk>", b"! 0\n", b" 0\n"])
def test_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not is_tiktoken(path)
    assert not is_tiktoken(path.with_name("absent"))


@pytest.mark.shared
def test_llama_3(path: Path, shared: Path) -> None:
    """The real vocabulary, from llama.cpp's own test data, written as Meta writes it: the same tokens and merges come back."""
    context = OpenContext(ENCODINGS, {})
    with open_gguf(shared / "fixtures" / "vocab" / "ggml-vocab-llama-bpe.gguf", context) as model:
        tokens = list(model.metadata["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]  # a sequence
        merges = list(model.metadata["tokenizer.ggml.merges"].value)  # type: ignore[arg-type]  # a sequence
    values = {character: value for value, character in enumerate(byte_alphabet())}
    ranks = [bytes(values[character] for character in token) for token in tokens[:128_000]]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)))
    found = tiktoken_vocabulary(path, later=False)
    assert list(found.tokens[:128_010]) == tokens[:128_010]
    assert len(found.tokens) == len(tokens)
    assert list(found.metadata["tokenizer.ggml.merges"].value) == merges  # type: ignore[arg-type]  # a sequence
