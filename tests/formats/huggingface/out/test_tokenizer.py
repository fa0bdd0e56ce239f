"""Rebuilt tokenizers give the ids of those that they were made from, by the libraries that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conversions import convert_without_source, without_source
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import (
    TEXTS,
    context,
    fixture_texts,
    read,
    tokenizer_json,
    train_byte_level,
    train_sentencepiece,
    write_folder,
)
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

import qconv
from qconv.errors import FormatError, QconvError, TokenizerError
from qconv.formats.base import Model
from qconv.formats.gguf.reader import open_gguf
from qconv.formats.huggingface.out.record import record_source
from qconv.formats.huggingface.out.source import PREFIX, read_recorded
from qconv.formats.huggingface.out.tokenizer import rebuild_tokenizer
from qconv.formats.metadata import Field, ValueType, numbers, string, strings, uint32
from qconv.formats.pretokenizers import PreTokenizer, find_pre_tokenizer, pre_tokenizers


def model_of(metadata: Mapping[str, Field]) -> Model:
    return Model(Path("model.gguf"), "gguf", metadata, {})


def rebuilt(metadata: Mapping[str, Field]) -> dict[str, bytes]:
    files, _ = rebuild_tokenizer(model_of(metadata), read_recorded(metadata), 0)
    return files


def ids(tokenizer: bytes | str, texts: tuple[str, ...] = TEXTS, special: bool = False) -> list[list[int]]:
    loaded = Tokenizer.from_str(tokenizer if isinstance(tokenizer, str) else tokenizer.decode())
    return [loaded.encode(text, add_special_tokens=special).ids for text in texts]


@pytest.mark.parametrize("known", pre_tokenizers(), ids=lambda known: known.name)
def test_byte_level(known: PreTokenizer, tmp_path: Path) -> None:
    source = train_byte_level(known.name)
    rows = len(source["model"]["vocab"]) + len(source["added_tokens"])
    metadata = read(write_folder(tmp_path, tokenizer=source), rows).metadata
    files = rebuilt(metadata)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    named = find_pre_tokenizer(str(metadata["tokenizer.ggml.pre"].value))
    if named is not None and named.stages == known.stages:
        assert ids(files["tokenizer.json"]) == ids(json.dumps(source))


def odd_byte_level() -> dict[str, Any]:
    """A tokenizer with all that GGUF has no room for: flags of added tokens, ids with gaps, a template, a normalizer."""
    source = train_byte_level("qwen2")
    size = len(source["model"]["vocab"])
    known = find_pre_tokenizer("qwen2")
    assert known is not None
    found = tokenizer_json(
        source["model"]["vocab"],
        source["model"]["merges"],
        known.stages,
        normalizer={"type": "NFC"},
        added=[(size, "<|begin|>", True), (size + 1, "<think>", False), (size + 2, "<|end|>", True)],
    )
    found["added_tokens"][0] |= {"rstrip": True}
    found["added_tokens"][1] |= {"lstrip": True, "normalized": True}
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [size], "tokens": ["<|begin|>"]}},
    }
    return found


MARKED = ("<|begin|>  x", "a <think> b<|end|>", "x", "<|end|><|end|>")


def test_what_the_source_said_comes_back_equal(tmp_path: Path) -> None:
    source = odd_byte_level()
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages }}", "odd": [1]}
    folder = write_folder(tmp_path, tokenizer=source, tokenizer_config=config, config={"model_type": "x"})
    result = read(folder, len(source["model"]["vocab"]) + 8)
    metadata = result.metadata
    kept = {**metadata, **record_source(folder, {}, result, {})}
    files = rebuilt(kept)
    assert json.loads(files["tokenizer.json"]) == source
    assert json.loads(files["tokenizer_config.json"]) == config
    # a change that someone made to the file since counts more than what the source said
    for key, value in (("tokenizer.ggml.pre", string("gpt-2")), ("tokenizer.ggml.merges", strings(["t h", "a n"]))):
        changed = json.loads(rebuilt({**kept, key: value})["tokenizer.json"])
        assert changed == json.loads(rebuilt({**metadata, key: value})["tokenizer.json"])
        assert changed["model"] != source["model"] or changed["pre_tokenizer"] != source["pre_tokenizer"]


def test_what_gguf_alone_says_is_enough_for_ids(tmp_path: Path) -> None:
    source = odd_byte_level()
    folder = write_folder(tmp_path, tokenizer=source, tokenizer_config={"bos_token": "<|begin|>"})
    size = len(source["model"]["vocab"])
    files = rebuilt(read(folder, size + 8).metadata)
    assert ids(files["tokenizer.json"], special=True) == ids(json.dumps(source), special=True)
    assert ids(files["tokenizer.json"], ("<|end|>", "<think>")) == [[size + 2], [size + 1]]


def test_added_tokens_keep_their_ids_across_gaps(tmp_path: Path) -> None:
    source = train_byte_level("gpt-2")
    size = len(source["model"]["vocab"])
    source = {**source, "added_tokens": []}
    decoder = {str(size + gap): {"content": text, "special": True} for gap, text in ((2, "<|a|>"), (5, "<|b|>"))}
    folder = write_folder(tmp_path, tokenizer=source, tokenizer_config={"added_tokens_decoder": decoder})
    files = rebuilt(read(folder, size + 9).metadata)
    assert ids(files["tokenizer.json"], ("<|a|><|b|>",)) == [[size + 2, size + 5]]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(kind: str, prefix: bool, tmp_path: Path) -> None:
    data = train_sentencepiece(kind, add_dummy_prefix=prefix, user_defined_symbols=("<sep>", "▁▁▁▁"))
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    metadata = read(write_folder(tmp_path, tokenizer__model=data), original.get_piece_size()).metadata
    files = rebuilt(metadata)
    again = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    texts = (*TEXTS, "a<sep>b", "x    y")
    assert [again.encode(text) for text in texts] == [original.encode(text) for text in texts]
    for role in ("bos_id", "eos_id", "unk_id", "pad_id", "get_piece_size"):
        assert getattr(again, role)() == getattr(original, role)()
    assert [again.decode(again.encode(text)) for text in texts] == [
        original.decode(original.encode(text)) for text in texts
    ]
    # after a user-defined token runtimes of GGUF, and transformers' Llama tokenizers, put a space where sentencepiece puts none
    plain = tuple(text for text in TEXTS if text.strip() and not text.startswith(" ") and "    " not in text)
    assert ids(files["tokenizer.json"], plain) == [original.encode(text) for text in plain]


def test_word_pieces() -> None:
    """GGUF marks beginnings of words, BERT marks what continues them."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "quick", "##ly", "##er", "a", "##a", "!", "don", "'", "t"]
    original = Tokenizer(WordPiece({piece: token for token, piece in enumerate(pieces)}, unk_token="[UNK]"))
    original.normalizer = BertNormalizer(lowercase=True)
    original.pre_tokenizer = BertPreTokenizer()
    texts = ["the QUICKLY quicker aaa!", "don't", "thequick unknown the"]
    marked = [text if text[0] == "[" else text[2:] if text.startswith("##") else f"▁{text}" for text in pieces]
    metadata = {
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.tokens": strings(marked),
        "tokenizer.ggml.token_type": numbers([3] * 4 + [1] * 10, ValueType.INT32),
        "tokenizer.ggml.bos_token_id": uint32(2),
        "tokenizer.ggml.seperator_token_id": uint32(3),
        "tokenizer.ggml.unknown_token_id": uint32(1),
    }
    files = rebuilt(metadata)
    again = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in texts:
        wanted = original.encode(text).ids
        assert again.encode(text, add_special_tokens=False).ids == wanted
        assert again.encode(text).ids == [2, *wanted, 3]


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keeps", [True, False], ids=["with source", "without source"])
def test_transformers_takes_the_example_for_its_source(keeps: bool, example_model: Path, tmp_path: Path) -> None:
    import transformers

    qconv.convert_model(example_model, tmp_path / "model.gguf")
    if keeps:
        qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    else:
        convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    source, again = (
        transformers.AutoTokenizer.from_pretrained(folder) for folder in (example_model, tmp_path / "back")
    )
    for text in TEXTS:
        assert again(text)["input_ids"] == source(text)["input_ids"]
        found = source(text, add_special_tokens=False)["input_ids"]
        assert again.decode(found) == source.decode(found)
    assert (again.bos_token, again.eos_token) == (source.bos_token, source.eos_token)


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_templates(tmp_path: Path, example_model: Path) -> None:
    import transformers

    templates = {"default": "{{ bos_token }}{{ messages[0]['content'] }}", "tool_use": "tools"}
    qconv.convert_model(example_model, tmp_path / "model.gguf")
    from conversions import write_model

    with qconv.open(tmp_path / "model.gguf") as model:
        more = {
            "tokenizer.chat_templates": strings(["tool_use"]),
            "tokenizer.chat_template": string(templates["default"]),
            "tokenizer.chat_template.tool_use": string(templates["tool_use"]),
        }
        write_model(replace(without_source(model), metadata={**model.metadata, **more}), tmp_path / "back", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.chat_template == templates
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said == "<s>Hi"


# llama.cpp cuts some texts otherwise than the tokenizers package does for these (PreTokenizer.deviation)
DEVIATIONS = {"falcon": 2, "deepseek-llm": 2}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "falcon", "deepseek-llm"])
def test_vocabularies_of_well_known_models(name: str, shared: Path) -> None:
    path = shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf"
    with open_gguf(path, replace(context(), vocabulary_only=True)) as model:
        files = rebuilt(model.metadata)
    texts, wanted = fixture_texts(shared, name)
    found = ids(files["tokenizer.json"], tuple(texts))
    different = [text for text, one, other in zip(texts, found, wanted, strict=True) if one != other]
    assert len(different) <= DEVIATIONS.get(name, 0), different
    if "spm" in name or name == "phi-3":
        processor = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
        assert [processor.encode(text) for text in texts if text] == [
            it for text, it in zip(texts, wanted, strict=True) if text
        ]


def test_what_has_no_form_is_refused() -> None:
    vocabulary = {"tokenizer.ggml.tokens": strings(["a", "b"])}
    with pytest.raises(TokenizerError, match="'rwkv' has no known form"):
        rebuilt({**vocabulary, "tokenizer.ggml.model": string("rwkv")})
    with pytest.raises(TokenizerError, match="no known way to cut text"):
        rebuilt({**vocabulary, "tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("nonsense")})
    with pytest.raises(TokenizerError, match="no scores"):
        rebuilt({**vocabulary, "tokenizer.ggml.model": string("llama")})
    with pytest.raises(FormatError, match="array of strings"):
        rebuilt({"tokenizer.ggml.tokens": string("a")})
    assert rebuilt({"tokenizer.ggml.model": string("none")}) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["added", "plain", "odd", "model", "0", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(tokenizer=JSON, config=JSON, digest=st.booleans())
def test_any_record_gives_files_or_our_error(tokenizer: object, config: object, digest: bool) -> None:
    """The keys may come from anyone: they are JSON that nobody has checked."""
    from qconv.formats.huggingface.out.source import tokenizer_digest

    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.tokens": strings(["a", "b", "ab"]),
        "tokenizer.ggml.merges": strings(["a b"]),
    }
    said = {"tokenizer": json.dumps(tokenizer), "tokenizer_config": json.dumps(config)}
    if digest:
        said["tokenizer_digest"] = tokenizer_digest(metadata)
    try:
        files = rebuilt({**metadata, **{PREFIX + key: string(text) for key, text in said.items()}})
    except QconvError:
        return
    assert isinstance(json.loads(files["tokenizer.json"]), dict)
