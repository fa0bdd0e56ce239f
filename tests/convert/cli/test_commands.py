"""The commands on the example model: what they print, what they leave, how they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from gguf import GGUFReader
from run_cli import Cli


@pytest.fixture
def converted(cli: Cli, example_model: Path, tmp_path: Path) -> Path:
    """The example as a Q5_K_M file."""
    output = tmp_path / "example.gguf"
    done = cli("hf-to-gguf", example_model, "-o", output, "--type", "q5_k_m")
    assert done.code == 0, done.err
    return output


def test_the_main_job(cli: Cli, converted: Path) -> None:
    reader = GGUFReader(converted)
    kinds = {it.name: it.tensor_type.name for it in reader.tensors}
    assert kinds["blk.2.attn_v.weight"] == "Q6_K"
    assert kinds["blk.0.attn_v.weight"] == "Q5_K"
    assert kinds["output_norm.weight"] == "F32"
    assert cli("verify", converted).code == 0
    found = json.loads(cli("inspect", converted, "--json", "--tensors").out)
    assert found["file_type"] == "Q5_K_M"
    assert found["digests"] is True
    assert len(found["tensor_list"]) == len(reader.tensors)
    text = cli("inspect", converted, "--tensors", "--tokenizer", "--metadata").out
    assert "blk.5.ffn_down.weight" in text
    assert "4,096 tokens" in text
    assert "tokenizer.ggml.bos_token_id" in text


def test_a_dry_run_is_exact_and_writes_nothing(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    words = ("hf-to-gguf", example_model, "-o", output, "--type", "q4_k_m")
    done = cli(*words, "--dry-run", "--json")
    assert done.code == 0
    assert not output.exists()
    plan = json.loads(done.out)
    assert cli(*words).code == 0
    assert plan["outputs"] == [{"path": str(output), "bytes": output.stat().st_size}]
    kinds = {it.name: (it.tensor_type.name, int(it.n_bytes)) for it in GGUFReader(output).tensors}
    assert {it["name"]: (it["type"], it["bytes"]) for it in plan["tensors"]} == kinds
    assert plan["free_disk_bytes"] > 0
    assert plan["peak_memory_bytes"] > 0
    text = cli(*words, "--dry-run", "--force").out
    assert "blk.0.ffn_down.weight" in text
    assert "bits per weight" in text


def test_quantize_a_gguf(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    assert cli("hf-to-gguf", example_model, "-o", tmp_path / "{type}.gguf", "--type", "bf16").code == 0
    direct = tmp_path / "direct.gguf"
    assert cli("hf-to-gguf", example_model, "-o", direct, "--type", "q4_k_m").code == 0
    done = cli("quantize", tmp_path / "BF16.gguf", "--type", "q4_k_m")
    assert done.code == 0, done.err
    # the same bytes as in one step: nothing is lost on the way through a 16-bit file
    assert (tmp_path / "BF16-Q4_K_M.gguf").read_bytes() == direct.read_bytes()
    refused = cli("quantize", direct, tmp_path / "again.gguf", "--type", "q8_0")
    assert refused.code == 1
    assert "--allow-requantize" in refused.err
    assert cli("quantize", direct, tmp_path / "again.gguf", "--type", "q8_0", "--allow-requantize").code == 0


def test_a_vocabulary_alone(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "vocabulary.gguf"
    done = cli("hf-to-gguf", example_model, "-o", output, "--vocab-only")
    assert done.code == 0
    assert f"metadata and tokenizer alone, {output.stat().st_size:,} bytes" in done.out
    assert "weights" not in done.out


def test_a_folder_without_a_checklist_cannot_be_verified(cli: Cli, example_model: Path) -> None:
    done = cli("verify", example_model)
    assert done.code == 1
    assert f"{example_model}: the folder has no checklist.chk" in done.err


def test_verify_finds_a_flipped_bit(cli: Cli, converted: Path) -> None:
    data = bytearray(converted.read_bytes())
    data[len(data) // 2] ^= 4
    converted.write_bytes(data)
    done = cli("verify", converted)
    assert done.code == 1
    assert "differs from its digest" in done.err
    assert json.loads(cli("verify", converted, "--json").out)["ok"] is False


def test_splits(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    words = ("hf-to-gguf", example_model, "-o", tmp_path / "m.gguf", "--type", "q8_0", "--split-max-size", "3M")
    assert cli(*words).code == 0
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    assert cli("verify", tmp_path / parts[0]).code == 0
    assert cli("quantize", tmp_path / parts[0], tmp_path / "one.gguf", "--type", "copy").code == 0
    kept = ("quantize", tmp_path / parts[0], tmp_path / "k.gguf", "--type", "copy", "--keep-split")
    assert cli(*kept).code == 0
    for number in (1, 2, 3):
        names = [[t.name for t in GGUFReader(tmp_path / f"{stem}-0000{number}-of-00003.gguf").tensors] for stem in "mk"]
        assert names[0] == names[1]
    assert cli(*kept, "--force", "--split-max-tensors", "3").code == 2


def test_what_an_output_is_called(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llama-2.7b"
    shutil.copytree(example_model, folder)
    assert cli("quantize", folder, "--type", "q8_0").code == 0
    assert (tmp_path / "llama-2.7b-Q8_0.gguf").is_file()
    monkeypatch.chdir(folder)
    assert cli("quantize", ".", "--type", "q4_0").code == 0
    assert (tmp_path / "llama-2.7b-Q4_0.gguf").is_file()
    monkeypatch.chdir(tmp_path)
    assert cli("split", "llama-2.7b-Q8_0.gguf", "part", "--max-size", "3M").code == 0
    assert cli("quantize", "part-00001-of-00003.gguf", "--type", "copy").code == 0
    assert (tmp_path / "part-COPY.gguf").is_file()


def test_the_current_folder_as_output(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in (".", "..", "../model/"):
        done = cli("convert", example_model, name, "--force")
        assert done.code == 1
        assert "the folder that you are in" in done.err or "what no conversion writes (model)" in done.err
    assert list(folder.iterdir()) == []


def test_no_receipt_or_recipe_takes_the_place_of_a_model(cli: Cli, converted: Path, tmp_path: Path) -> None:
    before = converted.read_bytes()
    text = Path(__file__).parents[2] / "helpers" / "prose.txt"
    cut = ("--text", text, "-c", "64", "--chunks", "1")
    for _ in range(2):
        assert cli("validate", converted, converted, *cut, "--receipt", tmp_path / "receipt.json").code == 0
    for words in (
        ("validate", converted, converted, *cut, "--receipt", converted),
        ("quantize", converted, tmp_path / "a.gguf", "--size", "4M", "--allow-requantize", "--recipe-out", converted),
    ):
        done = cli(*words)
        assert done.code == 1
        assert "it is another kind of file than the one to be written" in done.err
        assert converted.read_bytes() == before
    for command, option in (("imatrix", "-o"), ("perplexity", "--save-base")):
        done = cli(command, converted, *cut, option, converted, "--force")
        assert "the output is the input itself" in done.err
        assert converted.read_bytes() == before


def test_chosen_types_are_called_so(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    done = cli("hf-to-gguf", example_model, "-o", tmp_path / "a.gguf", "--size", "4M", "--recipe-out", recipe)
    assert "chosen types: 6,819,072 weights" in done.out
    done = cli("hf-to-gguf", example_model, "-o", tmp_path / "b.gguf", "--recipe", recipe)
    assert "chosen types: 6,819,072 weights" in done.out


def test_layers_can_be_left_out(cli: Cli, converted: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned.gguf"
    assert cli("quantize", converted, output, "--type", "copy", "--prune-layers", "1,3-4").code == 0
    reader = GGUFReader(output)
    assert reader.fields["llama.block_count"].contents() == 3
    assert {it.name for it in reader.tensors if it.name.endswith("ffn_up.weight")} == {
        f"blk.{block}.ffn_up.weight" for block in range(3)
    }
    assert cli("quantize", converted, output, "--type", "copy", "--prune-layers", "9").code == 2


def test_overrides(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.gguf"
    options = ["--override-kv", "general.license=str:mit", "--model-name", "Prose", "--alignment", "64"]
    options += ["--tensor-type", "attn_v=q8_0", "--output-tensor-type", "f16", "--token-embedding-type", "q6_k"]
    assert cli("hf-to-gguf", example_model, "-o", output, "--type", "q4_k_s", *options).code == 0
    reader = GGUFReader(output)
    kinds = {it.name: it.tensor_type.name for it in reader.tensors}
    assert kinds["blk.3.attn_v.weight"] == "Q8_0"
    assert kinds["output.weight"] == "F16"
    assert kinds["token_embd.weight"] == "Q6_K"
    assert reader.fields["general.license"].contents() == "mit"
    assert reader.fields["general.name"].contents() == "Prose"
    assert reader.alignment == 64


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("inspect", "absent.gguf"), 1, "absent.gguf: no such file or folder"),
        (("inspect", "."), 1, "this folder is empty"),
        (("quantize", "absent.gguf"), 2, "--type is missing"),
        (("quantize", "absent.gguf", "--type", "q4_k_m"), 1, "no such file"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q4_kk"), 2, "Q4_K"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--tensor-type", "attn_q=q9"), 2, "no encoding 'q9'"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--tensor-type", "attn("), 2, "tensor rule"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--tensor-type", "attn(=q8_0"), 2, "no regular expression"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--effort", "heroic"), 2, "fast, default, best"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--compat", "ollama"), 2, "llama.cpp"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--split-max-size", "1X"), 2, "no size"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--override-kv", "nonsense"), 2, "KEY=TYPE:VALUE"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "-o", "absent/out.gguf"), 1, "no such folder"),
        (("hf-to-gguf", "EXAMPLE", "--type", "iq2_xxs"), 1, "importance"),
        (("verify", "absent.gguf"), 1, "absent.gguf"),
        (("warmup", "q9_9"), 2, "q9_9"),
        (("hf-to-gguf", "EXAMPLE", "--bpw", "nan"), 2, "--bpw is a number, not nan"),
        (("hf-to-gguf", "EXAMPLE", "--bpw", "inf"), 2, "--bpw is a number, not inf"),
        (("generate", "EXAMPLE", "-p", "a", "--memory", "nan"), 2, "--memory is a number"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--override-kv", "a.b=bool:maybe"), 2, "bool cannot hold 'maybe'"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--override-kv", "a.b=u8:300"), 2, "u8 cannot hold 300"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--damping", "0.1"), 2, "changes nothing without --method gptq"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--max-kld", "0.1"), 2, "changes nothing without --validate"),
        (("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--measure-chunks", "4"), 2, "without --measure-on"),
        (
            ("hf-to-gguf", "EXAMPLE", "--type", "q8_0", "--include-weights", "ffn"),
            2,
            "--include-weights changes nothing without --imatrix or --calibration",
        ),
        (("nonsense",), 2, "nonsense"),
        (("convert", "EXAMPLE", "/"), 2, "/ is no name for an output"),
        (
            ("convert", "EXAMPLE", "out", "--to", "exl2", "--bpw", "4", "--damping", "0.1"),
            2,
            "does not go with --to exl2",
        ),
        (("convert", "EXAMPLE", "out", "--to", "awq", "--exclude-weights", "ffn"), 2, "does not go with --to awq"),
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
    done = cli(*(str(example_model) if word == "EXAMPLE" else word for word in words))
    assert message in done.err
    assert done.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_told_from_a_closed_terminal(cli: Cli, converted: Path) -> None:
    converted.write_bytes(converted.read_bytes()[:50_000])
    for command in ("inspect", "verify"):
        done = cli(command, converted)
        assert done.code == 1
        assert "example.gguf" in done.err
        assert "Aborted" not in done.err


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "safetensors"),
        ("tokenizer*", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_told_what_it_lacks(
    cli: Cli, example_model: Path, tmp_path: Path, gone: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(example_model, folder)
    for file in folder.glob(gone):
        file.unlink()
    done = cli("hf-to-gguf", folder, "-o", tmp_path / "out.gguf")
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "out.gguf").exists()


def test_lists(cli: Cli) -> None:
    for command, key, name in (
        ("formats", "formats", "gguf"),
        ("types", "encodings", "Q4_K"),
        ("types", "types", "Q4_K_M"),
        ("plugins", "plugins", "formats"),
    ):
        found = json.loads(cli(command, "--json").out)
        assert name in {it["name"] for it in found[key]}
        assert name in cli(command).out


def test_speeds_are_measured(cli: Cli) -> None:
    found = {it["name"]: it for it in json.loads(cli("types", "--bench", "--json").out)["encodings"]}
    assert found["BF16"]["million_weights_per_second"]["encode"] > 10
    assert found["BF16"]["million_weights_per_second"]["encode_importance"] is None
    assert "million_weights_per_second" not in found["Q8_K"]


def test_warmup(cli: Cli) -> None:
    assert set(json.loads(cli("warmup", "q8_0", "q4_k", "--json").out)["seconds"]) == {"Q8_0", "Q4_K"}
    assert "Q8_0" in cli("warmup", "q8_0").out


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys, qconv.convert.cli as c; c.build_app(); print([m for m in ('numba', 'numpy', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inspect_imports_no_compiler(converted: Path) -> None:
    code = (
        "import sys, qconv.convert.cli as c; sys.argv = ['qconv', 'inspect', sys.argv[1]]\n"
        "try: c.main()\nexcept SystemExit: print([m for m in ('numba', 'gguf', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(converted)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_python_m_qconv() -> None:
    done = subprocess.run([sys.executable, "-m", "qconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qconv ")


def test_commands_are_found_in_the_modules_that_the_table_names() -> None:
    from qconv.convert.cli import app

    whole = [*_command_names(app.build_app())]
    assert sorted(whole) == sorted(name for commands in app._MODULES.values() for name in commands)
    for commands in app._MODULES.values():
        for name in commands:
            assert _command_names(app.build_app(name)) == set(commands)


def test_the_help_of_names_alone_is_the_help() -> None:
    from qconv.convert.cli import app

    lists = []
    for names_alone in (False, True):
        group = typer.main.get_command(app.build_app(names_alone=names_alone))
        assert isinstance(group, typer.core.TyperGroup)
        summaries = {name: (it.help or "").split("\n\n")[0].replace("\n", " ") for name, it in group.commands.items()}
        lists.append(list(summaries.items()))
    assert lists[0] == lists[1]


def _command_names(app: typer.Typer) -> set[str]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return set(group.commands)


def test_a_device_is_never_replaced(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = cli("hf-to-gguf", example_model, "-o", pipe, "--type", "q4_0", "--force")
    assert done.code == 1
    assert "a device, a pipe or a socket" in done.err
    assert pipe.is_fifo()
