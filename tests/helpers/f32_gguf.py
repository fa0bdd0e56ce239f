"""A model written as an F32 GGUF file in one go, for oracles that read whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf_files import write_layout
from qconv_encodings import ENCODINGS

from qconv.formats.base import Model, OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf


def write_f32(path: Path, model: Model) -> Path:
    """Write metadata and tensors of ``model``, all tensors as F32; return ``path``."""
    outputs = [OutputTensor(name, tensor.shape, ENCODINGS["F32"]) for name, tensor in model.tensors.items()]
    data = {
        name: np.ascontiguousarray(tensor.rows(0, tensor.row_count), "<f4").tobytes()
        for name, tensor in model.tensors.items()
    }
    write_layout(lay_out_gguf(path, model.metadata, outputs, WriteOptions(digests=False)), data)
    return path
