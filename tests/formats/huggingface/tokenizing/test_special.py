"""Special ids are merged from every file; what surrounds text is written; conflicts are notes, impossible ids errors."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType as Kind
from gguf.constants import Keys
from llamacpp_vocabulary import LlamaVocabulary, write_vocabulary
from tokenizer_folders import read, train_byte_level, train_sentencepiece, write_folder

from qconv.errors import FormatError, TokenizerError
from qconv.formats.huggingface.tokenizing.special import looks_special, special_token_key
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult

_MARKUP = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|pad|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|user|>",
    "<|observation|>",
)


def _contents(base: str = "llama-bpe", markup: tuple[str, ...] = _MARKUP) -> tuple[dict[str, Any], int]:
    contents = deepcopy(train_byte_level(base))
    size = len(contents["model"]["vocab"])
    contents["added_tokens"] = [{"id": size + i, "content": text, "special": True} for i, text in enumerate(markup)]
    return contents, size


def _read(
    folder: Path, contents: dict[str, Any], files: dict[str, Any], rows: int = 1000, **config: Any
) -> TokenizerResult:
    return read(write_folder(folder, tokenizer=contents, **files), rows, **config)


def _ids(result: TokenizerResult, base: int) -> dict[str, int]:
    found = {key.removeprefix("tokenizer.ggml."): field.value for key, field in result.metadata.items()}
    return {key.removesuffix("_token_id"): value - base for key, value in found.items() if key.endswith("_token_id")}  # type: ignore[operator,misc] # ids


def test_keys_are_ggufs() -> None:
    keys = Keys.Tokenizer
    for role in (
        "bos",
        "eos",
        "eot",
        "eom",
        "unk",
        "sep",
        "pad",
        "mask",
        *(f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
    ):
        assert special_token_key(role) == getattr(keys, f"{role.upper()}_ID")


def test_llama_3_1_instruct(tmp_path: Path) -> None:
    """A list of ends: the tokenizer's is eos, the end of a message eom, the rest is noted."""
    contents, base = _contents()
    files = {
        "tokenizer_config": {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}},
        "generation_config": {"bos_token_id": base, "eos_token_id": [base + 1, base + 2, base + 3]},
    }
    result = _read(tmp_path, contents, files, eos_token_id=[base + 1, base + 2, base + 3])
    assert _ids(result, base) == {"bos": 0, "eos": 3, "eom": 2, "fim_pre": 5, "fim_suf": 6, "fim_mid": 7}
    assert any("'<|end_of_text|>' ends generation as well" in note for note in result.notes)


def test_the_turns_end_in_the_template_becomes_eot(tmp_path: Path) -> None:
    contents, base = _contents()
    files = {"tokenizer_config": {"eos_token": "<|end_of_text|>", "chat_template": "{{ m }}<|eot_id|>"}}
    assert _ids(_read(tmp_path, contents, files), base) | {"eos": 1, "eot": 3} == _ids(
        _read(tmp_path, contents, files), base
    )


def test_glm_ends_at_roles(tmp_path: Path) -> None:
    """Ends without a known text are turn ends if the template has them."""
    contents, base = _contents("smaug-bpe")
    files = {"chat_template__jinja": "<|user|>{{ m }}", "tokenizer_config": {"eos_token": "<|end_of_text|>"}}
    result = _read(tmp_path, contents, files, eos_token_id=[base + 1, base + 8, base + 9])
    assert {"eos": 1, "eot": 8, "eom": 9}.items() <= _ids(result, base).items()


def test_sources_in_order(tmp_path: Path) -> None:
    contents, base = _contents()
    names = ("tokenizer_config", "special_tokens_map", "generation_config")
    files = {
        "tokenizer_config": {"pad_token": "<|pad|>"},
        "special_tokens_map": {"pad_token": "<|user|>"},
        "generation_config": {"pad_token_id": base + 9},
    }
    for i, expected in enumerate((4, 8, 9, 1)):
        left = {name: files[name] for name in names[i:]}
        result = _read(tmp_path / str(i), contents, left, pad_token_id=base + 1)
        assert _ids(result, base)["padding"] == expected
        assert any("says pad is" in note for note in result.notes) == (i < 3)


def test_ids_of_a_nested_configuration(tmp_path: Path) -> None:
    contents, base = _contents()
    result = _read(
        tmp_path, contents, {}, text_config={"bos_token_id": base, "eos_token_id": base + 1, "pad_token_id": -1}
    )
    assert {"bos": 0, "eos": 1}.items() <= _ids(result, base).items()
    assert "padding" not in _ids(result, base)


def test_sentencepiece_declares_its_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer__model=train_sentencepiece("bpe", pad_id=3))
    assert _ids(read(folder, 500), 0) == {"bos": 1, "eos": 2, "unknown": 0, "padding": 3}


@pytest.mark.parametrize("value", [1000, "5", 1.0, True, [5, 2000]])
@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_impossible_ids(tmp_path: Path, value: object, place: str) -> None:
    contents, _ = _contents()
    files = {"generation_config": {"eos_token_id": value}} if place == "generation_config" else {}
    config: dict[str, Any] = {"eos_token_id": value} if place == "config" else {}
    with pytest.raises(TokenizerError, match="eos_token_id") as caught:
        _read(tmp_path, contents, files, 1000, **config)
    assert caught.value.path == tmp_path / f"{place}.json"


def test_texts_that_are_no_tokens_are_notes(tmp_path: Path) -> None:
    contents, base = _contents()
    result = _read(tmp_path, contents, {"tokenizer_config": {"pad_token": "<none>"}}, pad_token_id=base + 4)
    assert _ids(result, base)["padding"] == 4
    assert any("'<none>' as pad, but that is no token" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "special"),
    [("<|x|>", True), ("<｜x｜>", True), ("<unused7>", True), ("<pad>", True), ("<think>", False), ("|x|", False)],
)
def test_looks(text: str, special: bool) -> None:
    assert looks_special(text) is special


def test_added_tokens_of_all_files(tmp_path: Path) -> None:
    contents, base = _contents(markup=())
    contents["added_tokens"] = [{"id": base, "content": "<a>", "special": True}, {"id": base + 1, "content": "<b>"}]
    files = {
        "tokenizer_config": {
            "added_tokens_decoder": {str(base): {"content": "<a>", "special": False}},
            "additional_special_tokens": ["<d>"],
        },
        "added_tokens": {"<c>": base + 2, "<d>": base + 3},
    }
    metadata = _read(tmp_path, contents, files, rows=base + 5).metadata
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].value[base:] for key in ("tokens", "token_type"))  # type: ignore[index] # arrays
    assert list(tokens) == ["<a>", "<b>", "<c>", "<d>", f"[PAD{base + 4}]"]
    assert [Kind(kind) for kind in types] == [
        Kind.USER_DEFINED,
        Kind.USER_DEFINED,
        Kind.USER_DEFINED,
        Kind.CONTROL,
        Kind.UNUSED,
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<a>"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"5": "<a>"}}},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        {"tokenizer_config": {"added_tokens_decoder": {"5": {}}}},
        {"added_tokens": {"<a>": "5"}},
        {"added_tokens": {"<a>": -1}},
        {"added_tokens": {"<a>": 1 << 40}},
        {"added_tokens": {"<a>": 900}, "tokenizer_config": {"added_tokens_decoder": {"901": {"content": "<a>"}}}},
    ],
)
def test_malformed_added_tokens(tmp_path: Path, files: dict[str, Any]) -> None:
    contents, _ = _contents(markup=())
    files.setdefault("added_tokens", {"<z>": 950})
    with pytest.raises((FormatError, TokenizerError)):
        _read(tmp_path, {**contents, "added_tokens": []}, files)


def _template(*before: str, after: tuple[str, ...] = (), ids: dict[str, int]) -> dict[str, Any]:
    def part(name: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [*map(part, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(part, after)],
        "pair": [],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in ids.items()},
    }


@pytest.mark.parametrize(
    ("post", "config", "bos", "eos"),
    [
        (None, {}, False, False),
        (None, {"add_bos_token": True}, True, False),
        ({"type": "ByteLevel"}, {}, False, False),
        ("bos", {}, True, False),
        ("sequence", {}, True, False),
        ("both", {}, True, True),
        ("bos", {"add_bos_token": False}, False, False),
        ("roberta", {}, True, True),
    ],
)
def test_what_surrounds_text(tmp_path: Path, post: object, config: dict[str, Any], bos: bool, eos: bool) -> None:
    contents, base = _contents()
    begin, end = _MARKUP[:2]
    ids = {begin: base, end: base + 1}
    contents["post_processor"] = {
        "bos": _template(begin, ids=ids),
        "both": _template(begin, after=(end,), ids=ids),
        "sequence": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, _template(begin, ids=ids)]},
        "roberta": {"type": "RobertaProcessing", "cls": [begin, base], "sep": [end, base + 1]},
    }.get(str(post), post)
    result = _read(tmp_path, contents, {"tokenizer_config": {"bos_token": begin, "eos_token": end, **config}})
    assert result.metadata["tokenizer.ggml.add_bos_token"].value is bos
    assert result.metadata["tokenizer.ggml.add_eos_token"].value is eos
    assert any("tokenizer.json does otherwise" in note for note in result.notes) == bool(config)


def test_a_begin_that_only_the_post_processor_names(tmp_path: Path) -> None:
    contents, base = _contents("smaug-bpe", ("[gMASK]", "<sop>"))
    contents["post_processor"] = _template("[gMASK]", "<sop>", ids={"[gMASK]": base, "<sop>": base + 1})
    result = _read(tmp_path, contents, {})
    assert _ids(result, base) == {"bos": 0}
    assert result.metadata["tokenizer.ggml.add_bos_token"].value is True
    assert any("'[gMASK]', '<sop>' around text; GGUF can tell one" in note for note in result.notes)


def test_an_absent_begin_is_not_added(tmp_path: Path) -> None:
    contents, _ = _contents()
    result = _read(tmp_path, contents, {"tokenizer_config": {"add_bos_token": True}})
    assert result.metadata["tokenizer.ggml.add_bos_token"].value is False
    assert any("is to add a bos token, but has none" in note for note in result.notes)


@pytest.mark.parametrize(
    "post",
    [
        7,
        {"type": "Sequence"},
        {"type": "TemplateProcessing"},
        {"type": "TemplateProcessing", "special_tokens": {}, "single": [{"SpecialToken": {"id": "x"}}]},
        {
            "type": "TemplateProcessing",
            "special_tokens": {"x": {"ids": [-(1 << 70)]}},
            "single": [{"SpecialToken": {"id": "x"}}],
        },
        {"type": "BertProcessing", "cls": ["x", -1], "sep": ["y", 2]},
        {"type": "BertProcessing", "cls": ["x", 1], "sep": ["y", "2"]},
    ],
)
def test_malformed_post_processors(tmp_path: Path, post: object) -> None:
    contents, _ = _contents()
    with pytest.raises(FormatError, match="post_processor"):
        _read(tmp_path, {**contents, "post_processor": post}, {})


@pytest.mark.oracles
def test_llama_cpp_reads_the_ids(tmp_path: Path) -> None:
    contents, base = _contents()
    begin, end = _MARKUP[:2]
    contents["post_processor"] = _template(begin, ids={begin: base})
    files = {
        "tokenizer_config": {
            "bos_token": begin,
            "eos_token": end,
            "pad_token": "<|pad|>",
            "chat_template": "<|eot_id|>",
        }
    }
    metadata = _read(tmp_path / "hf", contents, files).metadata
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", metadata)) as vocabulary:
        assert [vocabulary.special(role) - base for role in ("bos", "eos", "eot", "pad")] == [0, 1, 3, 4]
        assert vocabulary.adds_bos
        assert vocabulary.tokenize("", add_special=True) == [base]
        assert [vocabulary.ends_generation(base + i) for i in (0, 1, 3)] == [False, True, True]
