"""Who a model is: its name, size and license, from the folder, the configuration and the model card's front matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..base import Tensor
from ..metadata import Field, float32, int32, string
from .json_files import finite_number

__all__ = ["general_metadata", "model_name", "read_model_card", "size_label"]

CARD_MAX = 1 << 20  # bytes of README.md that are looked at
_HASH = re.compile(r"[0-9a-f]{32,64}")
_LINE = re.compile(r"(?P<key>license|license_name|license_link|base_model):[ \t]*(?P<value>.*)")
_ITEM = re.compile(r"[ \t]*-[ \t]+(?P<value>.+)")
_CARD_KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
_SAMPLING = (("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p"))


def read_model_card(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return license and base model of ``README.md``, and notes; a card that cannot be read is a note, never an error.

    Only plain ``key: value`` lines of the front matter are read, and of a list its first item: no YAML is interpreted.
    """
    path = folder / "README.md"
    if not path.is_file():
        return {}, ()
    try:
        with path.open("rb") as file:
            text = file.read(CARD_MAX).decode("utf-8", errors="strict" if path.stat().st_size <= CARD_MAX else "ignore")
    except (OSError, UnicodeDecodeError) as error:
        return {}, (f"README.md is ignored: {error}",)
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}, ()
    end = next((index for index, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return {}, ("README.md is ignored: its front matter does not end",)
    found: dict[str, str] = {}
    for index, line in enumerate(lines[1:end], 1):
        if match := _LINE.fullmatch(line):
            item = _ITEM.fullmatch(lines[index + 1]) if not match["value"].strip() else None
            value = _plain(item["value"] if item else match["value"])
            if value:
                found[match["key"]] = value
    return found, ()


def _plain(text: str) -> str:
    """Return a YAML scalar that needs no interpretation, or an empty string."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return "" if not text or text[0] in "[{&*!|>%@`#\"'" or len(text) > 500 else text


def model_name(folder: Path, config: Mapping[str, Any], card: Mapping[str, str]) -> str | None:
    """Return the model's name: the folder's, unless that is a hash; a download cache's folder, the configuration's name or the base model."""
    resolved = folder.resolve()
    candidates = [resolved.name]
    if resolved.parent.name == "snapshots":  # .../models--owner--name/snapshots/<hash>
        candidates.append(resolved.parent.parent.name.rpartition("--")[2])
    for value in (config.get("_name_or_path"), card.get("base_model")):
        if isinstance(value, str):
            candidates.append(value.rstrip("/\\").replace("\\", "/").rpartition("/")[2])
    return next((name for name in candidates if name.strip(" .") and not _HASH.fullmatch(name)), None)


def size_label(tensors: Iterable[Tensor], experts: int | None) -> str:
    """Return the number of weights as llama.cpp labels it: ``6.8M``; ``8x7.2B`` for mixtures; an empty string for no tensors."""
    shared = expert = 0
    for tensor in tensors:
        count = tensor.row_count * tensor.columns
        if "_exps." in tensor.name:
            expert += count
        else:
            shared += count
    if not shared + expert:
        return ""
    if experts:
        return f"{experts}x{_rounded(shared + expert // experts)}"
    return _rounded(shared + expert)


def _rounded(count: int) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count > limit:
            return _significant(count / limit) + unit
    return _significant(count / 1e3) + "K"


def _significant(value: float) -> str:
    """Return two significant digits at least."""
    return f"{value:.{max(0, 2 - len(str(round(value)).lstrip('0')))}f}"


def general_metadata(
    architecture: str, name: str | None, label: str, card: Mapping[str, str], generation: Mapping[str, Any]
) -> dict[str, Field]:
    """Return the ``general.*`` keys that a source folder can give."""
    metadata = {"general.architecture": string(architecture), "general.type": string("model")}
    if name:
        metadata["general.name"] = string(name)
    if label:
        metadata["general.size_label"] = string(label)
    metadata |= {key: string(card[source]) for source, key in _CARD_KEYS.items() if source in card}
    for source, key in _SAMPLING:
        value = finite_number(generation.get(source))
        if value is not None:
            metadata[f"general.sampling.{key}"] = float32(value)
    top_k = generation.get("top_k")
    if isinstance(top_k, int) and not isinstance(top_k, bool) and 0 <= top_k < 1 << 31:
        metadata["general.sampling.top_k"] = int32(top_k)
    return metadata
