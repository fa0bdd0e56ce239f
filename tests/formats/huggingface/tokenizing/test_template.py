"""Chat templates are found wherever they lie, with transformers' precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import read, train_byte_level, write_folder

from qconv.errors import FormatError
from qconv.formats.huggingface.tokenizing.files import find_tokenizer_files
from qconv.formats.huggingface.tokenizing.template import ChatTemplates, read_chat_templates


def _templates(folder: Path, **contents: Any) -> ChatTemplates:
    return read_chat_templates(find_tokenizer_files(write_folder(folder, **contents)))


def test_none(tmp_path: Path) -> None:
    found = _templates(tmp_path)
    assert found == ChatTemplates(None, {}, ())
    assert found.metadata() == {}


@pytest.mark.parametrize(
    "contents",
    [
        {"chat_template__jinja": "{{ x }}"},
        {"tokenizer_config": {"chat_template": "{{ x }}"}},
        {"tokenizer_config": {"chat_template": [{"name": "default", "template": "{{ x }}"}]}},
        {"chat_template": {"chat_template": "{{ x }}"}},
    ],
)
def test_each_place(tmp_path: Path, contents: dict[str, Any]) -> None:
    assert _templates(tmp_path, **contents) == ChatTemplates("{{ x }}", {}, ())


def test_precedence(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "default", "template": "c"}, {"name": "tool use", "template": "t"}]}
    legacy = {"chat_template": "l"}
    found = _templates(tmp_path / "a", chat_template__jinja="j", tokenizer_config=config, chat_template=legacy)
    assert (found.default, found.named) == ("j", {"tool_use": "t"})
    assert [note.split("differ")[0] for note in found.notes] == [
        "the default chat templates of chat_template.jinja and tokenizer_config.json ",
        "the default chat templates of chat_template.jinja and chat_template.json ",
    ]
    assert _templates(tmp_path / "b", tokenizer_config=config, chat_template=legacy).default == "c"
    assert _templates(tmp_path / "c", chat_template__jinja="c", tokenizer_config={"chat_template": "c"}).notes == ()


def test_additional_templates(tmp_path: Path) -> None:
    write_folder(tmp_path / "additional_chat_templates", rag__jinja="r", tools__jinja="t", other__txt="x")
    found = _templates(tmp_path, chat_template__jinja="j")
    assert found.metadata()["tokenizer.chat_templates"].value == ("rag", "tools")
    assert {key: field.value for key, field in found.metadata().items() if "templates" not in key} == {
        "tokenizer.chat_template.rag": "r",
        "tokenizer.chat_template.tools": "t",
        "tokenizer.chat_template": "j",
    }


def test_templates_are_part_of_the_metadata(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer=train_byte_level("gpt-2"), chat_template__jinja="é{{ x }}")
    result = read(folder, 700)
    assert result.metadata["tokenizer.chat_template"].value == "é{{ x }}"
    assert result.files["chat_template.jinja"] == folder / "chat_template.jinja"


@pytest.mark.parametrize(
    "contents",
    [
        {"tokenizer_config": {"chat_template": 7}},
        {"tokenizer_config": {"chat_template": ["x"]}},
        {"tokenizer_config": {"chat_template": [{"name": "x"}]}},
        {"tokenizer_config": {"chat_template": [{"template": "x"}]}},
        {"tokenizer_config": {"chat_template": "\ud800"}},
        {"chat_template": {"chat_template": {}}},
        {"chat_template__jinja": b"\xff\xfe"},
    ],
)
def test_malformed(tmp_path: Path, contents: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        _templates(tmp_path, **contents)
