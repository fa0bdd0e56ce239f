"""Hugging Face folders: ``config.json``, weights in safetensors or torch's form, and a tokenizer."""

from __future__ import annotations

from pathlib import Path

from ..base import Format, Model, OpenContext
from .checkpoint import checkpoint_files

__all__ = ["FORMAT", "open_huggingface"]


def _detect(path: Path) -> bool:
    try:
        return path.is_dir() and (path / "config.json").is_file() and bool(checkpoint_files(path))
    except OSError:
        return False


def open_huggingface(path: Path, context: OpenContext) -> Model:
    """Open a folder as :func:`reader.open_huggingface` does, importing tokenizers and numerics only now."""
    from .reader import open_huggingface as open_folder

    return open_folder(path, context)


FORMAT = Format(
    name="huggingface",
    description="folder with config.json, weights (safetensors or pytorch_model*.bin) and a tokenizer",
    detect=_detect,
    open=open_huggingface,
)
