"""Every encoder against llama.cpp's own, on the same weights: never a larger error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ggml_objectives import OBJECTIVES
from ggml_oracle import ggml_quantize
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS
from weight_samples import importance_samples, squared_error, trained_weights, weight_samples

from qconv.quantizers.base import Encoding, ImportanceUse

ENCODABLE = [
    name
    for name, encoding in ENCODINGS.items()
    if encoding.is_quantized and encoding.load is not None and encoding.codec().encode is not None
]
ROWS, COLUMNS = 16, 2048
# errors of the last bits of float64 sums
ROUNDING = 1 + 1e-9
# how far plain root mean square may lie above llama.cpp's, where another objective is minimised
PLAIN_MARGIN = 1.01


def _complaints(
    encoding: Encoding, sample: str, rows: NDArray[np.float32], name: str, importance: NDArray[np.float32] | None
) -> list[str]:
    """What is worse than llama.cpp's on these rows, in words."""
    assert encoding.type_id is not None
    theirs = encoding.decode(ggml_quantize(rows, encoding.type_id, importance))
    ours = encoding.decode(encoding.encode(rows, importance))
    weighted = importance is not None and encoding.importance is not ImportanceUse.UNUSED
    measures = {
        "importance-weighted" if weighted else "plain": (
            importance if weighted else None,
            1.0 if weighted else PLAIN_MARGIN,
        )
    }
    if not weighted and encoding.name in OBJECTIVES:
        measures["objective"] = (OBJECTIVES[encoding.name](rows), 1.0)
    found = []
    for measure, (weights, margin) in measures.items():
        error, bound = (squared_error(rows, decoded, weights) for decoded in (ours, theirs))
        if not error <= bound * margin**2 * ROUNDING:
            found.append(f"{sample}, {name}: {measure} error {error:.6g}, llama.cpp's {bound:.6g}")
    return found


def _cases(encoding: Encoding, columns: int) -> dict[str, NDArray[np.float32] | None]:
    vectors = importance_samples(columns)
    if encoding.importance is ImportanceUse.UNUSED:
        return {"none": None}
    if encoding.importance is ImportanceUse.REQUIRED:
        del vectors["none"]
    return vectors


@pytest.mark.oracles
@pytest.mark.parametrize("name", ENCODABLE)
def test_errors_are_at_most_those_of_llamacpp(name: str) -> None:
    encoding = ENCODINGS[name]
    samples = weight_samples(ROWS, COLUMNS)
    samples |= {f"negative {sample}": -samples[sample] for sample in ("outlier", "constant")}
    worse = [
        complaint
        for sample, rows in samples.items()
        for case, importance in _cases(encoding, COLUMNS).items()
        for complaint in _complaints(encoding, sample, rows, case, importance)
    ]
    assert not worse, "\n".join(worse)


TRAINED = {
    "model.embed_tokens.weight": 256,
    "model.layers.1.self_attn.q_proj.weight": 256,
    "model.layers.2.mlp.down_proj.weight": 768,
}


@pytest.mark.oracles
@pytest.mark.parametrize("name", ENCODABLE)
def test_errors_on_trained_weights_are_at_most_those_of_llamacpp(name: str, example_model: Path) -> None:
    encoding = ENCODINGS[name]
    samples = {tensor: trained_weights(example_model, tensor, 128, columns) for tensor, columns in TRAINED.items()}
    worse = [
        complaint
        for sample, rows in samples.items()
        for case, importance in _cases(encoding, rows.shape[1]).items()
        for complaint in _complaints(encoding, sample, rows, case, importance)
    ]
    assert not worse, "\n".join(worse)
