"""``--validate``: the receipt lies in the file, under its digests, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from broken import change
from measuring import PROSE, subject
from run_cli import Cli

from qconv.convert import output
from qconv.convert.validation import certify
from qconv.runtime.measuring.identity import identify_model

VALIDATE = ("--validate", PROSE, "--validate-context", 64, "--validate-chunks", 2)
KEYS = {
    "source_perplexity": ("base_perplexity", "value"),
    "perplexity": ("perplexity", "value"),
    "divergence": ("divergence", "value"),
    "divergence_error": ("divergence", "error"),
    "divergence_median": ("divergence_percentiles", "50"),
    "divergence_99": ("divergence_percentiles", "99"),
    "same_top": ("same_top", "value"),
}


def stored(path: Path) -> dict[str, Any]:
    prefix = "qconv.receipt."
    fields = gguf.GGUFReader(path).fields
    return {key.removeprefix(prefix): field.contents() for key, field in fields.items() if key.startswith(prefix)}


def test_the_file_holds_its_receipt(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    done = cli("hf-to-gguf", example_model, "-o", path, "--type", "q4_k_m", *VALIDATE, "--json")
    assert done.code == 0, done.err
    receipt = json.loads(done.out)["receipt"]
    assert json.loads((tmp_path / "m.gguf.receipt.json").read_text(encoding="utf-8")) == receipt
    keys = stored(path)
    assert keys["passed"] is True
    for key, (name, part) in KEYS.items():
        assert keys[key] == receipt["statistics"][name][part]
    assert keys["source"] == receipt["source"]["digest"]
    assert keys["tokenizer"] == receipt["tokenizer_parity"]["source"]
    assert keys["texts"] == [receipt["texts"][0]["sha256"]]
    assert (keys["context"], keys["windows"], keys["positions"]) == (64, 2, 62)
    assert keys["max_divergence"] == receipt["max_mean_divergence"] == 0.05
    with subject(path) as found:
        assert identify_model(found.model).digest == keys["result"] == receipt["result"]["digest"]
    assert cli("verify", path).code == 0
    later = cli("validate", example_model, path, "--text", PROSE, "-c", 64, "--chunks", 2, "--json")
    assert json.loads(later.out) == receipt


def test_a_receipt_is_not_handed_on(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert cli("hf-to-gguf", example_model, "-o", first, "--type", "f16", *VALIDATE).code == 0
    assert cli("quantize", first, second, "--type", "q8_0").code == 0
    assert stored(first)
    assert not stored(second)


TOO_STRICT = (*VALIDATE, "--max-kld", "1e-6")


def test_what_fails_is_told_and_kept_aside(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    path, aside = tmp_path / "m.gguf", tmp_path / "m.rejected.gguf"
    words = ("hf-to-gguf", example_model, "-o", path, "--type", "q4_0", *TOO_STRICT)
    done = cli(*words)
    assert done.code == 1
    assert "failed: the mean divergence" in done.out
    assert "was not written" in done.err
    assert {it.name for it in tmp_path.iterdir()} == {aside.name, aside.name + ".receipt.json"}
    assert stored(aside)["passed"] is False
    assert cli("verify", aside).code == 0
    refused = cli(*words)
    assert refused.code == 1
    assert "m.rejected.gguf" in refused.err
    assert "Delete or rename it" in refused.err
    done = cli(*words, "--force", "--json")
    assert done.code == 1
    assert json.loads(done.out)["written"] == [str(aside)]


def test_what_fails_replaces_nothing(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    path, aside = tmp_path / "m.gguf", tmp_path / "m.rejected.gguf"
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", "q8_0").code == 0
    before = path.read_bytes()
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", "q4_0", *TOO_STRICT, "--force").code == 1
    assert path.read_bytes() == before
    done = cli("quantize", aside, path, "--type", "q4_0", "--allow-requantize", *TOO_STRICT, "--force")
    assert done.code == 1
    assert "would replace the input itself" in done.err


def test_parts_that_fail_stay_a_model(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "m.gguf", "--type", "q4_0", "--split-max-tensors", 30)
    assert cli("hf-to-gguf", example_model, *words, *TOO_STRICT).code == 1
    assert {it.name for it in tmp_path.glob("*.gguf")} == {f"m.rejected-0000{n}-of-00002.gguf" for n in (1, 2)}
    assert cli("verify", tmp_path / "m.rejected-00001-of-00002.gguf").code == 0


def test_a_kill_before_the_rename_does_not_turn_a_failure_into_a_success(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("hf-to-gguf", example_model, "-o", tmp_path / "m.gguf", "--type", "q4_0", *TOO_STRICT)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "finish_renames", interrupt)
        assert cli(*words).code == 1
    assert not list(tmp_path.glob("*.gguf"))
    done = cli(*words)
    assert done.code == 1
    assert "was not written" in done.err
    assert [it.name for it in tmp_path.iterdir()] == ["m.rejected.gguf"]


def test_a_split_output(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "m.gguf", "--type", "q8_0", "--split-max-tensors", 30)
    done = cli("hf-to-gguf", example_model, *words, *VALIDATE)
    assert done.code == 0, done.err
    first = tmp_path / "m-00001-of-00002.gguf"
    assert stored(first)["passed"] is True
    assert cli("verify", first).code == 0
    assert first.with_name(first.name + ".receipt.json").exists()


def test_an_interrupted_validation_continues(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path in (whole, resumed):
        path.parent.mkdir()
    words = ("--type", "q8_0", *VALIDATE)
    assert cli("hf-to-gguf", example_model, "-o", whole, *words).code == 0

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(certify, "validate", interrupt)
        done = cli("hf-to-gguf", example_model, "-o", resumed, *words)
    assert done.code == 1
    assert not resumed.exists()
    (temporary,) = resumed.parent.glob("*.qconv-part")
    assert not temporary.read_bytes()[:64].strip(b"\0"), "without a header nobody takes it for a model"
    done = cli("hf-to-gguf", example_model, "-o", resumed, *words, "--json")
    assert json.loads(done.out)["resumed_tensors"] == 57
    assert resumed.read_bytes() == whole.read_bytes()


def test_refusals_come_before_work(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "m.gguf", "--type", "q8_0")
    for words, message in (
        (("--validate", PROSE, "--validate-context", 4096), "at least two contexts"),
        (("--validate", tmp_path / "absent"), "no such text file"),
        ((*VALIDATE, "--vocab-only"), "no predictions to validate"),
    ):
        done = cli("hf-to-gguf", example_model, *out, *words)
        assert done.code in (1, 2)
        assert message in done.err
        assert list(tmp_path.iterdir()) == []


def test_a_broken_source_leaves_nothing(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    source, result = tmp_path / "source.gguf", tmp_path / "result.gguf"
    assert cli("hf-to-gguf", example_model, "-o", source, "--type", "f32").code == 0
    change(source, "blk.1.attn_norm.weight", lambda row: row * 3e38)
    done = cli("quantize", source, result, "--type", "f16", *VALIDATE, "--override-kv", "a.b=u32:1")
    assert done.code == 1
    assert "block 1" in done.err or "not a finite number" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
