"""Every ``--type`` of the example model loads and speaks in real llama.cpp, better with more bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from llamacpp_models import logits
from numpy.typing import NDArray

import qconv
from qconv.convert.settings import Settings
from qconv.formats.imatrix import gguf_imatrix
from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix
from qconv.quantizers.recipes.tables import recipes

# tokens of the example's vocabulary; any will do, since the comparison is with the source's own prediction
TOKENS = [1, *(int(token) for token in np.random.default_rng(4).integers(300, 4096, 63))]
# largest mean KL divergence from the BF16 file, some twice what was measured
LIMITS = {"Q8_0": 0.0006, "Q6_K": 0.004, "Q5_K_M": 0.006, "Q4_K_M": 0.016, "IQ4_XS": 0.02, "Q3_K_M": 0.06, "Q2_K": 0.25}
# no weight of a trained model is ternary or a sign: these types must load and give finite numbers, no more
NOT_FOR_THIS_MODEL = {"Q1_0", "Q2_0", "TQ1_0", "TQ2_0"}


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def divergence(source: NDArray[np.float32], result: NDArray[np.float32]) -> float:
    p, q = log_softmax(source), log_softmax(result)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The example as a BF16 file."""
    path = tmp_path_factory.mktemp("source") / "bf16.gguf"
    qconv.quantize(root / "examples" / "prose-llama-7m", path, "bf16")
    return path


@pytest.fixture(scope="module")
def imatrix(source: Path) -> Path:
    """An importance matrix for every matrix of the example: log-normal, as measured ones are."""
    random = np.random.default_rng(5)
    entries = {
        it.name: ImportanceEntry(
            np.exp(random.standard_normal((1, int(it.shape[0])))).astype(np.float32) * 1000, np.array([1000.0])
        )
        for it in GGUFReader(source).tensors
        if it.name.startswith("blk.") and len(it.shape) == 2
    }
    path = source.with_name("imatrix.gguf")
    path.write_bytes(gguf_imatrix(ImportanceMatrix(entries, ("made",), 2, 500)))
    return path


@pytest.mark.oracles
@pytest.mark.parametrize("type_name", [name for name in recipes() if name != "COPY"])
def test_llama_cpp_runs_it(source: Path, imatrix: Path, tmp_path: Path, type_name: str) -> None:
    output = tmp_path / "out.gguf"
    qconv.quantize(source, output, type_name, settings=Settings(imatrix=imatrix))
    found = logits(output, TOKENS)
    assert np.isfinite(found).all()
    measured = divergence(logits(source, TOKENS), found)
    print(f"{type_name}: {measured:.5f}")
    assert measured < LIMITS.get(type_name, 5.0 if type_name in NOT_FOR_THIS_MODEL else 1.2)
