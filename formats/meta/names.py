"""Meta's tensor names, what they are called in GGUF, and how each kind is split over shards; the table is ``tensors.json``.

=========== =========================================================================================================
``none``    every shard holds the whole tensor
``rows``    every shard holds some of the rows
``columns`` every shard holds some columns of every row
``heads``   as ``rows``; where there are more shards than key heads, adjacent shards hold the same head
``either``  by columns (Llama 1 and 2) or by rows (Llama 3): the shape tells
=========== =========================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ...errors import MissingTensorError, UnmappedTensorError

__all__ = ["MetaTensor", "Split", "check_names", "expected_tensors", "is_dropped"]

Split = Literal["none", "rows", "columns", "heads", "either"]

_LISTED = 8

# parts of tensor names that give away what kind of checkpoint it is, with what to do
_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("vision_model.", "text_model.", "cross_attention"), "It has a vision tower, which Llama 1 to 3's text models have not."),
    ((".experts.", ".block_sparse_moe.", ".feed_forward.gate"), "It has a mixture of experts: use the checkpoint in Hugging Face's form."),
    ((".scales", ".zeros", "lora_", ".adaptor."), "It is quantized or holds adapters: use the original BF16 checkpoint."),
    (("model.layers.", "lm_head."), "These are Hugging Face's names: convert the folder with its config.json."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MetaTensor:
    """One tensor that a model has.

    Attributes:
        meta: Meta's name.
        gguf: GGUF's name.
        split: how it is split over shards.
        shape: the whole tensor's, in NumPy order.
    """

    meta: str
    gguf: str
    split: Split
    shape: tuple[int, ...]


def expected_tensors(sizes: Mapping[str, int]) -> tuple[MetaTensor, ...]:
    """Return every tensor of a model in canonical order; ``sizes`` names ``layers`` and the sizes that the table mentions."""
    entries = _table()["tensors"]
    inside = [index for index, entry in enumerate(entries) if "{layer}" in entry["meta"]]
    before, middle, after = entries[: inside[0]], entries[inside[0] : inside[-1] + 1], entries[inside[-1] + 1 :]
    ordered = [(entry, 0) for entry in before]
    ordered += [(entry, layer) for layer in range(sizes["layers"]) for entry in middle]
    ordered += [(entry, 0) for entry in after]
    return tuple(
        MetaTensor(
            entry["meta"].replace("{layer}", str(layer)),
            entry["gguf"].replace("{layer}", str(layer)),
            entry["split"],
            tuple(sizes[name] for name in entry["shape"]),
        )
        for entry, layer in ordered
    )


def is_dropped(name: str) -> bool:
    """Whether a tensor is computed by every runtime itself, and so left out."""
    return any(fnmatchcase(name, pattern) for pattern in _table()["dropped"])


def check_names(names: Collection[str], expected: Collection[MetaTensor], path: Path) -> None:
    """Raise UnmappedTensorError or MissingTensorError where a checkpoint's names are not those expected."""
    wanted = {tensor.meta for tensor in expected}
    unknown = [name for name in names if name not in wanted and not is_dropped(name)]
    missing = [name for name in wanted if name not in names]
    if unknown:
        cause = next((text for parts, text in _CAUSES if any(part in name for name in unknown for part in parts)), None)
        raise UnmappedTensorError(
            f"{len(unknown)} tensors are none of a Llama's ({_list(unknown)})",
            path=path,
            remedy=cause or "Compare params.json with the checkpoint: n_layers may be of another model.",
        )
    if missing:
        ordered = [tensor.meta for tensor in expected if tensor.meta in set(missing)]
        raise MissingTensorError(
            f"{len(missing)} tensors that a Llama of this size needs are missing ({_list(ordered)})",
            path=path,
            remedy="Compare params.json with the checkpoint: n_layers may be of another model.",
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1][:100] for name in names[:_LISTED])
    return shown + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("tensors.json").read_text(encoding="utf-8"))
    return table
