"""Within every family of types the example's divergence from its source falls with the bits, as the runtime measures it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from measuring import PROSE, subject
from numpy.typing import NDArray

import qconv
from qconv.convert.calibration.calibrate import Calibration, measure_importance, save_importance
from qconv.convert.measure import Cut, Subject, cut_text
from qconv.convert.settings import Settings
from qconv.convert.validation.validate import dominant_encoding, threshold
from qconv.quantizers.recipes.tables import recipes
from qconv.runtime.measuring.divergence import compare_logits
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import scored_rows

FAMILIES = {
    "floats": ("BF16", "F16", "F32"),
    "legacy": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "super-blocks": ("Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    "super-blocks, pure": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "codebooks": (
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"),
        *("IQ4_XS", "IQ4_NL"),
    ),
    "ternary": ("TQ1_0", "TQ2_0"),
    "low bits": ("Q1_0", "Q2_0"),
    "microscaling, pure": ("MXFP4", "NVFP4"),
}
SAME_WEIGHTS = {"floats", "ternary"}  # the example is BF16; two packings of the same three values
LIMITS = {"Q8_0": 1e-3, "Q6_K": 1e-2}
CUT = Cut(64)  # twelve windows, 372 predictions

Rows = list[tuple[NDArray[np.float32], NDArray[np.int32]]]


def predictions(found: Subject) -> Rows:
    windows = cut_text(found, read_text(PROSE), CUT)
    return [(rows.logits.copy(), rows.targets) for rows in scored_rows(found.network, windows)]


@pytest.fixture(scope="module")
def divergence(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[[str, bool], float]:
    """Quantize the example with its importance matrix and return the mean divergence; it must be below the type's threshold."""
    folder, source = tmp_path_factory.mktemp("types"), root / "examples" / "prose-llama-7m"
    imatrix = folder / "imatrix.gguf"
    with subject(source) as found:
        base = predictions(found)
        job = Calibration(found, [], cut_text(found, read_text(PROSE), CUT), output=True)
        save_importance(imatrix, measure_importance(job, folder / "checkpoint", lambda count: None), None, "gguf")

    def measure(kind: str, pure: bool) -> float:
        path = folder / "m.gguf"
        qconv.quantize(source, path, kind, settings=Settings(imatrix=imatrix, pure=pure, force=True))
        with subject(path) as result:
            pairs = zip(base, predictions(result), strict=True)
            found = np.concatenate([compare_logits(p, q, right).divergence for (p, right), (q, _) in pairs])
            mean = float(found.mean())
            assert mean <= threshold(dominant_encoding(result.model))
        return mean

    return measure


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_falls_with_bits(divergence: Callable[[str, bool], float], family: str) -> None:
    kinds = FAMILIES[family]
    found = [divergence(kind, family.endswith("pure")) for kind in kinds]
    print({kind: f"{value:.6f}" for kind, value in zip(kinds, found, strict=True)})
    for kind, value, following in zip(kinds, found, found[1:], strict=False):
        if family in SAME_WEIGHTS:
            assert abs(value - following) < 1e-6, kind
        else:
            assert value > following, kind
    for kind, value in zip(kinds, found, strict=True):
        assert value < LIMITS.get(kind, np.inf), kind


def test_no_type_is_left_out() -> None:
    named = {kind for kinds in FAMILIES.values() for kind in kinds}
    assert set(recipes()) - named == {"COPY", "MXFP4_MOE"}, "the latter is Q8_0 for a model without experts"
