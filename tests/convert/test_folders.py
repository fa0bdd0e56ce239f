"""Outputs that are folders: whole or absent, resumed, replaced only where nothing foreign would be lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_cli import Cli
from safetensors import safe_open

import qconv
from qconv.convert import output as output_module
from qconv.convert.settings import Settings
from qconv.errors import DiskFullError, OutputExistsError, UsageError
from qconv.formats.base import WriteOptions
from qconv.runtime.measuring.identity import plain

SHARDS = Settings(threads=2, write=WriteOptions(split_max_size=4_000_000))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def source(example_model: Path, tmp_path: Path) -> Path:
    """The example in a folder of its own."""
    (tmp_path / "in").mkdir()
    return shutil.copytree(example_model, tmp_path / "in" / "model")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A name in a folder where nothing else is."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "made"


def test_shards_and_index(source: Path, out: Path) -> None:
    result = qconv.convert_model(source, out, settings=SHARDS)
    assert result.paths == (out,)
    assert names(out.parent) == {"made"}
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    assert len(shards) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = 0
    with safe_open(source / "model.safetensors", "np") as whole:
        assert set(index["weight_map"]) == set(whole.keys())
        for shard in shards:
            with safe_open(out / shard, "np") as part:
                held = set(part.keys())
                assert held == {name for name, file in index["weight_map"].items() if file == shard}
                for name in held:
                    assert part.get_slice(name).get_shape() == whole.get_slice(name).get_shape()
                    total += 2 * part.get_slice(name).get_shape()[0] * (part.get_slice(name).get_shape()[1:] or [1])[0]
    assert index["metadata"]["total_size"] == total
    with qconv.open(source) as one, qconv.open(out) as other:
        assert list(one.tensors) == list(other.tensors)
        for name, tensor in one.tensors.items():
            assert tensor.read(0, tensor.row_count).tobytes() == other.tensors[name].read(0, tensor.row_count).tobytes()
        known = [{key: plain(it) for key, it in model.metadata.items()} for model in (one, other)]
        assert known[0] | {"general.name": "made"} == known[1]


def test_an_interrupted_run_is_continued(source: Path, out: Path) -> None:
    whole = out.with_name("whole")
    qconv.convert_model(source, whole, settings=SHARDS)

    def stop() -> Callable[[int], None]:
        left = [30]

        def progress(count: int) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        qconv.convert_model(source, out, settings=SHARDS, progress=stop())
    assert names(out.parent) == {"whole", "made.qconv-part", "made.qconv-journal"}
    assert not (out.with_name("made.qconv-part") / "config.json").read_bytes().strip(b"\0")
    result = qconv.convert_model(source, out, settings=SHARDS)
    assert result.resumed > 10
    assert names(out.parent) == {"whole", "made"}
    assert names(out) == names(whole)
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_another_run_leaves_nothing_of_an_interrupted_one(source: Path, out: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qconv.convert_model(source, out, settings=SHARDS, progress=stop)
    qconv.convert_model(source, out)
    assert names(out.parent) == {"made"}
    assert {name for name in names(out) if "safetensors" in name} == {"model.safetensors"}


def test_a_failure_leaves_nothing(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_module, "write_at", full)
    with pytest.raises(DiskFullError):
        qconv.convert_model(source, out)
    assert names(out.parent) == set()


@pytest.mark.parametrize(
    "moment", ["before the old one goes", "before the new one comes", "before the old one is deleted"]
)
def test_a_kill_while_a_folder_is_replaced(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    qconv.convert_model(source, out, "f16")
    settings = Settings(force=True, write=SHARDS.write)
    rename, rmtree = Path.rename, shutil.rmtree

    def killed_rename(self: Path, target: Path) -> Path:
        if (self == out) == (moment == "before the old one goes"):
            raise KeyboardInterrupt
        return rename(self, target)

    def killed_rmtree(path: Path) -> None:
        if path.name.endswith(".qconv-old"):
            raise KeyboardInterrupt
        rmtree(path)

    with monkeypatch.context() as patch:
        if moment == "before the old one is deleted":
            patch.setattr("qconv.convert.folders.shutil.rmtree", killed_rmtree)
        else:
            patch.setattr(Path, "rename", killed_rename)
        with pytest.raises(KeyboardInterrupt):
            qconv.convert_model(source, out, settings=settings)
    assert not out.exists() or (out / "config.json").stat().st_size > 100
    result = qconv.convert_model(source, out, settings=settings)
    assert result.resumed == 57
    assert names(out.parent) == {"made"}
    assert "model.safetensors" not in names(out)
    assert "model.safetensors.index.json" in names(out)


def test_what_is_replaced_and_what_is_not(cli: Cli, source: Path, out: Path) -> None:
    assert cli("convert", source, out).code == 0
    again = cli("convert", source, out)
    assert again.code == 1
    assert "--force" in again.err
    assert cli("convert", source, out, "--force", "--split-max-size", "4M").code == 0
    assert "model.safetensors" not in names(out)
    (out / "thesis.txt").write_text("years of work")
    for words in ((), ("--force",)):
        refused = cli("convert", source, out, *words)
        assert refused.code == 1
        assert "thesis.txt" in refused.err
    assert (out / "thesis.txt").exists()
    assert names(out.parent) == {"made"}


def test_an_empty_folder_is_as_good_as_none(source: Path, out: Path) -> None:
    out.mkdir()
    qconv.convert_model(source, out)
    assert "config.json" in names(out)


def test_what_cannot_be_an_output(source: Path, out: Path) -> None:
    with pytest.raises(OutputExistsError, match="input itself"):
        qconv.convert_model(source, source, settings=Settings(force=True))
    out.symlink_to(source)
    with pytest.raises(OutputExistsError, match="this is a link"):
        qconv.convert_model(source, out, settings=Settings(force=True))
    out.unlink()
    out.write_text("a file")
    with pytest.raises(OutputExistsError, match="this is a file"):
        qconv.convert_model(source, out, settings=Settings(force=True))
    assert out.read_text() == "a file"
    with pytest.raises(UsageError, match="no alignment"):
        qconv.convert_model(source, out.with_name("x"), settings=Settings(write=WriteOptions(alignment=64)))


def test_links_and_folders_in_a_folder_are_foreign(source: Path, out: Path) -> None:
    qconv.convert_model(source, out)
    (out / "additional_chat_templates").mkdir()
    template = out / "additional_chat_templates" / "x.jinja"
    template.write_text("x")
    settings = Settings(force=True)
    qconv.convert_model(source, out, settings=settings)  # a template folder is none
    assert not template.exists()
    (out / "runs").mkdir()
    with pytest.raises(OutputExistsError, match="runs"):
        qconv.convert_model(source, out, settings=settings)
    (out / "runs").rmdir()
    (out / "vocab.json").symlink_to(source / "config.json")
    with pytest.raises(OutputExistsError, match=r"vocab\.json"):
        qconv.convert_model(source, out, settings=settings)


def test_parts_are_kept(cli: Cli, source: Path, out: Path) -> None:
    parts = ("--type", "bf16", "--split-max-tensors", 20)
    assert cli("convert", source, out.with_name("m.gguf"), *parts).code == 0
    assert cli("convert", out.with_name("m-00001-of-00003.gguf"), out, "--keep-split").code == 0
    assert len(list(out.glob("model-*.safetensors"))) >= 3
    with qconv.open(source) as one, qconv.open(out) as other:
        assert one.tensors.keys() == other.tensors.keys()


def test_a_plan_is_exact(cli: Cli, source: Path, out: Path) -> None:
    plan = json.loads(cli("convert", source, out, "--dry-run", "--json").out)
    assert not out.exists()
    qconv.convert_model(source, out)
    assert {it["path"]: it["bytes"] for it in plan["outputs"]} == {
        str(path): path.stat().st_size for path in out.iterdir()
    }
    assert plan["target_format"] == "huggingface"
