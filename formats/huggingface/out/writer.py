"""Lay out a Hugging Face folder: weights first, so that they are put in place last, then the documents beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ....errors import UsageError
from ...base import Layout, OutputTensor, Part, WriteOptions
from ...metadata import Field
from ..pooling import POOLING_FILES
from .configuration import with_dtype
from .safetensors import lay_out_weights
from .source import read_recorded

__all__ = ["BELONGINGS", "DOCUMENTS", "lay_out_huggingface"]

DOCUMENTS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    *POOLING_FILES,
)
"""Names and patterns of the files that lie beside the weights."""

BELONGINGS: Final = (*DOCUMENTS, "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
"""What an output's folder may have in it."""

_CONFIG = "config.json"


def lay_out_huggingface(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Return which bytes go where for a folder ``path``: safetensors under Hugging Face's names, and ``options.documents``.

    Files are split at 5 GB unless the options say otherwise; digests are not stored. The model must come from :func:`prepare_for_huggingface`,
    which makes names and documents.

    Raises UsageError for an alignment, which safetensors does not have, and where documents are missing.
    """
    if options.alignment is not None:
        raise UsageError("safetensors files have no alignment to choose")
    if _CONFIG not in options.documents:
        raise UsageError("a Hugging Face folder needs a config.json, which is made when a model is prepared for it")
    documents = dict(options.documents)
    documents[_CONFIG] = _with_dtype(documents[_CONFIG], metadata, tensors)
    parts = lay_out_weights(path, tensors, options) if tensors else []
    parts += [Part(path / name, len(data), (), partial(_document, data)) for name, data in documents.items()]
    return Layout(tuple(parts), path, BELONGINGS)


def _document(data: bytes, digests: Mapping[str, str]) -> bytes:
    """Return a document, whatever the weights."""
    return data


def _with_dtype(config: bytes, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor]) -> bytes:
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.encoding.name] += tensor.nbytes // tensor.encoding.block_bytes
    if not weights:
        return config
    recorded = read_recorded(metadata)
    return with_dtype(config.decode(), weights.most_common(1)[0][0], recorded.dtype).encode()
