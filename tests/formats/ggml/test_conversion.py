"""The way through the whole application: detect, inspect, plan, execute, seal, in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import ggml_files as crafted
import numpy as np
import pytest
from ctransformers_models import last_logits
from ggml_files import sound
from gguf_files import CONTEXT
from run_cli import Cli

from qconv.convert.jobs import run_plan
from qconv.convert.opening import open_model
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.formats.ggml import open_ggml, prepare_for_ggjt
from qconv.formats.gguf import open_gguf
from qconv.plugins.manager import load_plugins


def test_inspect(cli: Cli, tmp_path: Path) -> None:
    path = sound("ggjt", 2, 8, lambda rows: crafted.q8_0_rows(rows)[0], 7).write(tmp_path / "m.bin")
    found = json.loads(cli("inspect", path, "--json").out)
    assert found["format"] == "ggml"
    assert found["container"] == {
        "container": "ggjt",
        "version": 2,
        "parts": 1,
        "stored_types": "Q8_0 with float32 scales + F32",
    }
    assert found["architecture"] == "llama"
    assert found["tokenizer"]["size"] == 268
    done = cli("inspect", path, "--tensors")
    assert "ggjt, version 2" in done.out
    assert "blk.0.ffn_gate.weight" in done.out


def test_a_damaged_file_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(sound().build()[:-5])
    done = cli("inspect", path)
    assert done.code == 1
    assert "layers.0.ffn_norm.weight" in done.err
    assert "Download or copy it again" in " ".join(done.err.split())


def test_scales_that_are_no_numbers(cli: Cli, tmp_path: Path) -> None:
    """They are found where rows are used, and named."""

    def pack(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
        return b"\0\0\x80\x7f" + crafted.q4_0_rows(rows)[0][4:]

    source = sound("ggjt", 1, 2, pack, 2).write(tmp_path / "a.bin")
    done = cli("quantize", source, tmp_path / "m.gguf", "--type", "f16")
    assert done.code == 1
    assert "output.weight" in done.err
    assert "row 0, column" in done.err
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("container", ["ggml", "ggjt"])
def test_to_gguf_and_back(cli: Cli, tmp_path: Path, container: str) -> None:
    """Records between tensors are written by the same seal that writes headers."""
    version = 3 if container == "ggjt" else 0
    source = sound(container, version, 1, crafted.halves, 1).write(tmp_path / "a.bin")
    assert cli("quantize", source, tmp_path / "m.gguf", "--type", "auto").code == 0
    registries = load_plugins().registries()
    with open_gguf(tmp_path / "m.gguf", CONTEXT) as model, open_ggml(source, CONTEXT) as old:
        assert {t.name: t.encoding.name for t in model.tensors.values()} == {
            t.name: t.encoding.name for t in old.tensors.values()
        }
        for tensor in model.tensors.values():
            rows = old.tensors[tensor.name].read(0, tensor.row_count)
            assert np.array_equal(tensor.read(0, tensor.row_count), rows)
        settings = Settings(type_name="auto", threads=2)
        plan = make_plan(model, tmp_path / "b.bin", registries.formats["ggml"], settings, registries.encodings)
        result = run_plan(plan, False, lambda count: None)
    assert result.paths == (tmp_path / "b.bin",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin", "m.gguf"]
    if container == "ggjt":
        assert (tmp_path / "b.bin").read_bytes() == source.read_bytes()
    else:
        with open_ggml(tmp_path / "b.bin", CONTEXT) as again, open_ggml(source, CONTEXT) as old:
            for tensor in again.tensors.values():
                assert np.array_equal(
                    tensor.read(0, tensor.row_count), old.tensors[tensor.name].read(0, tensor.row_count)
                )


@pytest.mark.oracles
def test_the_example_runs_in_the_runtime_of_the_time(example_model: Path, tmp_path: Path) -> None:
    """Two key and value heads of four, repeated: the same logits as transformers', but for a cache of float16."""
    import torch
    from transformers import AutoModelForCausalLM

    registries = load_plugins().registries()
    with open_model(example_model, registries) as opened:
        model = prepare_for_ggjt(opened)
        settings = Settings(type_name="f32", threads=1)
        plan = make_plan(
            model, tmp_path / "m.bin", registries.formats["ggml"], settings, registries.encodings, None, True
        )
        run_plan(plan, False, lambda count: None)
    ids = [1, 290, 310, 263, 293, 500, 700]
    reference = AutoModelForCausalLM.from_pretrained(example_model, dtype=torch.float32)
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0, -1].numpy()
    found = last_logits(tmp_path / "m.bin", ids)
    assert abs(found - wanted).max() < 0.02
    assert abs(wanted).max() > 5
