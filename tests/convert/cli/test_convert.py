"""``qconv convert``: the format of the output by name or by ``--to``, and what a format cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader
from run_cli import Cli


@pytest.fixture
def converted(cli: Cli, example_model: Path, tmp_path: Path) -> Path:
    """The example as a BF16 GGUF file, under a name that says nothing."""
    output = tmp_path / "model"
    done = cli("convert", example_model, output, "--to", "gguf", "--type", "bf16")
    assert done.code == 0, done.err
    return output


def test_contents_tell_the_source_and_the_ending_the_target(cli: Cli, converted: Path, tmp_path: Path) -> None:
    done = cli("convert", converted, tmp_path / "{type}.bin", "--type", "q4_k_m", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["source_format"], found["target_format"]) == ("gguf", "ggml")
    assert found["outputs"][0]["path"] == str(tmp_path / "Q4_K_M.bin")
    assert cli("convert", tmp_path / "Q4_K_M.bin", tmp_path / "again.gguf").code == 0
    kinds = {it.name: it.tensor_type.name for it in GGUFReader(tmp_path / "again.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert kinds["output.weight"] == "Q6_K"


def test_what_a_format_lacks_is_kept_exactly_or_refused(cli: Cli, converted: Path, tmp_path: Path) -> None:
    done = cli("convert", converted, tmp_path / "out.ggjt", "--dry-run")
    assert "ggml does not hold BF16" in done.err
    plan = json.loads(cli("convert", converted, tmp_path / "out.ggjt", "--dry-run", "--json").out)
    assert {it["type"] for it in plan["tensors"]} == {"F32"}
    refused = cli("convert", converted, tmp_path / "out.ggjt", "--type", "iq4_xs")
    assert refused.code == 1
    assert "does not hold IQ4_XS" in refused.err
    assert "Q6_K" in refused.err
    assert [it.name for it in tmp_path.iterdir()] == [converted.name]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("out.zip",), 2, "does not tell which format"),
        (("out", "--to", "ggfu"), 2, "did you mean 'gguf'?"),
        (("out", "--to", "meta"), 2, "'meta' can be read but not written"),
        (("out.ggjt", "--validate", "text.txt"), 2, "--validate works on GGUF files"),
        (("out.ggjt", "--split-max-size", "1M"), 2, "cannot be split"),
    ],
)
def test_mistakes_are_one_sentence(
    cli: Cli,
    example_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("convert", example_model, *words)
    assert message in done.err
    assert done.code == code
    assert list(tmp_path.iterdir()) == []
