"""``generation_config.json``: the source's own, or what the metadata say about sampling and the ends of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...metadata import Field
from .configuration import special_ids
from .source import Recorded
from .values import plain_number

__all__ = ["rebuild_generation"]

_SAMPLING = (("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p"), ("top_k", "top_k"))
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def rebuild_generation(metadata: Mapping[str, Field], recorded: Recorded) -> str | None:
    """Return the text of the file, or None where there is nothing to say, or where the source is known to have had none."""
    if recorded.generation is not None:
        return recorded.generation
    if recorded.config is not None and recorded.same_tokenizer:
        return None
    found: dict[str, Any] = {key: value for key, value in special_ids(metadata).items() if value is not None}
    ends = list(dict.fromkeys(metadata[key].value for key in _ENDS if key in metadata))
    if len(ends) > 1:
        found["eos_token_id"] = ends
    for name, key in _SAMPLING:
        field = metadata.get(f"general.sampling.{key}")
        if field is not None and isinstance(field.value, int | float):
            found[name] = plain_number(field)
    if found.get("temperature"):
        found["do_sample"] = True
    return json.dumps(found, indent=2) + "\n" if found else None
