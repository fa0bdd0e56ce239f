"""Mistral's own form of a checkpoint: ``params.json``, ``consolidated*.safetensors`` (at first ``.pt`` or ``.pth``) and ``tekken.json``, in one folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import QconvError
from ..base import Format, Model, OpenContext
from ..huggingface.checkpoint import CONSOLIDATED, CONSOLIDATED_PICKLES, WeightFiles
from ..huggingface.json_files import read_json_object

__all__ = ["FORMAT", "open_mistral", "weight_files"]

_PARAMETERS = "params.json"
_PARAMETERS_MAX = 1 << 20  # bytes


def _detect(path: Path) -> bool:
    """Whether there are hyper-parameters and weights of this form; a folder that has Hugging Face's weights as well is read by these."""
    try:
        parameters = path / _PARAMETERS
        if not parameters.is_file() or parameters.stat().st_size > _PARAMETERS_MAX:
            return False
        if any(path.glob("model*.safetensors*")):
            return False
        if weight_files(path) is None:
            return False
        values = read_json_object(parameters, "the model's hyper-parameters")
    except (OSError, QconvError):
        return False
    return values.keys() >= {"dim", "n_layers"}


def weight_files(folder: Path) -> WeightFiles | None:
    """Return the form of the folder's weight files, None where there are none: safetensors before pickles."""
    if CONSOLIDATED.files(folder) or (folder / CONSOLIDATED.index).is_file():
        return CONSOLIDATED
    return next((kind for kind in CONSOLIDATED_PICKLES if kind.files(folder)), None)


def open_mistral(path: Path, context: OpenContext) -> Model:
    """Open a folder as :func:`reader.open_mistral` does, importing tokenizers and numerics only now."""
    from .reader import open_mistral as open_folder

    return open_folder(path, context)


FORMAT = Format(
    name="mistral",
    description="Mistral's own form: params.json, consolidated*.safetensors (or .pt) and tekken.json or tokenizer.model",
    detect=_detect,
    open=open_mistral,
)
