"""``qconv perplexity``: results, files and refusals, on the example model."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamacpp_models import logits as llamacpp_logits
from measuring import PROSE, subject
from run_cli import Cli

from qconv.convert.measure import Cut, cut_text
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.logits_file import file_size
from qconv.runtime.measuring.perplexity import score

CUT = ("-c", 64, "--chunks", 4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return Path(shutil.copy(PROSE, tmp_path / "text.txt"))


def measure(cli: Cli, *words: object) -> dict[str, Any]:
    done = cli("perplexity", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_json_says_what_was_measured(cli: Cli, example_model: Path, text: Path) -> None:
    found = measure(cli, example_model, "--text", text, *CUT)
    assert found["mode"] == "standard"
    assert (found["windows"], found["context"], found["stride"], found["scored_per_window"]) == (4, 64, 64, 31)
    assert found["bos"] == 1
    assert found["perplexity"]["tokens"] == 124
    assert found["divergence"] is None
    assert len(found["tokenizer"]) == len(found["model"]["digest"]) == 64
    assert found["texts"][0]["name"] == "text.txt"


def test_several_texts_and_the_final_line(cli: Cli, example_model: Path, text: Path) -> None:
    other = text.with_name("other.txt")
    other.write_text(text.read_text(encoding="utf-8")[1000:], encoding="utf-8")
    both = measure(cli, example_model, "--text", text, "--text", other, *CUT)
    alone = [measure(cli, example_model, "--text", it, *CUT)["perplexity"] for it in (text, other)]
    assert both["perplexity_by_text"] == [pytest.approx(it, rel=1e-5) for it in alone]
    mean = sum(math.log(it["value"]) for it in alone) / 2
    assert both["perplexity"]["value"] == pytest.approx(math.exp(mean), rel=1e-5)
    done = cli("perplexity", example_model, "--text", text, "--text", other, *CUT)
    assert done.out.splitlines()[-1].startswith(f"PPL = {both['perplexity']['value']:.4f} ± ")
    assert "perplexity: 8 of 8, 0 s left, PPL " in done.err


def test_strided_windows_are_whole_contexts(cli: Cli, example_model: Path, text: Path) -> None:
    found = measure(cli, example_model, "--text", text, *CUT, "--stride", 16)
    assert (found["mode"], found["context"], found["scored_per_window"]) == ("strided", 64, 16)
    assert found["perplexity"]["error"] > 0


def test_bases(cli: Cli, example_model: Path, text: Path, tmp_path: Path) -> None:
    quantized, full, compact = tmp_path / "q.gguf", tmp_path / "full", tmp_path / "compact"
    assert cli("hf-to-gguf", example_model, "-o", quantized, "--type", "q4_0").code == 0
    files = ("--save-logits", full, "--save-base", compact, "--base-tokens", 200)
    plain = measure(cli, example_model, "--text", text, *CUT, *files)
    assert full.stat().st_size == file_size(64, 4096, 4)
    again = measure(cli, example_model, "--base", full)
    assert again["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert again["divergence"]["divergence"]["value"] == pytest.approx(0, abs=2e-5)
    whole = measure(cli, quantized, "--base", full, "--text", text)["divergence"]
    part = measure(cli, quantized, "--base", compact, "--text", text)
    assert part["divergence_is_lower_bound"]
    assert 0.002 < part["divergence"]["divergence"]["value"] < whole["divergence"]["value"]
    for key in ("perplexity", "base_perplexity", "log_ratio", "same_top", "change"):
        # the whole base lifts what is far below the best token, and with it the loss of an unlikely right one
        assert part["divergence"][key]["value"] == pytest.approx(whole[key]["value"], rel=0.02, abs=0.01), key
    shown = cli("perplexity", quantized, "--base", compact)
    assert "mean KLD" in shown.out
    assert "keeps 200 of 4,096 tokens" in shown.err
    assert "divergence 0.0" in shown.err


def test_bases_of_another_text_or_model_are_refused(cli: Cli, example_model: Path, text: Path, tmp_path: Path) -> None:
    full, compact = tmp_path / "full", tmp_path / "compact"
    measure(cli, example_model, "--text", text, *CUT, "--save-logits", full, "--save-base", compact)
    other = tmp_path / "other.txt"
    other.write_text("Another text. " + text.read_text(encoding="utf-8"), encoding="utf-8")
    for base in (full, compact):
        done = cli("perplexity", example_model, "--base", base, "--text", other)
        assert (done.code, done.out) == (1, "")
        assert "made of another text: window 0 has token" in done.err
    changed, moved = tmp_path / "tokenizer.gguf", tmp_path / "norm.gguf"
    convert = ("hf-to-gguf", example_model, "-o", changed, "--override-kv", "tokenizer.ggml.bos_token_id=u32:2")
    assert cli(*convert).code == 0
    assert "made with another tokenizer" in cli("perplexity", changed, "--base", compact).err
    assert cli("hf-to-gguf", example_model, "-o", moved).code == 0
    with subject(moved) as found:
        norm = found.model.tensors["output_norm.weight"].rows(0, 1)
    raw = moved.read_bytes()
    moved.write_bytes(raw.replace(norm.tobytes(), (norm * 1.5).astype(np.float32).tobytes()))
    assert "is no conversion" in cli("perplexity", moved, "--base", compact).err


def test_refusals_come_before_work(cli: Cli, example_model: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    for words, message in (
        ((), "--text is missing"),
        (("--text", short), "tokens, but at least two contexts (1024) are needed"),
        (("--text", tmp_path / "absent"), "there is no such text file"),
        (("--text", tmp_path), "it is a folder, not a text file"),
        (("--text", example_model / "model.safetensors"), "it is no text"),
        (("--text", text, "--figure", tmp_path / "a.png"), "needs --base"),
        (("--text", text, "--stride", 8, "--save-logits", tmp_path / "a"), "no strided mode"),
        (("--text", text, "--save-base", text), "the output is the input itself"),
        (("--text", text, "--save-base", Path(__file__)), "the output exists"),
        (("--base", text), "no base of log-probabilities"),
    ):
        done = cli("perplexity", example_model, *words)
        assert done.code in (1, 2)
        assert message in done.err
        assert done.out == ""


def test_a_base_brings_its_windows(cli: Cli, example_model: Path, text: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.kl"
    cut = ("-c", 64, "--chunks", 4)
    assert cli("perplexity", example_model, "--text", text, *cut, "--save-base", base).code == 0
    for words in (("-c", 32), ("--chunks", 2), ("--stride", 8)):
        done = cli("perplexity", example_model, "--base", base, *words)
        assert done.code == 2
        assert "the base brings its own 4 windows of 64 tokens" in done.err
    assert cli("perplexity", example_model, "--base", base, *cut).code == 0


def test_windows_longer_than_the_model_was_trained_for(
    cli: Cli, example_model: Path, text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.gguf"
    told = ("--override-kv", "llama.context_length=u32:32")
    assert cli("hf-to-gguf", example_model, "-o", short, *told).code == 0
    done = cli("perplexity", short, "--text", text, "-c", 64, "--chunks", 1)
    assert "trained for 32 tokens, and is given 64" in done.err
    assert "trained for" not in cli("perplexity", short, "--text", text, "-c", 32, "--chunks", 1).err


def test_a_figure_without_matplotlib(
    cli: Cli, example_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("perplexity", example_model, "--base", text, "--figure", tmp_path / "a.svg")
    assert done.code == 2
    assert "pip install 'qconv[figures]'" in done.err
    done = cli("perplexity", example_model, "--base", text, "--figure", tmp_path / "a.gif")
    assert "Use .png, .svg or .pdf" in done.err


@pytest.mark.oracles
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_figure(cli: Cli, example_model: Path, text: Path, tmp_path: Path, kind: str) -> None:
    base, figure = tmp_path / "base", tmp_path / f"f.{kind}"
    measure(cli, example_model, "--text", text, *CUT, "--save-base", base)
    measure(cli, example_model, "--base", base, "--figure", figure)
    assert figure.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_damaged_weights_give_no_number(cli: Cli, example_model: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", "f32").code == 0
    with subject(path) as found:
        row = found.model.tensors["blk.2.ffn_down.weight"].rows(5, 6)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(row.tobytes(), np.full_like(row, 3e38).tobytes()))
    done = cli("perplexity", path, "--text", text, *CUT)
    assert (done.code, done.out) == (1, "")
    assert "block 2" in done.err


@pytest.mark.oracles
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 2e-3), ("f16", 1e-2)])
def test_losses_are_those_of_llamacpp(
    cli: Cli, example_model: Path, text: Path, tmp_path: Path, kind: str, tolerance: float
) -> None:
    path = tmp_path / "m.gguf"
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", kind).code == 0
    with subject(path) as found:
        windows = cut_text(found, read_text(text), Cut(128, limit=4))
        ours = np.array([it.losses for it in score(found.network, windows)])
    theirs = []
    for tokens, targets in zip(windows.evaluated, windows.targets, strict=True):
        rows = llamacpp_logits(path, tokens.tolist())[windows.wanted].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        theirs.append(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), targets])
    print(f"{kind}: log-probabilities differ by at most {np.abs(ours - theirs).max():.1e}")
    assert np.abs(ours - theirs).max() < tolerance
    assert np.exp(ours.mean() - np.mean(theirs)) == pytest.approx(1, abs=5e-4)


@pytest.mark.shared
def test_the_perplexity_that_llamacpps_tool_printed(cli: Cli, example_model: Path, shared: Path) -> None:
    """For the example model in BF16, 100 chunks of 256 of the held-out text: 57.988."""
    text = shared / "text" / "heldout.txt"
    found = measure(cli, example_model, "--text", text, "-c", 256, "--chunks", 100)["perplexity"]
    print(found)
    assert found["tokens"] == 12700
    assert found["value"] == pytest.approx(57.988, rel=5e-4)
