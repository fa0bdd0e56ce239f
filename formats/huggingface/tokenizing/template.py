"""Chat templates, from wherever a Hugging Face folder keeps them.

Precedence is that of transformers: ``chat_template.jinja``, then ``tokenizer_config.json`` (a text, or a list of named texts), then
``chat_template.json`` (processors of older releases). Files of ``additional_chat_templates/`` add names. A template is kept as text and
never run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....errors import FormatError
from ...metadata import Field, string, strings
from ..json_files import read_json_object
from .files import TokenizerFiles, expect, read_text

__all__ = ["ChatTemplates", "read_chat_templates"]

_DEFAULT = "default"


@dataclass(frozen=True)
class ChatTemplates:
    """The default template or None, further ones by name, and what the user should know."""

    default: str | None
    named: Mapping[str, str]
    notes: tuple[str, ...]

    def metadata(self) -> dict[str, Field]:
        """Return the GGUF keys: ``tokenizer.chat_template``, ``tokenizer.chat_template.NAME`` and the list of names."""
        fields: dict[str, Field] = {}
        if self.named:
            fields["tokenizer.chat_templates"] = strings(self.named)
            fields |= {f"tokenizer.chat_template.{name}": string(text) for name, text in self.named.items()}
        if self.default is not None:
            fields["tokenizer.chat_template"] = string(self.default)
        return fields


def read_chat_templates(folder_files: TokenizerFiles) -> ChatTemplates:
    """Return the folder's chat templates; raises FormatError for one that is no text."""
    found: dict[str, dict[str, str]] = {}
    paths = folder_files.paths
    if "chat_template.jinja" in paths:
        found["chat_template.jinja"] = {_DEFAULT: read_text(paths["chat_template.jinja"])}
    if folder_files.tokenizer_config.get("chat_template") is not None:
        path = paths["tokenizer_config.json"]
        value = folder_files.tokenizer_config["chat_template"]
        if isinstance(value, list):
            entries = [expect(entry, dict, "a chat template", path) for entry in value]
            found[path.name] = {
                expect(entry.get("name"), str, "the name of a chat template", path): expect(
                    entry.get("template"), str, "a chat template", path
                )
                for entry in entries
            }
        else:
            found[path.name] = {_DEFAULT: expect(value, str, "chat_template", path)}
    if "chat_template.json" in paths:
        path = paths["chat_template.json"]
        value = read_json_object(path, "a chat template").get("chat_template")
        if value is not None:
            found[path.name] = {_DEFAULT: expect(value, str, "chat_template", path)}
    texts: dict[str, str] = {}
    notes = []
    for source, templates in found.items():
        for name, text in templates.items():
            if texts.setdefault(name, text) != text:
                first = next(other for other in found if name in found[other])
                notes.append(f"the {name} chat templates of {first} and {source} differ; the first is written")
    for name, path in paths.items():
        if name.startswith("additional_chat_templates/"):
            texts.setdefault(path.stem, read_text(path))
    for name, text in texts.items():
        if not (name + text).isprintable() and any("\ud800" <= character <= "\udfff" for character in name + text):
            raise FormatError(f"the chat template {name!r} is no valid Unicode", path=folder_files.folder)
    default = texts.pop(_DEFAULT, None)
    return ChatTemplates(default, {_key(name): text for name, text in texts.items()}, tuple(notes))


def _key(name: str) -> str:
    return "".join(character if character.isascii() and character.isalnum() else "_" for character in name)
