"""How an embedding model makes one vector of a text's: what sentence-transformers' ``modules.json`` and its pooling module say.

GGUF's ``pooling_type``: 1 for the mean of all tokens, 2 for the first token's vector, 3 for the last one's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FormatError
from ..metadata import Field, uint32
from .json_files import read_json, read_json_object

__all__ = ["POOLING_FILES", "pooling_documents", "read_pooling"]

_MODULES, _MODULE = "modules.json", "1_Pooling"
POOLING_FILES = (_MODULES, f"{_MODULE}/config.json")
"""What :func:`pooling_documents` makes."""

_TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}
# what older files say, one truth value per mode
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


def read_pooling(folder: Path, architecture: str) -> tuple[dict[str, Field], tuple[str, ...]]:
    """Return the key of ``architecture`` (GGUF's name) for the pooling of ``folder``, and notes; nothing for a folder without ``modules.json``.

    Raises FormatError where the files are malformed, or name a place outside of the folder.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}, ()
    modules = read_json(path, "the list of modules")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FormatError("this should be a list of modules", path=path)
    kinds = {str(module.get("type")).rpartition(".")[2]: module.get("path") for module in modules}
    notes = tuple(
        f"the module {kind} of modules.json is left out: GGUF has no place for it" for kind in kinds if kind == "Dense"
    )
    if "Pooling" not in kinds:
        return {}, notes
    name = kinds["Pooling"]
    place = folder / name if isinstance(name, str) else folder
    if not isinstance(name, str) or not place.resolve().is_relative_to(folder.resolve()):
        raise FormatError(f"the pooling module lies at {name!r}, which is no place in the folder", path=path)
    modes = _modes(read_json_object(place / "config.json", "the pooling module"))
    if len(modes) == 1 and modes[0] in _TYPES:
        return {f"{architecture}.pooling_type": uint32(_TYPES[modes[0]])}, notes
    listed = " and ".join(modes) or "nothing"
    return {}, (*notes, f"the model pools by {listed}, which GGUF cannot say; choose a way where the model is run")


def _modes(config: Mapping[str, Any]) -> list[str]:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return [mode]
    return [name for key, name in _FLAGS.items() if config.get(key) is True]


def pooling_documents(
    metadata: Mapping[str, Field], architecture: str, width: int
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the files that tell sentence-transformers how ``architecture`` (GGUF's name) pools vectors of ``width`` numbers, and notes.

    Nothing for a model whose metadata do not say how, or say that it does not.
    """
    field = metadata.get(f"{architecture}.pooling_type")
    mode = next((name for name, number in _TYPES.items() if field is not None and field.value == number), None)
    if mode is None:
        return {}, ()
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate((("Transformer", ""), ("Pooling", _MODULE)))
    ]
    # one truth value per mode: what versions of all ages read
    pooling = {"word_embedding_dimension": width, **{key: name == mode for key, name in _FLAGS.items()}}
    note = "modules.json pools as the source does; whether vectors are scaled to length 1 afterwards, GGUF does not say"
    return {
        name: json.dumps(it, indent=2).encode() for name, it in zip(POOLING_FILES, (modules, pooling), strict=True)
    }, (note,)
