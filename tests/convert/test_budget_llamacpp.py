"""Files with types chosen for a size load and speak in real llama.cpp, closer to their source than the mixtures of that size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from llamacpp_models import logits
from measuring import PROSE, subject

import qconv
from qconv.convert.api import load_importance
from qconv.convert.budget import Request, TensorCosts, choose, measure
from qconv.convert.calibration.error_feedback import open_factors
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.jobs import run_plan
from qconv.convert.measure import Cut, cut_text
from qconv.convert.settings import Budget, Settings
from qconv.plugins import load_plugins
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.identity import read_text

MIXTURES = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M")
REGISTRIES = load_plugins("").registries()


@dataclass(frozen=True)
class Measured:
    """A conversion of the example whose costs are known, and a window of text."""

    request: Request
    costs: list[TensorCosts]
    tokens: list[int]

    def write(self, settings: Settings) -> Path:
        """Convert."""
        run_plan(self.request.plan(settings), True, lambda count: None)
        return self.request.output


@pytest.fixture(scope="module")
def moments(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moments") / "cal.gguf"
    with subject(example_model) as it:
        text = read_text(PROSE)
        measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(128))), path, memory=1 << 30)
    return path


@pytest.fixture(scope="module", params=["plain", "gptq"])
def measured(request: pytest.FixtureRequest, example_model: Path, moments: Path) -> Iterator[Measured]:
    settings = Settings(calibration=moments, method=request.param, force=True)
    with subject(example_model) as it:
        windows = cut_text(it, read_text(PROSE), Cut(128, None, 3))
        factors = open_factors(settings, it.model, REGISTRIES.open_context())
        importance = load_importance(settings, REGISTRIES, it.model)
        output, target = moments.with_name("out.gguf"), REGISTRIES.formats["gguf"]
        wanted = Request(it.model, output, target, settings, REGISTRIES, importance, factors)
        costs = measure(wanted, windows, candidates=("Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"))
        yield Measured(wanted, costs, [int(token) for token in windows.evaluated[0]])


@pytest.fixture(scope="module")
def base(example_model: Path, moments: Path, measured: Measured) -> np.ndarray:
    """What the source predicts in llama.cpp."""
    path = moments.with_name("bf16.gguf")
    qconv.quantize(example_model, path, "bf16", settings=Settings(force=True))
    return log_probabilities(logits(path, measured.tokens))


@pytest.mark.oracles
@pytest.mark.parametrize("mixture", MIXTURES)
def test_llama_cpp_runs_types_chosen_for_a_size(measured: Measured, base: np.ndarray, mixture: str) -> None:
    settings = measured.request.settings
    targets = np.roll(np.array(measured.tokens), -1)
    found = []
    path = measured.write(replace(settings, type_name=mixture))
    size = path.stat().st_size
    found.append(compare(base, logits(path, measured.tokens), targets).divergence.mean())
    fit = choose(measured.request, Budget(size=size), measured.costs, True)
    path = measured.write(fit.settings(settings))
    assert 0.98 * size < path.stat().st_size <= size
    found.append(compare(base, logits(path, measured.tokens), targets).divergence.mean())
    print(f"{mixture} {settings.method}: {found[0]:.5f} {found[1]:.5f}")
    assert 0 < found[1] < found[0]
