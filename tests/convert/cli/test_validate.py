"""``qconv validate``: sound conversions pass, broken ones fail with the culprit named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import change, with_one_scale_flipped, without_rotary_permutation
from measuring import PROSE
from run_cli import Cli

CUT = ("-c", 64, "--chunks", 4)
HEADS, KV_HEADS = 4, 2


def convert(cli: Cli, model: Path, output: Path, kind: str, *words: object) -> Path:
    done = cli("hf-to-gguf", model, "-o", output, "--type", kind, *words)
    assert done.code == 0, done.err
    return output


def validate(cli: Cli, source: Path, result: Path, *words: object) -> tuple[int, dict[str, Any]]:
    done = cli("validate", source, result, "--text", PROSE, *CUT, "--json", *words)
    assert done.out, done.err
    found: dict[str, Any] = json.loads(done.out)
    return done.code, found


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-6), ("f16", 1e-5), ("q4_k_m", 5e-2)])
def test_sound_conversions_pass(cli: Cli, example_model: Path, tmp_path: Path, kind: str, limit: float) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", kind)
    code, found = validate(cli, example_model, result)
    assert (code, found["passed"], found["reasons"], found["first_difference"]) == (0, True, [], None)
    assert -1e-6 < found["statistics"]["divergence"]["value"] < limit
    assert found["tokenizer_parity"]["same"]
    assert found["tokenizer_parity"]["source"] == found["tokenizer_parity"]["result"]
    assert found["weights"] == {"compared": 57, "faults": []}
    assert found["metadata_differences"] == {}
    assert found["statistics"]["divergence_percentiles"]["99"] >= found["statistics"]["divergence_percentiles"]["50"]
    kept = json.loads((tmp_path / "m.gguf.receipt.json").read_text(encoding="utf-8"))
    assert kept == found


def test_a_threshold_of_the_users_own(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", "q4_0")
    done = cli(
        "validate", example_model, result, "--text", PROSE, *CUT, "--max-kld", "1e-4", "--receipt", tmp_path / "r"
    )
    assert done.code == 1
    assert "failed: the mean divergence of 0.0" in done.out
    assert "above 0.0001, the limit of Q4_0" in done.out
    assert json.loads((tmp_path / "r").read_text(encoding="utf-8"))["first_difference"] is None


@pytest.mark.parametrize("kind", ["f16", "q4_k"])
def test_rotary_permutation_left_out(cli: Cli, example_model: Path, tmp_path: Path, kind: str) -> None:
    plain = convert(cli, example_model, tmp_path / "plain.gguf", "f32")
    for layer in range(2, 6):
        change(plain, f"blk.{layer}.attn_q.weight", partial(without_rotary_permutation, heads=HEADS))
        change(plain, f"blk.{layer}.attn_k.weight", partial(without_rotary_permutation, heads=KV_HEADS))
    result = tmp_path / "m.gguf"
    assert cli("quantize", plain, result, "--type", kind).code == 0
    code, found = validate(cli, example_model, result)
    assert (code, found["passed"]) == (1, False)
    assert found["first_difference"]["layer"] == 2
    assert found["first_difference"]["tensor"] == "blk.2.attn_k.weight"
    assert [it["tensor"] for it in found["weights"]["faults"]] == [
        f"blk.{layer}.attn_{which}.weight" for layer in range(2, 6) for which in "kq"
    ]


def test_one_matrix_transposed(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", "f32")
    change(result, "blk.3.attn_output.weight", np.transpose)
    code, found = validate(cli, example_model, result)
    assert code == 1
    assert (found["first_difference"]["layer"], found["first_difference"]["tensor"]) == (3, "blk.3.attn_output.weight")


@pytest.mark.parametrize(("kind", "byte"), [("q8_0", 34 + 1), ("q4_k", 1), ("q6_k", 209)])
def test_one_scale_flipped(cli: Cli, example_model: Path, tmp_path: Path, kind: str, byte: int) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", kind, "--pure")
    change(result, "blk.4.ffn_up.weight", partial(with_one_scale_flipped, row=17, byte=byte))
    code, found = validate(cli, example_model, result)
    assert code == 1
    assert found["statistics"]["divergence"]["value"] < found["max_mean_divergence"], "weights alone tell"
    (fault,) = found["weights"]["faults"]
    assert (fault["tensor"], fault["layer"], fault["bad_blocks"]) == ("blk.4.ffn_up.weight", 4, 1)
    assert found["first_difference"]["tensor"] == "blk.4.ffn_up.weight"
    assert "wrong sign or scale" in found["reasons"][0]


def test_a_wrong_bos_gives_no_number(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    result = convert(
        cli, example_model, tmp_path / "m.gguf", "f16", "--override-kv", "tokenizer.ggml.bos_token_id=u32:2"
    )
    code, found = validate(cli, example_model, result)
    assert code == 1
    assert found["reasons"] == ["the tokenizers differ: the BOS token is 1 in the source, 2 in the result"]
    assert found["statistics"] is None
    shown = cli("validate", example_model, result, "--text", PROSE, *CUT)
    assert "failed: the tokenizers differ" in shown.out
    assert "perplexity" not in shown.out


def test_wrong_metadata_is_told_from_wrong_weights(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", "f16", "--override-kv", "llama.rope.freq_base=f32:100")
    code, found = validate(cli, example_model, result)
    assert code == 1
    assert found["weights"]["faults"] == []
    assert found["first_difference"]["layer"] == 0
    assert "look at the metadata" in found["first_difference"]["problem"]
    assert found["metadata_differences"] == {"llama.rope.freq_base": [10000.0, 100.0]}


def test_weights_that_are_not_finite_name_the_block(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    result = convert(cli, example_model, tmp_path / "m.gguf", "f32")
    change(result, "blk.1.ffn_down.weight", lambda rows: np.where(rows == rows.max(), np.float32(np.nan), rows))
    done = cli("validate", example_model, result, "--text", PROSE, *CUT, "--json")
    assert (done.code, done.out) == (1, "")
    assert "block 1" in done.err


def test_usage(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    for words, message in (
        ((), "--text is missing"),
        (("--text", short), "at least two contexts"),
    ):
        done = cli("validate", example_model, example_model, *words)
        assert done.code == 2
        assert message in done.err
