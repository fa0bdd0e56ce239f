"""Print the relative error of every encoding on weights of several kinds: what runtime/measuring/expected_errors.json is twice of.

python scripts/measure_expected_errors.py examples/prose-llama-7m
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qconv.convert.opening import open_model
from qconv.plugins.manager import load_plugins
from qconv.quantizers.base import EncodeOptions, Encoding, ImportanceUse

Rows = NDArray[np.float32]
BLOCK = 32  # weights looked at together where the encoding has no blocks


def samples(model: Path) -> list[Rows]:
    """Return normal and heavy-tailed rows, and the matrices of a model."""
    random = np.random.default_rng(0)
    found = [random.normal(0, 0.02, (512, 1024)), 0.02 * random.standard_t(4, (512, 1024))]
    with open_model(model, load_plugins().registries()) as source:
        matrices = [tensor.rows(0, tensor.row_count) for tensor in source.tensors.values() if len(tensor.shape) > 1]
    return [rows.astype(np.float32) for rows in found] + matrices


def worst(encoding: Encoding, matrices: list[Rows]) -> tuple[float, float]:
    """Return the largest relative error of a matrix, and the largest share of a block's squares that its error has."""
    random = np.random.default_rng(1)
    whole = block = 0.0
    size = encoding.block_size if encoding.block_size > 1 else BLOCK
    for rows in matrices:
        columns = rows.shape[1]
        if not encoding.fits(columns):
            continue
        importance = np.exp(random.normal(0, 2, columns)).astype(np.float32)
        for weights in (np.ones(columns, np.float32), importance):
            for options in (EncodeOptions(objective="ggml"), EncodeOptions(objective="importance")):
                used = None if encoding.importance is ImportanceUse.UNUSED else weights
                errors = np.square(encoding.decode(encoding.encode(rows, used, options)).astype(np.float64) - rows)
                squares = np.square(rows, dtype=np.float64)
                whole = max(whole, math.sqrt(errors.sum() / squares.sum()))
                own, off = squares.reshape(-1, size).sum(axis=1), errors.reshape(-1, size).sum(axis=1)
                judged = own > 1e-4 * own.mean()
                block = max(block, float((off[judged] / own[judged]).max()))
    return whole, block


def main() -> None:
    """Measure every encoding that can encode."""
    matrices = samples(Path(sys.argv[1]))
    for encoding in load_plugins().registries().encodings.values():
        if encoding.load is not None and encoding.family != "integer" and encoding.codec().encode is not None:
            whole, block = worst(encoding, matrices)
            print(f"{encoding.name:8} matrix {whole:.4f}  block {block:.4f}", flush=True)


if __name__ == "__main__":
    main()
