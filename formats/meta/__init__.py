"""Meta's checkpoints: ``params.json``, ``consolidated.00.pth`` … and a tokenizer, in one folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import QconvError
from ..base import Format, Model, OpenContext
from ..huggingface.json_files import read_json_object
from ..pickles import is_pickled_checkpoint
from .shards import shards_in

__all__ = ["FORMAT", "open_meta"]


def _detect(path: Path) -> bool:
    try:
        return bool(shards_in(path)) and not _has_experts(path) if path.is_dir() else is_pickled_checkpoint(path)
    except OSError:
        return False


def _has_experts(folder: Path) -> bool:
    """Whether the hyper-parameters are those of Mixtral, whose first release has Meta's names of files."""
    parameters = folder / "params.json"
    try:
        values = read_json_object(parameters, "the model's hyper-parameters") if parameters.is_file() else {}
    except QconvError:
        return False
    return isinstance(values.get("moe"), dict)


def open_meta(path: Path, context: OpenContext) -> Model:
    """Open a checkpoint as :func:`reader.open_meta` does, importing tokenizers and numerics only now."""
    from .reader import open_meta as open_checkpoint

    return open_checkpoint(path, context)


FORMAT = Format(
    name="meta",
    description="Meta's checkpoints: params.json, consolidated.NN.pth and tokenizer.model, Llama 1 to 3",
    detect=_detect,
    open=open_meta,
)
