"""Hugging Face folders: ``config.json``, weights in safetensors or torch's form, and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base import Format, Layout, Model, OpenContext, OutputTensor, WriteOptions
from ..metadata import Field
from .checkpoint import checkpoint_files

__all__ = ["FORMAT", "lay_out_huggingface", "open_huggingface", "prepare_for_huggingface"]


def _detect(path: Path) -> bool:
    try:
        if not (path.is_dir() and (path / "config.json").is_file()):
            return False
        found = checkpoint_files(path)
        if all(file.name.startswith("consolidated") for file in found):
            return (
                bool(found) and not (path / "params.json").is_file()
            )  # Mistral's own form, with a configuration beside it
        return True
    except OSError:
        return False


def open_huggingface(path: Path, context: OpenContext) -> Model:
    """Open a folder as :func:`reader.open_huggingface` does, importing tokenizers and numerics only now."""
    from .reader import open_huggingface as open_folder

    return open_folder(path, context)


def prepare_for_huggingface(model: Model, context: OpenContext) -> Model:
    """Return a model as a folder has it, as :func:`out.prepare.prepare_for_huggingface` does, importing numerics only now."""
    from .out.prepare import prepare_for_huggingface as prepare

    return prepare(model, context)


def _own_types(model: Model) -> Mapping[str, str]:
    from .out.source import recorded_types

    return recorded_types(model)


def lay_out_huggingface(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Lay out a folder as :func:`out.writer.lay_out_huggingface` does."""
    from .out.writer import lay_out_huggingface as lay_out

    return lay_out(path, metadata, tensors, options)


# Weights are F32, F16 or BF16; what else a source has is kept.
ENCODINGS = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")

FORMAT = Format(
    name="huggingface",
    description="folder with config.json, weights (safetensors or pytorch_model*.bin) and a tokenizer",
    detect=_detect,
    open=open_huggingface,
    lay_out=lay_out_huggingface,
    prepare=prepare_for_huggingface,
    own_types=_own_types,
    encodings=ENCODINGS,
    mixtures=False,
    aliases=("hf",),
    folder=True,
)
