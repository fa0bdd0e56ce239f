"""Types for a size: the file fits, what is chosen can be written, edited and repeated, and impossible goals are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measuring import subject

import qconv
from qconv.convert.budget import Request, choose, measure, read_recipe, recipe_text, trace_front
from qconv.convert.budget.sensitivity import TensorCosts, probe
from qconv.convert.calibration.error_feedback import open_factors
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.convert.settings import Budget, Settings
from qconv.errors import FormatError, MissingFileError, UsageError
from qconv.formats.base import Model
from qconv.formats.metadata import uint32
from qconv.plugins import load_plugins
from qconv.quantizers.base import EncodeOptions
from qconv.runtime.measuring.identity import read_text

EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-llama-7m"
PROSE = Path(__file__).parents[1] / "helpers" / "prose.txt"
REGISTRIES = load_plugins("").registries()
FEW = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with qconv.open(EXAMPLE) as opened:
        yield opened


@pytest.fixture(scope="module")
def request_(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Request:
    output = tmp_path_factory.mktemp("budget") / "out.gguf"
    return Request(model, output, REGISTRIES.formats["gguf"], Settings(threads=2), REGISTRIES)


@pytest.fixture(scope="module")
def costs(request_: Request) -> list[TensorCosts]:
    return measure(request_, candidates=FEW)


def test_errors_fall_with_size_within_a_family(costs: list[TensorCosts]) -> None:
    for it in costs:
        errors = [one.error for one in it.candidates if one.encoding in FEW]
        assert errors == sorted(errors, reverse=True)
        assert 0 < errors[-1] < errors[0] < 0.5
        assert it.candidates[-1].encoding == "BF16" and it.candidates[-1].error == 0  # what it has already


@pytest.mark.parametrize("size", [2_900_000, 3_333_333, 4 << 20, 7_000_000])
def test_a_size_is_met(request_: Request, costs: list[TensorCosts], size: int) -> None:
    done = choose(request_, Budget(size=size), costs, False)
    assert 0.99 * size < done.size <= size
    assert done.size == request_.plan(done.settings(request_.settings)).layout.size


@pytest.mark.parametrize("bits", [3.0, 4.25, 6.5])
def test_bits_per_weight_are_met(request_: Request, costs: list[TensorCosts], bits: float) -> None:
    done = choose(request_, Budget(bits_per_weight=bits), costs, False)
    assert bits - 0.02 < done.bits_per_weight <= bits


def test_more_bytes_never_cost_more(request_: Request, costs: list[TensorCosts]) -> None:
    predicted = [
        choose(request_, Budget(size=size), costs, False).predicted for size in range(3_000_000, 8_000_000, 500_000)
    ]
    assert predicted == sorted(predicted, reverse=True)


def test_as_good_as_a_mixture_of_the_same_size(request_: Request, costs: list[TensorCosts]) -> None:
    known = {it.name: it for it in costs}
    for mixture in ("Q3_K_M", "Q4_K_S", "Q5_K_M"):
        plan = request_.plan(replace(request_.settings, type_name=mixture))
        cost = sum(
            known[step.source.name].sensitivity
            * next(it.error for it in known[step.source.name].candidates if it.encoding == step.target.encoding.name)
            for step in plan.steps
            if step.source.name in known
        )
        done = choose(request_, Budget(size=plan.layout.size), costs, False)
        assert done.size <= plan.layout.size
        assert done.predicted <= cost


def test_impossible_goals(request_: Request, costs: list[TensorCosts]) -> None:
    with pytest.raises(UsageError, match=r"takes between 2,\d\d\d,\d\d\d and 13,\d\d\d,\d\d\d"):
        choose(request_, Budget(size=1_000_000), costs, False)
    with pytest.raises(UsageError, match=r"takes between 2\.\d+ and 16\.\d+"):
        choose(request_, Budget(bits_per_weight=17), costs, False)


def test_without_importance_no_type_needs_it(request_: Request) -> None:
    costs = measure(request_, candidates=("IQ1_S", "IQ2_S", "Q2_K", "Q4_K"))
    found = {it.name: {one.encoding for one in it.candidates} for it in costs}
    assert "IQ2_S" in found["token_embd.weight"] and "IQ2_S" not in found["blk.0.attn_k.weight"]
    done = choose(request_, Budget(size=2_800_000), costs, False)
    assert request_.plan(done.settings(request_.settings)).layout.size <= 2_800_000


def test_what_the_user_names_stays(request_: Request, costs: list[TensorCosts]) -> None:
    settings = replace(request_.settings, tensor_rules=((r"ffn_down", "q8_0"),))
    named = replace(request_, settings=settings)
    done = choose(named, Budget(bits_per_weight=5.0), measure(named, candidates=FEW), False)
    plan = request_.plan(done.settings(settings))
    assert {step.target.encoding.name for step in plan.steps if "ffn_down" in step.target.name} == {"Q8_0"}
    assert plan.bits_per_weight <= 5.0


def test_sensitive_tensors_get_more(request_: Request, model: Model) -> None:
    windows = cut_text(subject_of(model, REGISTRIES), read_text(PROSE), Cut(64, None, 2))
    costs = measure(request_, windows, candidates=("Q2_K", "Q4_K", "Q8_0"))
    by_name = {it.name: it.sensitivity for it in costs}
    assert min(by_name.values()) >= 0
    assert by_name["output.weight"] > 10 * np.median(list(by_name.values()))
    again = measure(request_, windows, candidates=("Q2_K", "Q4_K", "Q8_0"))
    assert [it.sensitivity for it in again] == [it.sensitivity for it in costs]


def test_blocks_that_predict_are_as_sensitive_as_the_last_one_that_runs(request_: Request, model: Model) -> None:
    """A pass of the text leaves them out, which says nothing about what they are worth."""
    chosen = [f"blk.{block}.{kind}.weight" for block, kind in ((4, "ffn_down"), (5, "ffn_down"), (5, "attn_q"), (3, "ffn_down"))]  # fmt: skip
    predicting = replace(model, metadata={**model.metadata, "llama.nextn_predict_layers": uint32(1)})
    windows = cut_text(subject_of(predicting, REGISTRIES), read_text(PROSE), Cut(32, None, 1))
    measured = measure(request_, candidates=FEW)
    few = [it for name in chosen for it in measured if it.name == name]
    done: list[str] = []
    found = probe(predicting, few, REGISTRIES.encodings, request_.rounding, windows, 2, done.append)
    assert sorted(done) == sorted(chosen)
    last, lent, other, earlier = (found[name] for name in chosen)
    assert last != earlier and min(last, earlier) > 0
    assert lent == last
    assert other == pytest.approx(few[2].weights * (last + earlier) / (few[0].weights + few[3].weights))


def test_recipes_go_to_a_file_and_back(
    request_: Request, costs: list[TensorCosts], model: Model, tmp_path: Path
) -> None:
    done = choose(request_, Budget(bits_per_weight=4.5), costs, False)
    path = tmp_path / "recipe.txt"
    path.write_text(recipe_text(done, "model"))
    settings = replace(request_.settings, type_name="auto", tensor_rules=read_recipe(path, model.tensors))
    found, expected = request_.plan(settings), request_.plan(done.settings(request_.settings))
    assert [step.target for step in found.steps] == [step.target for step in expected.steps]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"blk.0.attn_q.weight", "line 1"),
        (b"# fine\nblk.99.attn_q.weight Q4_K", "line 2: the model has no tensor 'blk.99.attn_q.weight'"),
        (b"\xff\xfe", "a recipe is text"),
    ],
)
def test_bad_recipes(model: Model, tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "recipe.txt"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=message):
        read_recipe(path, model.tensors)
    with pytest.raises(MissingFileError):
        read_recipe(tmp_path / "none", model.tensors)


def test_a_front_is_measured(request_: Request, costs: list[TensorCosts], model: Model) -> None:
    windows = cut_text(subject_of(model, REGISTRIES), read_text(PROSE), Cut(64, None, 2))
    done = choose(request_, Budget(size=4_300_000), costs, True)
    front = trace_front(
        replace(request_, settings=replace(request_.settings, encode=EncodeOptions("fast"))), done, windows
    )
    assert front.goal in front.chosen
    assert {"Q3_K_M", "Q4_K_S", "Q5_K_M"} <= {it.label for it in front.mixtures}
    sizes = [it.size for it in front.chosen]
    assert len(set(sizes)) == len(sizes) >= 8 and sizes == sorted(sizes)
    measured = [it.measured for it in (*front.chosen, *front.mixtures) if it.measured is not None]
    assert len(measured) == len(front.chosen) + len(front.mixtures)
    assert all(0 < it < 1 for it in measured)
    assert measured[0] > 3 * measured[len(front.chosen) - 1]
    assert [it.predicted for it in front.chosen] == sorted((it.predicted for it in front.chosen), reverse=True)


def test_error_feedback_is_part_of_the_costs_and_of_the_size(
    costs: list[TensorCosts], model: Model, tmp_path: Path
) -> None:
    moments = tmp_path / "cal.gguf"
    with subject(EXAMPLE) as it:
        text = read_text(PROSE)
        measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(128))), moments, memory=1 << 30)
    settings = Settings(calibration=moments, method="gptq", threads=2, budget=Budget(size=3_600_000))
    factors = open_factors(settings, model, REGISTRIES.open_context())
    request = Request(model, tmp_path / "x.gguf", REGISTRIES.formats["gguf"], settings, REGISTRIES, None, factors)
    plain = replace(request, factors=None)
    for tensor, before in zip(measure(request, candidates=FEW), costs, strict=True):
        after = {one.encoding: one.error for one in tensor.candidates}
        feeds = tensor.name != "token_embd.weight"  # it is looked up, not multiplied
        assert all((after[one.encoding] < one.error) == feeds for one in before.candidates if one.error), tensor.name
    assert plain.rounding.factors is None
    qconv.convert_model(EXAMPLE, tmp_path / "one.gguf", settings=settings)
    assert 3_550_000 < (tmp_path / "one.gguf").stat().st_size <= 3_600_000


def test_in_python(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    budget = Budget(size=3_500_000, recipe_out=recipe)
    qconv.convert_model(EXAMPLE, tmp_path / "one.gguf", settings=Settings(budget=budget))
    assert 3_450_000 < (tmp_path / "one.gguf").stat().st_size <= 3_500_000
    qconv.convert_model(EXAMPLE, tmp_path / "two.gguf", settings=Settings(recipe=recipe))
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
