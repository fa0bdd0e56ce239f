"""``--method gptq``: bytes, threads, interruptions, experts without tokens, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import CONTEXT
from measuring import PROSE, subject
from qconv_encodings import ENCODINGS
from run_cli import Cli
from tiny_networks import in_memory

import qconv
from qconv.convert.calibration.error_feedback import open_factors, plan_feedback
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.jobs import run_plan
from qconv.convert.measure import Cut, Subject, cut_text
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.errors import ModelError, UsageError
from qconv.formats.calibration import open_calibration
from qconv.formats.gguf import FORMAT
from qconv.quantizers.base import DEFAULT_OPTIONS
from qconv.quantizers.rounding.feedback import factorize
from qconv.quantizers.rounding.feedback_rounding import encode_with_feedback
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.identity import ModelIdentity, read_text
from qconv.runtime.measuring.perplexity import scored_rows
from qconv.runtime.measuring.windows import cut_standard

DOWN = "blk.2.ffn_down.weight"


@pytest.fixture(scope="module")
def source(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model as BF16."""
    path = tmp_path_factory.mktemp("source") / "m.gguf"
    qconv.quantize(example_model, path, "bf16")
    return path


@pytest.fixture(scope="module")
def calibration(source: Path) -> Path:
    """Second moments of it."""
    path = source.with_name("cal.gguf")
    with subject(source) as it:
        text = read_text(PROSE)
        measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(128))), path, memory=1 << 30)
    return path


def errors(source: Path, result: Path, calibration: Path) -> dict[str, float]:
    """Return ``tr(E H Eᵀ)`` of every measured tensor."""
    found = {}
    with qconv.open(source) as one, qconv.open(result) as other, open_calibration(calibration, CONTEXT) as file:
        for name in file.entries:
            rows = one.tensors[name].row_count
            lost = (one.tensors[name].rows(0, rows) - other.tensors[name].rows(0, rows)).astype(np.float64)
            found[name] = float(np.einsum("ij,ij->", lost @ file.hessian(name), lost))
    return found


@pytest.mark.parametrize("name", ["q2_k", "q4_k_s", "iq3_s", "q4_0"])
def test_every_measured_matrix_loses_less(source: Path, calibration: Path, tmp_path: Path, name: str) -> None:
    plain, feedback = tmp_path / "plain.gguf", tmp_path / "gptq.gguf"
    settings = Settings(calibration=calibration)
    qconv.quantize(source, plain, name, settings=settings)
    qconv.quantize(source, feedback, name, settings=replace(settings, method="gptq"))
    before, after = (errors(source, it, calibration) for it in (plain, feedback))
    assert len(after) == 43
    assert all(after[key] < before[key] for key in after)
    assert sum(after.values()) < 0.8 * sum(before.values())
    with qconv.open(plain) as one, qconv.open(feedback) as other:
        assert {it.name: it.encoding for it in one.tensors.values()} == {
            it.name: it.encoding for it in other.tensors.values()
        }


def test_bytes_are_those_of_the_quantizer(source: Path, calibration: Path, tmp_path: Path) -> None:
    settings = Settings(calibration=calibration, method="gptq", damping=0.05, activation_order=False, pure=True)
    qconv.quantize(source, tmp_path / "r.gguf", "q3_k", settings=settings)
    with (
        qconv.open(source) as model,
        qconv.open(tmp_path / "r.gguf") as result,
        open_calibration(calibration, CONTEXT) as file,
    ):
        rows = model.tensors[DOWN].rows(0, 256)
        wanted = encode_with_feedback(ENCODINGS["Q3_K"], rows, factorize(file.hessian(DOWN), 0.05), DEFAULT_OPTIONS)
        assert (result.tensors[DOWN].read(0, 256) == wanted).all(axis=1).mean() > 0.9
        keys = {key: field.value for key, field in result.metadata.items() if key.startswith("quantize.calibration.")}
        assert keys == {
            "quantize.calibration.method": "gptq",
            "quantize.calibration.file": "cal.gguf",
            "quantize.calibration.job": file.facts.job,
            "quantize.calibration.options": "damping 0.05",
        }


def _stop(steps: Iterator[int], count: int) -> None:
    """Interrupt a run when its steps are used up."""
    if next(steps, None) is None:
        raise KeyboardInterrupt


def test_threads_and_interruptions_change_nothing(source: Path, calibration: Path, tmp_path: Path) -> None:
    settings = Settings(calibration=calibration, method="gptq", threads=1)
    whole, other, broken = (tmp_path / name for name in ("whole.gguf", "other.gguf", "broken.gguf"))
    qconv.quantize(source, whole, "q4_k_m", settings=settings)
    qconv.quantize(source, other, "q4_k_m", settings=replace(settings, threads=3))
    assert whole.read_bytes() == other.read_bytes()
    for limit in (12, 30, 48, 100):
        steps = iter(range(limit))
        try:
            done = qconv.quantize(source, broken, "q4_k_m", settings=settings, progress=partial(_stop, steps))
        except KeyboardInterrupt:
            assert not broken.exists()
    assert done.resumed > 10
    assert whole.read_bytes() == broken.read_bytes()


def test_kill_9_at_random_moments(source: Path, calibration: Path, tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        words = [sys.executable, "-m", "qconv", "quantize", str(source), str(output), "--type", "q4_k_m"]
        return [*words, "--method", "gptq", "--calibration", str(calibration), "--threads", "1"]

    whole, output, moments, killed = tmp_path / "whole.gguf", tmp_path / "out.gguf", random.Random(5), 0
    subprocess.run(command(whole), check=True, capture_output=True)
    journal = tmp_path / "out.gguf.qconv-journal"
    for _ in range(5):
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not journal.exists():
            time.sleep(0.001)
        time.sleep(moments.random() / 2)
        process.kill()
        process.wait()
        if output.exists():
            break
        killed += 1
    assert killed
    if not output.exists():
        subprocess.run(command(output), check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "out.gguf"}


@pytest.mark.shared
def test_predictions_move_less_on_text_that_nothing_has_seen(source: Path, shared: Path, tmp_path: Path) -> None:
    """As ``scripts/measure_feedback.py`` prints, on less text, and with the embedding as it was: it takes no feedback, and most of the damage."""
    moments, output = tmp_path / "cal.gguf", tmp_path / "out.gguf"
    with subject(source) as it:
        text = read_text(shared / "text" / "calibration.txt")
        measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(256, None, 48))), moments, memory=1 << 30)
        windows = cut_text(it, read_text(shared / "text" / "heldout.txt"), Cut(256, None, 8))
        base = [log_probabilities(rows.logits) for rows in scored_rows(it.network, windows)]

    def divergence(kind: str, settings: Settings) -> float:
        qconv.quantize(source, output, kind, settings=settings)
        with subject(output) as it:
            rows = zip(base, scored_rows(it.network, windows), strict=True)
            return float(
                np.mean([compare(before, found.logits, found.targets).divergence.mean() for before, found in rows])
            )

    plain = Settings(calibration=moments, pure=True, force=True, token_embedding_type="bf16", output_tensor_type="bf16")
    for kind in ("q2_k", "q3_k", "q4_k", "iq3_s"):
        before, after = (divergence(kind, settings) for settings in (plain, replace(plain, method="gptq")))
        print(f"{kind}: {before:.5f} {after:.5f} {after / before:.3f}")
        assert after < 0.95 * before, kind


def test_activation_order_changes_the_order_alone(source: Path, calibration: Path, tmp_path: Path) -> None:
    settings = Settings(calibration=calibration, method="gptq", pure=True)
    for name, ordered in (("plain", False), ("ordered", True)):
        qconv.quantize(source, tmp_path / name, "q3_k", settings=replace(settings, activation_order=ordered))
    before, after = (errors(source, tmp_path / name, calibration) for name in ("plain", "ordered"))
    for name, value in after.items():
        assert value == pytest.approx(before[name], rel=0.15)
        if name.endswith("ffn_down.weight"):
            assert value != before[name]  # the others are one block wide


def test_another_model_is_refused(
    cli: Cli, source: Path, calibration: Path, example_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "q8_0.gguf"
    qconv.quantize(source, other, "q8_0")
    for words in ((), ("--method", "gptq")):
        done = cli(
            "quantize",
            other,
            tmp_path / "x.gguf",
            "-T",
            "q4_0",
            "--allow-requantize",
            "--calibration",
            calibration,
            *words,
        )
        assert done.code == 1
        assert "measured on a model with other weights" in done.err
        assert not list(tmp_path.glob("x.gguf*"))
    # the very weights, whatever file they lie in
    assert (
        cli("hf-to-gguf", example_model, "-o", tmp_path / "y.gguf", "-T", "q4_0", "--calibration", calibration).code
        == 0
    )


def test_usage(cli: Cli, source: Path, calibration: Path, tmp_path: Path) -> None:
    given = ("--calibration", calibration, "--method", "gptq")
    for words, code, wanted in (
        (("-T", "q4_0", "--method", "gptq"), 2, "Measure them with qconv calibrate"),
        (("-T", "q4_0", "--method", "magic"), 2, "--method is one of plain, gptq"),
        (("-T", "f16", *given), 2, "no tensor of a F16 gguf file"),
        (("-T", "q4_0", *given, "--prune-layers", "1"), 2, "exclude each other"),
        (("-T", "q4_0", "--calibration", source), 1, "no calibration file"),
    ):
        done = cli("quantize", source, tmp_path / "x.gguf", *words)
        assert (done.code, wanted in " ".join(done.err.split())) == (code, True), done.err


def test_what_has_no_feedback_is_named(cli: Cli, source: Path, calibration: Path, tmp_path: Path) -> None:
    done = cli(
        "quantize",
        source,
        tmp_path / "x.gguf",
        "-T",
        "iq2_xs",
        "--calibration",
        calibration,
        "--method",
        "gptq",
        "--dry-run",
        "--json",
    )
    assert done.code == 0
    notes = " ".join(json.loads(done.out)["notes"])
    assert "no second moments were measured: token_embd.weight" in notes
    assert "which IQ2_XS does not take: blk.0." in notes


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model with experts, of which calibration met some."""
    folder = tmp_path_factory.mktemp("mixture")
    model = in_memory("qwen3moe", folder / "moe", hidden_size=64, moe_intermediate_size=32)
    tokenizer: Any = type("Tokenizer", (), {"digest": staticmethod(lambda: "t"), "adds_bos": False, "bos": None})
    it = Subject(model, load_network(model), tokenizer, ModelIdentity("moe", "qwen3moe", "d", ()))
    path = folder / "cal.gguf"
    measure_moments(MomentJob(it, [], cut_standard([3] * 32, 8, None)), path, memory=1 << 30)
    return model, path


def test_experts_without_tokens_fall_back_and_are_named(mixture: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = mixture
    settings = Settings("q4_0", calibration=path, method="gptq", threads=2)
    with open_calibration(path, CONTEXT) as file:
        importance, counts = file.importance, file.counts("blk.0.ffn_down_exps.weight")
    unseen = [number for number, count in enumerate(counts) if not count]
    assert 0 < len(unseen) < len(counts)
    plain = make_plan(model, tmp_path / "plain.gguf", FORMAT, settings, ENCODINGS, importance)
    plan = plan_feedback(replace(plain, layout=plain.layout), open_factors(settings, model, CONTEXT))
    (note,) = [it for it in plan.notes if it.startswith("blk.0.ffn_down_exps.weight")]
    assert ", ".join(map(str, unseen[:4])) in note
    moved = make_plan(model, tmp_path / "gptq.gguf", FORMAT, settings, ENCODINGS, importance)
    for it in (plain, plan_feedback(moved, open_factors(settings, model, CONTEXT))):
        run_plan(it, force=False, progress=lambda count: None)
    with qconv.open(tmp_path / "plain.gguf") as one, qconv.open(tmp_path / "gptq.gguf") as other:
        tensors = [it.tensors["blk.0.ffn_down_exps.weight"] for it in (one, other)]
        first, second = (it.read(0, it.row_count).reshape(len(counts), -1) for it in tensors)
        same = (first == second).all(axis=1)
        assert [number for number in range(len(counts)) if same[number]] == unseen


def test_moments_of_another_size_are_refused(mixture: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = mixture
    settings = Settings("q4_0", calibration=path, method="gptq")
    factors = open_factors(settings, model, CONTEXT)
    assert factors is not None
    factors.entries["blk.0.attn_q.weight"] = replace(factors.entries["blk.0.attn_q.weight"], columns=32)
    with pytest.raises(ModelError, match="1 × 32 columns for a tensor of 1 × 64"):
        plan_feedback(make_plan(model, tmp_path / "x.gguf", FORMAT, settings, ENCODINGS), factors)
    with pytest.raises(UsageError, match="needs second moments"):
        open_factors(replace(settings, calibration=None), model, CONTEXT)
