"""Text to tokens and back: against sentencepiece and the tokenizers package, round trips, streams, identity."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp_vocabulary import write_vocabulary
from runtime_tokenizers import (
    CHARACTERS,
    folder_metadata,
    llama_metadata,
    odd_texts,
    tokenizer_of,
    tokenizer_of_gguf,
    with_keys,
)
from tokenizer_folders import CORPUS, TEXTS, read, train_byte_level, train_sentencepiece, write_folder
from tokenizers import Tokenizer as PackageTokenizer

from qconv.errors import TokenizerError, UsageError
from qconv.formats.pretokenizers import PreTokenizer, pre_tokenizers
from qconv.runtime.tokenizing.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def example(example_model: Path) -> Tokenizer:
    return tokenizer_of(folder_metadata(example_model))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small byte-level vocabulary with two special tokens."""
    contents = train_byte_level("llama-bpe")
    contents = contents | {
        "added_tokens": [
            {"id": 700, "content": "<|end_of_text|>", "special": True},
            {"id": 701, "content": "<tool>", "special": False},
        ]
    }
    folder = write_folder(tmp_path_factory.mktemp("bpe"), tokenizer=contents)
    return tokenizer_of(read(folder, 702, bos_token_id=700, eos_token_id=700).metadata)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=odd_texts(["▁the", "s", "<0x0A>"], damaged=False))
def test_the_example_gives_the_tokens_of_sentencepiece(example: Tokenizer, example_model: Path, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(example_model / "tokenizer.model"))
    assert example.encode(text, add_special=False).tolist() == processor.encode(text)


def test_a_model_without_bytes_gives_the_tokens_of_sentencepiece(tmp_path: Path) -> None:
    """Characters outside the vocabulary become one unknown token per run."""
    model = train_sentencepiece("bpe", byte_fallback=False, add_dummy_prefix=True)
    tokenizer = tokenizer_of(read(write_folder(tmp_path, tokenizer__model=model), 500).metadata)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in (*TEXTS, "the ÿþ fox ÿ þ ÿÿ"):
        assert tokenizer.encode(text, add_special=False).tolist() == processor.encode(text), text
    assert tokenizer.encode("ÿþ fox", add_special=False).tolist().count(0) == 1


@pytest.mark.parametrize("known", pre_tokenizers(), ids=lambda known: known.name)
def test_every_pre_tokenizer_gives_the_tokens_of_the_package(known: PreTokenizer, tmp_path: Path) -> None:
    contents = train_byte_level(known.name)
    package = PackageTokenizer.from_str(json.dumps({**contents, "normalizer": None}))
    folder = write_folder(tmp_path, tokenizer=contents)
    tokenizer = tokenizer_of(read(folder, 701, known.name).metadata)
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special=False)
        assert tokens.tolist() == package.encode(text).ids, text
        assert tokenizer.decode(tokens) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=odd_texts(["▁the", "s", "<0x0A>", "</s>", "<s>"], damaged=True))
def test_round_trip_of_sentencepiece(example: Tokenizer, text: str) -> None:
    """Byte for byte, even if it is no UTF-8.

    Only ▁ cannot be told from a space: a space becomes ▁ at first, and stays it where a damaged character claims a part of it.
    """
    raw = text.replace("▁", " ").encode(errors="surrogateescape")
    tokens = example.encode(text)
    assert tokens.dtype == np.int32
    assert tokens[0] == example.bos == 1
    assert example.decode_bytes(tokens).replace("▁".encode(), b" ") == raw
    shown = example.decode_bytes(example.encode(text, parse_special=True), special=True)
    assert shown.removeprefix(b"<s>").replace("▁".encode(), b" ") == raw


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.lists(st.one_of(st.text(CHARACTERS), st.sampled_from([*TEXTS, "<tool>", "<|end_of_text|>"]))).map("".join)
)
def test_round_trip_of_byte_level_bpe(byte_level: Tokenizer, text: str) -> None:
    for parse_special in (False, True):
        tokens = byte_level.encode(text, add_special=False, parse_special=parse_special)
        assert byte_level.decode(tokens, special=True) == text
    assert (700 in tokens) == ("<|end_of_text|>" in text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_stream_gives_the_text_of_all_tokens(example: Tokenizer, data: st.DataObject) -> None:
    """Wherever the prompt ends: inside a character, behind a special token."""
    special = data.draw(st.booleans())
    tokens = data.draw(st.lists(st.integers(0, example.size - 1), max_size=30))
    stream = example.stream(special=special)
    assert "".join(map(stream.feed, tokens)) + stream.finish() == example.decode(tokens, special=special)
    cut = data.draw(st.integers(0, len(tokens)))
    stream = example.stream(after=np.array(tokens[:cut], np.int32), special=special)
    rest = "".join(map(stream.feed, tokens[cut:])) + stream.finish()
    whole = example.decode_bytes(tokens, special=special)
    assert rest == whole[len(example.decode_bytes(tokens[:cut], special=special)) :].decode(errors="replace")


def test_a_stream_waits_for_the_rest_of_a_character(example: Tokenizer) -> None:
    tokens = example.encode("🚀", add_special=False).tolist()
    stream = example.stream(after=[1, example.encode("x")[1]])
    assert [stream.feed(token) for token in tokens[-4:]] == ["", "", "", "🚀"]
    assert stream.finish() == ""
    stream = example.stream()
    assert stream.feed(tokens[-4]) == ""
    assert stream.finish() == "\ufffd"


def test_a_stream_keeps_the_space_between_words(example: Tokenizer) -> None:
    (the,) = example.encode("the", add_special=False).tolist()
    assert [example.stream(after=after).feed(the) for after in ([], [1], [the])] == ["the", "the", " the"]


def test_special_tokens_and_spaces() -> None:
    """A space is put in front, and behind special tokens; decoding takes it away again."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "▁a", "<x>"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 4]
    tokenizer = tokenizer_of(llama_metadata(tokens, types=types, add_eos_token=True))
    space, a, space_a, x = range(259, 263)
    assert tokenizer.encode("a").tolist() == [1, space_a, 2]
    assert tokenizer.encode("a<x>a</s>", add_special=False).tolist()[:3] == [space_a, x, space_a]
    assert tokenizer.encode("a</s> a", add_special=False, parse_special=True).tolist() == [space_a, 2, space, space_a]
    assert tokenizer.encode("").tolist() == [1, 2]
    assert tokenizer.encode("", add_special=False).tolist() == []
    assert tokenizer.decode([1, space_a, a, x, space_a, 2]) == "aa<x>a"
    assert tokenizer.decode([1, space_a, 2], special=True) == "<s>a</s>"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eot) == (1, 2, None)
    assert (tokenizer.adds_bos, tokenizer.adds_eos, tokenizer.size) == (True, True, 263)
    assert tokenizer.is_end_of_generation(2)
    assert not tokenizer.is_end_of_generation(1)
    plain = tokenizer_of(llama_metadata(tokens, types=types, add_space_prefix=False, add_bos_token=False))
    assert plain.encode("a<x>a").tolist() == [a, x, a]
    assert plain.decode([space_a]) == " a"


def test_the_best_score_is_joined_first_and_the_leftmost_of_equals() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc", "aa"]
    for better, expected in (("ab", ["ab", "c"]), ("bc", ["a", "bc"])):
        scores = [float(text == better) - (9.0 if text == "abc" else 0.0) for text in tokens]
        scores[tokens.index("abc")] = float("-inf")
        metadata = llama_metadata([text for text in tokens if text != "abc"], [s for s in scores if s > -99])
        tokenizer = tokenizer_of(with_keys(metadata, add_space_prefix=False, add_bos_token=False))
        found = [tokenizer.vocabulary.tokens[token] for token in tokenizer.encode("abc")]
        assert found == expected
        assert [tokenizer.vocabulary.tokens[token] for token in tokenizer.encode("aaa")] == ["aa", "a"]


def test_joining_across_spaces() -> None:
    """Where tokens hold spaces behind other characters, text is not divided there."""
    tokens = ["<unk>", "<s>", "</s>", "a", "▁", "a▁", "▁a", "a▁a", "b", "▁b"]
    scores = [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 1.0, 9.0, 0.0, 8.0]
    tokenizer = tokenizer_of(llama_metadata(tokens, scores, add_space_prefix=False, add_bos_token=False))
    found = [tokenizer.vocabulary.tokens[token] for token in tokenizer.encode("b b a a b")]
    assert found == ["b", "▁b", "▁", "a▁a", "▁b"]


def test_bytes_that_byte_level_bpe_cannot_spell_are_left_out(byte_level: Tokenizer) -> None:
    """As in llama.cpp; their neighbours are not merged."""
    contents = train_byte_level("gpt-2")
    vocabulary = {text: token for text, token in contents["model"]["vocab"].items() if text != "ĉ"}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [merge for merge in contents["model"]["merges"] if "ĉ" not in "".join(merge)]
    metadata = with_keys(
        llama_metadata(tokens, model="gpt2", pre="gpt-2", add_bos_token=False),
        merges=[" ".join(merge) for merge in merges],
    )
    tokenizer = tokenizer_of(metadata)
    assert tokenizer.decode(tokenizer.encode("a\tb")) == "ab"
    assert tokenizer.encode("t\th").tolist() == [tokens.index("t"), tokens.index("h")]
    assert byte_level.decode(byte_level.encode("a\tb")) == "a\tb"


def test_damaged_text_becomes_replacement_characters_in_byte_level_bpe(byte_level: Tokenizer) -> None:
    text = b"caf\xc3\xa9 \xff\xfe \xe2\x82".decode(errors="surrogateescape")
    assert byte_level.decode(byte_level.encode(text)) == "café \ufffd\ufffd \ufffd\ufffd"
    assert byte_level.decode(byte_level.encode("\ud83d")) == "\ufffd"


def test_lone_surrogates_of_no_byte(example: Tokenizer) -> None:
    assert example.decode(example.encode("x\ud83d y")) == "x\ufffd y"


def test_damaged_tokens_decode(example: Tokenizer) -> None:
    tokens = [example.vocabulary.ids[text] for text in ("<0xE2>", "<0x82>", "<0x41>")]
    assert example.decode(tokens) == "\ufffdA"
    assert example.decode_bytes(tokens) == b"\xe2\x82A"


@pytest.mark.parametrize("token", [-1, 4096, 10**9])
def test_ids_that_are_no_tokens(example: Tokenizer, token: int) -> None:
    for call in (example.decode, example.decode_bytes):
        with pytest.raises(UsageError, match=f"no token {token}: the vocabulary has 4096"):
            call([5, token])
    with pytest.raises(UsageError, match=f"no token {token}"):
        example.stream().feed(token)


def test_characters_without_any_token() -> None:
    """The token that llama.cpp takes for the unknown one is another here, and would be a wrong number."""
    tokenizer = tokenizer_of(llama_metadata(["</s>", "<s>", "a", "▁"], bos_token_id=1, eos_token_id=0))
    assert tokenizer.encode("a").tolist() == [1, 3, 2]
    with pytest.raises(TokenizerError, match=r"neither a token for 'é', nor byte tokens, nor an unknown token.*covers"):
        tokenizer.encode("a é")


def test_the_digest_is_that_of_the_vocabulary(example: Tokenizer, example_model: Path, tmp_path: Path) -> None:
    metadata = folder_metadata(example_model)
    path = write_vocabulary(tmp_path / "v.gguf", metadata)
    digest = example.digest()
    assert digest == tokenizer_of_gguf(path).digest()
    assert len(bytes.fromhex(digest)) == 32
    tokens = list(example.vocabulary.tokens)
    others: list[dict[str, Any]] = [
        {"tokens": [*tokens[:-1], "no other token"]},
        {"tokens": [*tokens[:-2], tokens[-1], tokens[-2]]},
        {"scores": None},
        {"token_type": None},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_space_prefix": False},
        {"eos_token_id": 1},
        {"eot_token_id": 5},
    ]
    digests = {tokenizer_of(with_keys(metadata, **other)).digest() for other in others} | {digest}
    assert len(digests) == len(others) + 1


def test_the_digest_of_byte_level_bpe(tmp_path: Path) -> None:
    metadata = read(write_folder(tmp_path, tokenizer=train_byte_level("gpt-2")), 700, bos_token_id=0).metadata
    merges = list(metadata["tokenizer.ggml.merges"].value)  # type: ignore[arg-type] # an array of texts
    changed: list[dict[str, Any]] = [
        {},
        {"pre": "qwen2"},
        {"merges": merges[:-1]},
        {"merges": [merges[1], merges[0], *merges[2:]]},
    ]
    assert len({tokenizer_of(with_keys(metadata, **keys)).digest() for keys in changed}) == len(changed)
    # another name for the same cuts
    assert tokenizer_of(with_keys(metadata, pre="phi-2")).digest() == tokenizer_of(metadata).digest()


def test_long_words_take_no_quadratic_time(example: Tokenizer) -> None:
    """Twenty times the text takes about twenty times as long, not four hundred times."""
    word = "".join(CORPUS).replace(" ", "")
    seconds = []
    for count in (20, 400):
        start = time.process_time()
        tokens = example.encode(word * count)
        seconds.append(time.process_time() - start)
        assert example.decode(tokens) == word * count
    assert seconds[1] < 100 * max(seconds[0], 0.01)


def test_the_package_is_imported_only_for_byte_level_bpe(example_model: Path) -> None:
    import subprocess
    import sys

    script = f"""
import json, sys
from pathlib import Path
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface.tokenizing.tokenizer import read_tokenizer
from qconv.runtime.tokenizing.tokenizer import load_tokenizer
folder = Path({str(example_model)!r})
config = json.loads((folder / "config.json").read_text())
metadata = read_tokenizer(folder, config, OpenContext({{}}, {{}}), vocab_rows=4096).metadata
assert len(load_tokenizer(Model(folder, "", metadata, {{}})).encode("Some text")) > 2
assert "tokenizers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_errors_name_the_model(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^m\.gguf: "):
        tokenizer_of({})
