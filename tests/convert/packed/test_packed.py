"""GPTQ and AWQ folders: the weights that were chosen, what a loader asks for, families, threads, kills, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from measuring import PROSE, subject
from numpy.typing import NDArray
from run_cli import Cli
from safetensors.numpy import load_file
from tiny_networks import CONTEXT

import qconv
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.convert.packed.activation_folds import find_folds, scale_tensors
from qconv.convert.packed.folder import PackedRequest, plan_packed, run_packed
from qconv.convert.packed.linears import packed_subject
from qconv.convert.packed.matrices import Matrices
from qconv.convert.packed.rounding import Inputs, Rounders, Rounding
from qconv.convert.packed.scales import Scales
from qconv.convert.settings import Settings
from qconv.errors import ModelError
from qconv.formats.base import Model
from qconv.formats.calibration import open_calibration
from qconv.plugins.manager import load_plugins
from qconv.quantizers.rounding.activation_scales import (
    POWERS,
    best_powers,
    group_moments,
    input_scales,
    output_energies,
    scaling_losses,
    weight_sizes,
)
from qconv.quantizers.rounding.feedback import column_order, factorize
from qconv.quantizers.rounding.group_rounding import Grid, round_groups, round_with_feedback
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.identity import read_text

REGISTRIES = load_plugins("").registries()
LAYER = "model.layers.0."
LINEARS = tuple(
    LAYER + name
    for name in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
)
CANONICAL = dict(
    zip(LINEARS, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), strict=True)
)

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def source(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model without all layers but the first."""
    folder = tmp_path_factory.mktemp("source") / "model"
    command = (sys.executable, "-m", "qconv", "convert", example_model, folder, "--to", "hf", "--prune-layers", "1-5")
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def calibration(source: Path) -> Path:
    """Second moments of it."""
    path = source.with_name("cal.gguf")
    with subject(source) as it:
        text = read_text(PROSE)
        measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(128))), path, memory=1 << 30)
    return path


def make(source: Path, output: Path, request: PackedRequest, **settings: Any) -> int:
    """Write a folder; return how many tensors were taken over."""
    chosen = Settings(**settings)
    with qconv.open(source) as model:
        planned = plan_packed(model, output, request, chosen, REGISTRIES)
        return run_packed(planned, chosen.force, lambda count: None).resumed


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_back(folder: Path) -> dict[str, Floats]:
    """Return what the reader makes of a folder, under Hugging Face's names and in their order of rows."""
    with qconv.open(folder) as model:
        prepared = packed_subject(model, REGISTRIES.open_context()).prepared
        return {name: it.rows(0, it.row_count).reshape(it.shape) for name, it in prepared.tensors.items()}


def originals(source: Path) -> dict[str, Floats]:
    with qconv.open(source) as model:
        prepared = packed_subject(model, REGISTRIES.open_context()).prepared
        return {name: it.rows(0, it.row_count).reshape(it.shape) for name, it in prepared.tensors.items()}


@pytest.mark.parametrize("words", [{}, {"symmetric": False}, {"group_size": 64}, {"group_size": -1}])
def test_without_calibration_weights_are_the_nearest(source: Path, tmp_path: Path, words: dict[str, Any]) -> None:
    make(source, tmp_path / "out", PackedRequest("gptq", **words))
    grid = Grid(4, words.get("group_size", 128), words.get("symmetric", True), 1)
    before, found = originals(source), read_back(tmp_path / "out")
    assert before.keys() == found.keys()
    for name, weights in before.items():
        layer = name.removesuffix(".weight")
        expected = round_groups(weights, grid).weights if layer in LINEARS else weights.astype(np.float16)
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    ("order", "static"), [(False, False), (True, False), (True, True)], ids=["plain", "order", "static"]
)
def test_gptq_gives_the_chosen_weights(
    source: Path, calibration: Path, tmp_path: Path, order: bool, static: bool
) -> None:
    settings = {"calibration": calibration, "activation_order": order, "damping": 0.05}
    make(source, tmp_path / "out", PackedRequest("gptq", static_groups=static), **settings)
    before, found = originals(source), read_back(tmp_path / "out")
    with open_calibration(calibration, CONTEXT) as file:
        for layer in LINEARS:
            moment = file.hessian(f"blk.0.{CANONICAL[layer]}.weight")
            factor = factorize(moment, 0.05, column_order(moment) if order else None)
            weights = before[f"{layer}.weight"]
            expected = round_with_feedback(weights, factor, Grid(4, 128, True, 1), static=static)
            np.testing.assert_array_equal(found[f"{layer}.weight"], expected.weights)
            lost = [
                np.einsum("ij,ij->", (it - weights) @ moment, it - weights)
                for it in (expected.weights, round_groups(weights, Grid(4, 128, True, 1)).weights)
            ]
            assert lost[0] < lost[1]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["desc_act"] is (order and not static)
    assert config["static_groups"] is static
    index = load_file(tmp_path / "out" / "model.safetensors")[f"{LAYER}mlp.down_proj.g_idx"]
    assert (index == np.arange(768) // 128).all() is np.bool_(not order or static)
    np.testing.assert_array_equal(np.bincount(index), np.full(6, 128))


def test_awq_gives_the_chosen_weights(source: Path, calibration: Path, tmp_path: Path) -> None:
    """Scales are folded into norms and up_proj; codes are chosen by the scaled inputs' second moments."""
    make(source, tmp_path / "out", PackedRequest("awq"), calibration=calibration)
    before, found = originals(source), read_back(tmp_path / "out")
    grid, scales = Grid(4, 128, False, 0), {}
    with qconv.open(source) as model:  # the sample is one of the forward pass's rows, which have another order
        canonical = {name: it.rows(0, it.row_count) for name, it in model.tensors.items()}
    with open_calibration(calibration, CONTEXT) as file:

        def scale(*layers: str) -> Floats:
            moment = file.hessian(f"blk.0.{CANONICAL[LAYER + layers[0]]}.weight")
            weights = [canonical[f"blk.0.{CANONICAL[LAYER + it]}.weight"] for it in layers]
            rows = max(1, 512 // len(weights) // 16)
            parts = [
                np.concatenate(
                    [it[s : s + 16] for s in np.linspace(0, len(it) - 16, min(rows, len(it) // 16)).astype(int)]
                )
                for it in weights
            ]
            energies = output_energies(parts, moment)
            sizes = weight_sizes(parts, energies)
            candidates = {it: input_scales(moment.diagonal(), sizes, it) for it in POWERS}
            losses = {
                powers: scaling_losses(
                    parts,
                    energies,
                    moment,
                    it,
                    partial(round_groups, grid=grid, moments=group_moments(moment, 128, it)),
                )
                for powers, it in candidates.items()
            }
            found = candidates[best_powers(losses)]
            scales.update(dict.fromkeys((LAYER + it for it in layers), found))
            return found

        if_query = scale("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        entering = scale("mlp.gate_proj", "mlp.up_proj")
        down = scale("mlp.down_proj")
        for name, by in (("input_layernorm", if_query), ("post_attention_layernorm", entering)):
            weight = before[f"{LAYER}{name}.weight"] / by
            np.testing.assert_array_equal(found[f"{LAYER}{name}.weight"], weight.astype(np.float16))
        for layer in LINEARS:
            moment = file.hessian(f"blk.0.{CANONICAL[layer]}.weight")
            own = scales.get(layer, np.ones(len(moment), np.float32))
            weights = before[f"{layer}.weight"] * own
            if layer.endswith("up_proj"):
                weights = weights / down[:, None]
            moments = group_moments(moment, 128, own)
            expected = round_groups(weights, grid, moments=moments).weights
            np.testing.assert_array_equal(found[f"{layer}.weight"], expected)
    assert any((it != 1).any() for it in scales.values())


def test_awq_with_error_feedback(source: Path, calibration: Path, tmp_path: Path) -> None:
    request = PackedRequest("awq", scaling=False)
    make(source, tmp_path / "out", request, calibration=calibration, method="gptq")
    before, found = originals(source), read_back(tmp_path / "out")
    with open_calibration(calibration, CONTEXT) as file:
        for layer in LINEARS:
            factor = factorize(file.hessian(f"blk.0.{CANONICAL[layer]}.weight"))
            expected = round_with_feedback(before[f"{layer}.weight"], factor, Grid(4, 128, False, 0))
            np.testing.assert_array_equal(found[f"{layer}.weight"], expected.weights)


def with_outliers(model: Model, count: int) -> Model:
    """Return the same function with ``count`` inputs 32 times as large, wherever AWQ could scale them."""
    folds = find_folds(load_network(model), frozenset(model.tensors), lambda name, expert: True)

    def scales(number: int) -> Floats:
        columns = folds[number].readers[0].columns
        found = np.ones(columns, np.float32)
        found[:: columns // count] = 1 / 32
        return found

    return replace(model, tensors=MappingProxyType(scale_tensors(model.tensors, folds, scales)))


@pytest.mark.parametrize(("feedback", "with_four"), [(False, 0.7), (True, 0.8)])
def test_scaling_is_never_worse_by_its_measure_and_saves_models_with_outliers(
    source: Path, tmp_path: Path, feedback: bool, with_four: float
) -> None:
    rounding = Rounding("awq", Grid(4, 128, False, 0), feedback=feedback)
    for outliers, most in ((0, 1.0), (4, with_four)):
        with qconv.open(source) as opened:
            model = with_outliers(opened, outliers) if outliers else opened
            text = read_text(PROSE)
            it = subject_of(model, REGISTRIES)
            path = tmp_path / f"{outliers}.gguf"
            measure_moments(MomentJob(it, [text], cut_text(it, text, Cut(128))), path, memory=1 << 30)
            inputs = Inputs(path, CONTEXT)
            folds = find_folds(load_network(model), frozenset(model.tensors), inputs.met)
            scales = Scales(folds, Rounders(rounding, inputs))
            assert len(folds) == 3  # an attention's input, a feed-forward's, and that of its last matrix
            for number in range(len(folds)):
                losses = scales.losses(number)
                assert set(losses) == set(POWERS)
                chosen, unscaled = losses[best_powers(losses)], losses[POWERS[0]]
                assert all(one <= other for one, other in zip(chosen, unscaled, strict=True))
                assert sum(chosen) <= most * sum(unscaled), (number, losses)


def test_a_gptq_folder_has_what_loaders_ask_for(source: Path, calibration: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "out", PackedRequest("gptq"), calibration=calibration)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text()) | {"torch_dtype": "float16"}
    meta = settings.pop("meta")
    assert settings == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "static_groups": False,
        "sym": True,
        "true_sequential": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "damp_percent": 0.03,
    }
    assert meta["quantizer"] == [f"qconv:{qconv.__version__}"]
    assert meta["calibration"]["datasets"] == [PROSE.name]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    expected = {f"{layer}.{suffix}" for layer in LINEARS for suffix in ("qweight", "qzeros", "scales", "g_idx")}
    kept = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    kept |= {f"{LAYER}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")}
    assert set(tensors) == expected | kept
    assert {tensors[name].dtype for name in kept} == {np.dtype(np.float16)}
    shapes = {name.rpartition(".")[2]: it.shape for name, it in tensors.items() if "down_proj" in name}
    assert shapes == {"qweight": (96, 256), "qzeros": (6, 32), "scales": (6, 256), "g_idx": (768,)}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    with qconv.open(tmp_path / "out") as model:
        assert {key: model.container[key] for key in ("packing", "bits", "group_size", "layout")} == {
            "packing": "gptq",
            "bits": 4,
            "group_size": 128,
            "layout": "gptq",
        }


def test_an_awq_folder_has_what_loaders_ask_for(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "out", PackedRequest("awq"))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings.pop("meta")["rounding"] == "nearest"
    assert settings == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    shapes = {name.rpartition(".")[2]: it.shape for name, it in tensors.items() if "down_proj" in name}
    assert shapes == {"qweight": (768, 32), "qzeros": (6, 32), "scales": (6, 256)}


@pytest.mark.parametrize("packing", ["gptq", "awq"])
def test_threads_change_nothing(source: Path, calibration: Path, tmp_path: Path, packing: Any) -> None:
    for threads in (1, 3):
        request = PackedRequest(packing)
        make(source, tmp_path / str(threads), request, calibration=calibration, threads=threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_kill_changes_nothing(source: Path, calibration: Path, tmp_path: Path) -> None:
    words = (source, tmp_path / "out", "--to", "gptq", "--calibration", calibration, "--threads", 1)
    command = list(map(str, (sys.executable, "-m", "qconv", "convert", *words)))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out.qconv-journal"
    try:
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            if journal.exists() and journal.read_bytes().count(b"\n") > 4:
                break
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["resumed_tensors"] >= 4
    make(source, tmp_path / "whole", PackedRequest("gptq"), calibration=calibration)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not journal.exists()


def test_another_calibration_is_another_job(source: Path, calibration: Path, tmp_path: Path) -> None:
    """What one job left is not taken for another's."""
    with qconv.open(source) as model:
        planned = [
            plan_packed(model, tmp_path / "out", request, settings, REGISTRIES).plan.fingerprint()
            for request, settings in (
                (PackedRequest("gptq"), Settings()),
                (PackedRequest("gptq"), Settings(calibration=calibration)),
                (PackedRequest("gptq"), Settings(calibration=calibration, damping=0.1)),
                (PackedRequest("gptq"), Settings(calibration=calibration, activation_order=True)),
                (PackedRequest("gptq", static_groups=True), Settings(calibration=calibration, activation_order=True)),
                (PackedRequest("gptq", group_size=64), Settings()),
                (PackedRequest("gptq", symmetric=False), Settings()),
                (PackedRequest("awq"), Settings()),
                (PackedRequest("awq", symmetric=True), Settings()),
                (PackedRequest("awq"), Settings(calibration=calibration)),
                (PackedRequest("awq", scaling=False), Settings(calibration=calibration)),
                (PackedRequest("awq"), Settings(calibration=calibration, method="gptq")),
            )
        ]
    assert len(set(planned)) == len(planned)


def test_what_was_written_is_not_held(source: Path) -> None:
    with qconv.open(source) as model:
        found = packed_subject(model, REGISTRIES.open_context())
        matrices = Matrices(Rounders(Rounding("gptq", Grid(4, 128, True, 1)), None), 1, REGISTRIES.encodings)
        linear = next(iter(found.linears.values()))
        for tensor in matrices.tensors(linear):
            assert matrices._matrices._known or tensor.name.endswith("qweight")
            tensor.read(0, tensor.row_count)
        assert not matrices._matrices._known


# sizes that words of 8 outputs fill
def test_the_calibration_of_another_model_is_refused(example_model: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="other weights"):
        make(example_model, tmp_path / "out", PackedRequest("gptq"), calibration=calibration)


def test_the_command(cli: Cli, source: Path, calibration: Path, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "out", "--to", "awq", "--calibration", calibration, "--group-size", 64)
    planned = json.loads(cli(*words, "--dry-run", "--json").out)
    assert planned["group_size"] == 64
    assert [it["name"] for it in planned["matrices"]] == list(LINEARS)
    rounding = {it["name"]: it["rounding"] for it in planned["matrices"]}
    assert rounding[f"{LAYER}self_attn.o_proj"] == "second moments"
    assert rounding[f"{LAYER}mlp.down_proj"] == "second moments, scaled inputs"
    assert not list(tmp_path.iterdir())
    shown = cli(*words, "--dry-run")
    assert "would write" in shown.out
    done = cli(*words)
    assert done.code == 0, done.err
    assert "in 7 matrices, 4.31" in done.out
    assert "packing awq, bits 4, group size 64" in cli("inspect", tmp_path / "out").out
    again = cli(*words)
    assert again.code == 1
    assert "--force" in again.err
    assert cli(*words, "--force", "--json").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "gptq", "--group-size", 96), "filled by --group-size 128 or 64 or 32 or -1"),
        (("--to", "gptq", "--group-size", 0), "--group-size is -1 or a number from 8 up"),
        (("--to", "gptq", "--activation-order"), "goes with error feedback"),
        (("--to", "gptq", "--method", "gptq"), "needs second moments"),
        (("--to", "gptq", "--static-groups"), "goes with --activation-order"),
        (("--to", "gptq", "--type", "q4_0"), "--type does not go with --to gptq"),
        (("--to", "awq", "--bpw", 4), "--bpw does not go with --to awq"),
        (("--to", "awq", "--calibration-text", PROSE), "--calibration-text does not go with --to awq"),
        (("--to", "hf", "--group-size", 64), "--group-size does not go with an output in the format huggingface"),
        (("--to", "gguf", "--sym"), "--sym does not go"),
        (("--to", "exl2", "--asym", "--bpw", 4), "--asym does not go with --to exl2"),
        (
            (
                "--to",
                "gptqq",
            ),
            "exl2, gptq, awq",
        ),
    ],
)
def test_what_makes_no_sense(cli: Cli, source: Path, tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    done = cli("convert", source, tmp_path / "out", *words)
    assert done.code != 0
    assert message in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


def test_awq_has_no_reordered_groups(cli: Cli, source: Path, calibration: Path, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "out", "--to", "awq", "--calibration", calibration, "--activation-order")
    refused = cli(*words, "--method", "gptq")
    assert "AWQ holds groups of neighbours only" in " ".join(refused.err.split())
    assert cli(*words, "--method", "gptq", "--static-groups").code == 0


def test_layers_and_metadata_as_elsewhere(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    words = ("--prune-layers", "1-5", "--override-kv", "llama.rope.freq_base=float:500000.0", "--split-max-size", "1M")
    done = cli("convert", example_model, tmp_path / "out", "--to", "gptq", *words)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert config["rope_theta"] == 500000.0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    with qconv.open(tmp_path / "out") as model:
        assert model.metadata["llama.block_count"].value == 1
