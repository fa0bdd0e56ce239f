"""EXL2 folders of a real model cut down to one layer: rates, weights, measurement, kills, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import PROSE, subject
from run_cli import Cli

from qconv.convert.exl2.folder import Exl2Request, work_folder, write_exl2
from qconv.convert.exl2.measurement import Measured, choose_rows, read_measurement, write_measurement
from qconv.convert.exl2.modules import Exl2Linear, Exl2Subject, exl2_subject
from qconv.convert.measure import Cut, Subject, cut_text
from qconv.errors import FormatError, OutputExistsError, UsageError
from qconv.plugins.manager import load_plugins
from qconv.quantizers.rounding.exl2_options import attention_options, feed_forward_options, parse_option
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import score

REGISTRIES = load_plugins().registries()
CUT = Cut(64, None, 6)
WORDS = ("--calibration-text", PROSE, "--calibration-context", 64, "--calibration-chunks", 6, "--threads", 1)


@pytest.fixture(scope="module")
def source(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model without all layers but the first."""
    folder = tmp_path_factory.mktemp("source") / "model"
    command = (sys.executable, "-m", "qconv", "convert", example_model, folder, "--to", "hf", "--prune-layers", "1-5")
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def opened(source: Path) -> Iterator[Subject]:
    with subject(source) as it:
        yield it


@pytest.fixture(scope="module")
def measurement(opened: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run measures; its output lies beside it, as ``4.0``."""
    path = tmp_path_factory.mktemp("measurement") / "measurement.json"
    make(opened, path.with_name("4.0"), Exl2Request(4.0, measurement=path, threads=1))
    return path


def make(it: Subject, output: Path, request: Exl2Request) -> float:
    windows = cut_text(it, read_text(PROSE), CUT)
    return write_exl2(it, REGISTRIES, windows, output, request).bits_per_weight


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loss(it: Subject) -> float:
    windows = cut_text(it, read_text(PROSE), Cut(64, None, 12))
    return float(np.concatenate([np.asarray(found.losses) for found in score(it.network, windows)]).mean())


def parts(it: Subject) -> Exl2Subject:
    return exl2_subject(it.model, it.network, REGISTRIES.open_context())


def test_modules_have_the_names_of_the_checkpoint(opened: Subject) -> None:
    found = parts(opened)
    assert [module.name for module in found.modules] == ["model.layers.0.self_attn", "model.layers.0.mlp"]
    assert [it.projection for module in found.modules for it in module.linears] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert found.head.name == "lm_head"


def test_rows_go_back_into_the_order_of_the_pass(opened: Subject) -> None:
    (attention, _) = parts(opened).modules
    query: Exl2Linear = attention.linears[0]
    tensor = opened.model.tensors[query.canonical]
    weights = query.weight.rows(0, query.outputs)
    np.testing.assert_array_equal(query.in_pass(weights), tensor.rows(0, tensor.row_count))
    assert not np.array_equal(weights, query.in_pass(weights))


def test_a_measurement_is_what_exllamav2_reads(opened: Subject, measurement: Path) -> None:
    found: dict[str, Any] = json.loads(measurement.read_text())
    assert set(found) == {"measurement", "last_module_idx"}
    assert list(found["measurement"]) == [
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
        "model.norm.norm",
        "lm_head.linear",
    ]
    rows = found["measurement"]["model.layers.0.self_attn"]
    assert len(rows) == len(attention_options())
    assert rows[1]["v_proj"] == {
        "group_size": {"3": 64, "2": 64},
        "bits": [3, 2],
        "bits_prop": [0.25, 0.75],
        "scale_bits": 4,
    }
    assert len(found["measurement"]["model.layers.0.mlp"]) == len(feed_forward_options())
    for module in ("model.layers.0.self_attn", "model.layers.0.mlp"):
        accuracies = [row["accuracy"] for row in found["measurement"][module]]
        assert accuracies[0] == min(accuracies)
        assert accuracies[-1] > 0.99
        assert 0.3 < accuracies[0] < 0.999


def test_the_folder_has_what_exllamav2_has(source: Path, measurement: Path) -> None:
    folder = measurement.with_name("4.0")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "exl2",
        "version": "0.3.2",
        "bits": 4.0,
        "head_bits": 6,
        "calibration": {"rows": 6, "length": 64, "dataset": "(default)"},
    }
    assert config == json.loads((source / "config.json").read_text()) | {"torch_dtype": "float16"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"].dtype == np.float16
    assert {name.rpartition(".")[2] for name in tensors if name.startswith("lm_head.")} == {
        "q_weight",
        "q_scale",
        "q_scale_max",
        "q_groups",
        "q_invperm",
    }
    assert not work_folder(folder).exists()


def test_rates_are_met_and_more_bits_are_better(opened: Subject, measurement: Path, tmp_path: Path) -> None:
    losses = []
    for rate in (3.0, 6.0):
        output = tmp_path / str(rate)
        achieved = make(opened, output, Exl2Request(rate, measurement=measurement, threads=1))
        assert rate - 0.25 < achieved <= rate  # two modules leave little choice
        with subject(output) as it:
            assert it.model.container["bits_per_weight"] == pytest.approx(stored_rate(output), abs=1e-3)
            losses.append(loss(it))
    assert losses[1] < losses[0]
    assert losses[1] == pytest.approx(loss(opened), abs=0.05)


def stored_rate(folder: Path) -> float:
    """Return bits per weight of all that is packed."""
    from safetensors.numpy import load_file

    tensors: Mapping[str, Any] = load_file(folder / "model.safetensors")
    packed = {name: it for name, it in tensors.items() if ".q_" in name}
    weights = sum(
        len(packed[name.replace("q_weight", "q_invperm")]) * it.shape[1]
        for name, it in packed.items()
        if name.endswith("q_weight")
    )
    groups = sum(it.nbytes for name, it in packed.items() if name.endswith("q_groups"))
    assert groups > 0
    bits = 8 * sum(it.nbytes for it in packed.values())
    return float(bits / weights)


def test_a_kill_at_any_stage_changes_nothing(source: Path, measurement: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    command = list(map(str, (sys.executable, "-m", "qconv", "convert", source, output, "--to", "exl2", "--bpw", 4.0)))
    command += map(str, WORDS)
    work = work_folder(output)
    writing = output.with_name(output.name + ".qconv-part")
    moments = random.Random(11)
    for sign in (
        work / "measure/measurement.json",
        work / "quantize/all.streams-1.qconv-part",
        work / "quantize",
        writing,
    ):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 120
            while not sign.exists() and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.002)
            if sign != writing:
                time.sleep(moments.random() / 4)
        finally:
            process.kill()
            process.wait()
        assert sign == writing or not output.exists()
    if not output.exists():  # writing takes no longer than looking
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "taken over" in done.stdout
    whole = contents(measurement.with_name("4.0"))
    found = contents(output)
    assert found.pop("config.json") != whole.pop("config.json")  # the text has its own name there
    assert found == whole
    assert list(tmp_path.iterdir()) == [output]


def test_the_command(cli: Cli, source: Path, measurement: Path, tmp_path: Path) -> None:
    words = (source, tmp_path / "out", "--to", "exl2", *WORDS, "--measurement", measurement)
    done = cli("convert", *words, "--bpw", 5.0, "--head-bits", 8, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert 4.75 < found["bits_per_weight"] <= 5
    assert set(found["strategy"]) == {"model.layers.0.self_attn", "model.layers.0.mlp"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["calibration"]["dataset"] == PROSE.name
    assert config["head_bits"] == 8
    again = cli("convert", *words, "--bpw", 5.0)
    assert again.code != 0
    assert "--force" in again.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bpw", 1.5, *WORDS), "cannot be reached: this model takes between 2."),
        (("--bpw", 9, *WORDS), "and 8."),
        (WORDS, "--bpw is missing"),
        (("--bpw", 4.0), "--calibration-text is missing"),
        (("--bpw", 4.0, "--head-bits", 7, *WORDS), "2, 3, 4, 5, 6, 8"),
        (("--bpw", 4.0, "--prune-layers", "0", *WORDS), "--prune-layers does not go"),
        (("--bpw", 4.0, "--dry-run", *WORDS), "--dry-run does not go"),
    ],
)
def test_what_makes_no_sense(cli: Cli, source: Path, tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    done = cli("convert", source, tmp_path / "out", "--to", "exl2", *words)
    assert done.code != 0
    assert message in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_refused_before_any_work(opened: Subject, measurement: Path) -> None:
    with pytest.raises(OutputExistsError):
        make(opened, measurement.with_name("4.0"), Exl2Request(4.0, measurement=measurement))


def test_measurements_of_other_models_are_refused(opened: Subject, measurement: Path, tmp_path: Path) -> None:
    found = parts(opened)
    known = read_measurement(measurement, found)
    path = tmp_path / "m.json"
    write_measurement(path, found, {"model.layers.0.mlp": known["model.layers.0.mlp"]})
    with pytest.raises(FormatError, match=r"lacks model\.layers\.0\.self_attn"):
        make(opened, tmp_path / "out", Exl2Request(4.0, measurement=path))
    content = json.loads(measurement.read_text())
    content["measurement"]["model.layers.0.mlp"][3]["total_bits"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="other shapes"):
        read_measurement(path, found)
    content["measurement"]["model.layers.7.mlp"] = content["measurement"].pop("model.layers.0.mlp")
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"model\.layers\.7\.mlp, which the model has not"):
        read_measurement(path, found)
    path.write_text("[]")
    with pytest.raises(FormatError, match="no measurement"):
        read_measurement(path, found)


def test_rows_are_chosen_within_the_rate(opened: Subject) -> None:
    found = parts(opened)
    cheap, dear = parse_option("2@64:1"), parse_option("8@128:1")
    known = {
        module.name: Measured(((cheap,) * len(module.linears), (dear,) * len(module.linears)), (0.5, 0.9))
        for module in found.modules
    }
    all_cheap = sum(module.bits((cheap,) * len(module.linears)) for module in found.modules)
    chosen = choose_rows(found, known, all_cheap / found.weights)
    assert chosen.bits == all_cheap
    assert chosen.loss == pytest.approx(1.0)
    attention, feed_forward = found.modules
    one_dear = attention.bits((dear,) * 4) + feed_forward.bits((cheap,) * 3)
    assert choose_rows(found, known, (one_dear + 1) / found.weights).rows[attention.name] == (dear,) * 4
    with pytest.raises(UsageError, match="between"):
        choose_rows(found, known, all_cheap / found.weights - 0.01)


def test_a_tied_output_is_written_beside_the_embedding(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    from safetensors.numpy import load_file

    with subject(folder) as it:
        assert "output.weight" not in it.model.tensors
        path, rows = tmp_path / "m.json", parts(it)
        known = {m.name: Measured(m.table, tuple(np.linspace(0.5, 0.99, len(m.table)))) for m in rows.modules}
        write_measurement(path, rows, known)
        make(it, tmp_path / "out", Exl2Request(4.0, measurement=path, threads=1))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.q_weight" in tensors
    assert "model.embed_tokens.weight" in tensors
    with subject(tmp_path / "out") as it:
        assert loss(it) < 12
