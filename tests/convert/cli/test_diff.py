"""``qconv diff``: exit codes, table, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_cli import Cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, example_model: Path) -> Path:
    """A folder with the example as F32 and as Q8_0."""
    import qconv

    folder = tmp_path_factory.mktemp("made")
    qconv.quantize(example_model, folder / "f32.gguf", "f32")
    qconv.quantize(example_model, folder / "q8_0.gguf", "q8_0")
    return folder


def test_the_same_model_in_two_formats(cli: Cli, example_model: Path, made: Path) -> None:
    done = cli("diff", example_model, made / "f32.gguf")
    assert done.code == 0, done.out + done.err
    assert "57 tensors: 57 with the same values in another encoding" in done.out
    assert "the models are the same" in done.out
    found = json.loads(cli("diff", example_model, made / "f32.gguf", "--json").out)
    assert found["same"] is True
    assert found["first"]["format"] == "huggingface"
    assert found["counts"] == {"same values": 57}
    assert found["metadata"] == {}


def test_differences(cli: Cli, made: Path) -> None:
    done = cli("diff", made / "f32.gguf", made / "q8_0.gguf", "--worst", 3)
    assert done.code == 1
    assert done.err == ""
    lines = [line for line in done.out.splitlines() if "Q8_0" in line]
    assert len(lines) == 3
    assert "… and 41 more (--worst 0 shows all)" in done.out
    assert "44 with other values, 13 with the same bytes" in done.out
    errors = [float(line.split()[-1]) for line in lines]
    assert errors == sorted(errors, reverse=True)
    found = json.loads(cli("diff", made / "f32.gguf", made / "q8_0.gguf", "--json").out)
    assert found["same"] is False
    assert [it["verdict"] for it in found["tensors"]].count("other values") == 44
    same = found["tensors"][-1]
    assert same["sha256"][0] == same["sha256"][1]
    assert same["relative_rms"] == 0


def test_metadata(cli: Cli, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes((made / "f32.gguf").read_bytes())
    assert cli("metadata", "set", other, "general.name=\x1b[31mOther", "llama.context_length=u64:2048").code == 0
    done = cli("diff", made / "f32.gguf", other, "--metadata-only")
    assert done.code == 1
    assert "2048 (u32)" in done.out
    assert "2048 (u64)" in done.out
    assert "\\x1b[31mOther" in done.out
    assert "2 metadata keys differ" in done.out
    assert "tensors" not in done.out
    assert cli("diff", made / "f32.gguf", other, "--weights-only").code == 0
    found = json.loads(cli("diff", made / "f32.gguf", other, "--json", "--metadata-only").out)
    assert found["metadata"]["general.name"][0] == {"type": "str", "value": "prose-llama-7m"}


def test_chosen_tensors(cli: Cli, made: Path) -> None:
    words = ("diff", made / "f32.gguf", made / "q8_0.gguf", "--tensors")
    assert cli(*words, "*_norm.weight").code == 0
    found = json.loads(cli(*words, "blk.0.attn_?.weight", "--json").out)
    names = {it["name"] for it in found["tensors"]}
    assert names == {f"blk.0.attn_{it}.weight" for it in "qkv"}


def test_no_comparison_is_2(cli: Cli, made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes((made / "f32.gguf").read_bytes()[:5000])
    for words, message in (
        ((made / "f32.gguf", tmp_path / "none"), "no such file"),
        ((tmp_path / "broken.gguf", made / "f32.gguf"), "Download or copy it again"),
        ((made / "f32.gguf", made / "q8_0.gguf", "--tensors", "nothing"), "no tensor of either model is like nothing"),
        ((made / "f32.gguf", made / "q8_0.gguf", "--metadata-only", "--weights-only"), "leaves no weights"),
    ):
        done = cli("diff", *words)
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert message in done.err
