"""``qconv split`` and ``qconv merge``: what they print, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import memory_model
import pytest
from qconv_encodings import ENCODINGS
from run_cli import Cli

from qconv.convert.jobs import run_plan
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.formats.gguf import FORMAT


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A GGUF file of 18 tensors."""
    with memory_model.llama(tmp_path / "made") as model:
        plan = make_plan(model, tmp_path / "whole.gguf", FORMAT, Settings(), ENCODINGS)
        run_plan(plan, force=False, progress=lambda count: None)
    (tmp_path / "made").unlink()
    return tmp_path / "whole.gguf"


def test_there_and_back(cli: Cli, whole: Path, tmp_path: Path) -> None:
    done = cli("split", whole, tmp_path / "p", "--max-tensors", 7)
    assert done.code == 0, done.err
    assert f"wrote {tmp_path}/p-00002-of-00003.gguf (7 tensors, " in done.out
    first = tmp_path / "p-00001-of-00003.gguf"
    assert cli("verify", first).code == 0
    merged = json.loads(cli("merge", first, tmp_path / "m.gguf", "--json", "--delete-source").out)
    assert merged["outputs"] == [{"path": str(tmp_path / "m.gguf"), "bytes": whole.stat().st_size, "tensors": 18}]
    assert (merged["parts"], merged["parts_verified"], merged["deleted"]) == (3, 3, True)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "m.gguf"}
    assert (tmp_path / "m.gguf").read_bytes() == whole.read_bytes()


def test_a_dry_run_is_exact_and_writes_nothing(cli: Cli, whole: Path, tmp_path: Path) -> None:
    words = ("split", whole, tmp_path / "p", "--max-size", "300K", "--no-tensor-first-split")
    plan = json.loads(cli(*words, "--dry-run", "--json").out)
    assert "would write" in cli(*words, "--dry-run").out
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]
    done = json.loads(cli(*words, "--json").out)
    assert plan == {key: value for key, value in done.items() if key not in ("seconds", "bytes_copied_by_system")}
    assert plan["outputs"][0]["tensors"] == 0
    for output in plan["outputs"]:
        assert Path(output["path"]).stat().st_size == output["bytes"]
    joined = ("merge", plan["outputs"][0]["path"], tmp_path / "m.gguf", "--dry-run")
    assert json.loads(cli(*joined, "--json").out)["parts_verified"] == len(plan["outputs"])
    assert f"would write {tmp_path}/m.gguf" in cli(*joined).out
    assert not (tmp_path / "m.gguf").exists()


def test_parts_without_digests_are_told(cli: Cli, whole: Path, tmp_path: Path) -> None:
    assert cli("split", whole, tmp_path / "p", "--max-tensors", 9, "--no-digests").code == 0
    done = cli("merge", tmp_path / "p-00001-of-00002.gguf", tmp_path / "m.gguf")
    assert done.code == 0
    assert "2 of 2 parts carry no digests" in done.err


def test_refusals(cli: Cli, whole: Path, tmp_path: Path) -> None:
    none = cli("split", whole, tmp_path / "p")
    assert (none.code, "Use --max-size 2G, or --max-tensors 128" in none.err) == (2, True)
    assert cli("split", whole, tmp_path / "p", "--max-tensors", 7).code == 0
    again = cli("split", whole, tmp_path / "p", "--max-tensors", 7)
    assert (again.code, "Use --force" in again.err) == (1, True)
    assert cli("split", whole, tmp_path / "p", "--max-tensors", 7, "--force").code == 0
    (tmp_path / "p-00002-of-00003.gguf").unlink()
    kept = cli("merge", tmp_path / "p-00001-of-00003.gguf", tmp_path / "m.gguf", "--delete-source")
    assert (kept.code, "part 2 of 3 is missing" in kept.err) == (1, True)
    assert (tmp_path / "p-00001-of-00003.gguf").exists()
    assert cli("merge", whole, tmp_path / "m.gguf").code == 2
