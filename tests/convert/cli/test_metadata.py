"""``qconv metadata``: what is shown, what is written, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf_files import write_layout
from qconv_encodings import ENCODINGS
from run_cli import Cli

from qconv.formats.base import OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf
from qconv.formats.metadata import ValueType, float32, numbers, string, strings, uint32

TOKENS = [f"token {number}" for number in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    metadata = {
        "general.architecture": string("llama"),
        "general.name": string("Example"),
        "llama.rope.freq_base": float32(0.1),
        "tokenizer.ggml.tokens": strings(TOKENS),
        "tokenizer.ggml.scores": numbers([0.1] * 40, ValueType.FLOAT32),
        "tokenizer.ggml.bos_token_id": uint32(1),
        "tokenizer.chat_template": string("{{ messages }}\n\x1b[31m" + "x" * 300),
    }
    tensors = [OutputTensor("token_embd.weight", (40, 4), ENCODINGS["F32"])]
    layout = lay_out_gguf(tmp_path / "m.gguf", metadata, tensors, WriteOptions())
    return write_layout(layout, {"token_embd.weight": np.arange(160, dtype="<f4").tobytes()})[0]


def test_show(cli: Cli, path: Path) -> None:
    text = cli("metadata", "show", path).out
    assert 'str[40]  "token 0", "token 1", "token 2", "token 3", …' in text
    assert "f32[40]  0.1, 0.1, 0.1, 0.1, …" in text
    assert "{{ messages }}\\n\\x1b[31mxxx" in text
    assert "\x1b" not in text
    full = cli("metadata", "show", path, "--full", "-k", "tokenizer.*").out
    assert "x" * 300 in full
    assert '"token 39"' in full
    assert "general.name" not in full
    found = json.loads(cli("metadata", "show", path, "--json").out)["metadata"]
    assert found["llama.rope.freq_base"] == {"type": "f32", "value": 0.1}
    tokens = {"type": "str[]", "length": 40, "first": TOKENS[:4]}
    assert found["tokenizer.ggml.tokens"] == tokens
    whole = json.loads(cli("metadata", "show", path, "--json", "--full").out)["metadata"]
    assert whole["tokenizer.ggml.tokens"]["value"] == TOKENS
    assert whole["tokenizer.ggml.scores"]["value"] == [0.1] * 40


def test_show_reads_every_format(cli: Cli, example_model: Path) -> None:
    found = json.loads(cli("metadata", "show", example_model, "--json").out)["metadata"]
    assert found["general.architecture"] == {"type": "str", "value": "llama"}
    assert found["tokenizer.ggml.tokens"]["length"] == 4096


def test_set_and_unset(cli: Cli, path: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}é{% endfor %}\n")
    words = (path, "general.name=Other: name", 'general.tags=str[]:["a","b"]', "x.y=i16:-3")
    done = cli("metadata", "set", *words, "--file", f"tokenizer.chat_template={template}")
    assert done.code == 0, done.err
    assert "Example" in done.out
    assert "bytes" in done.out
    fields = GGUFReader(path).fields
    assert fields["general.name"].contents() == "Other: name"
    assert fields["general.tags"].contents() == ["a", "b"]
    assert fields["x.y"].types[0].name == "INT16"
    assert fields["tokenizer.chat_template"].contents() == template.read_text()
    assert cli("verify", path).code == 0
    plan = json.loads(cli("metadata", "unset", path, "x.y", "general.tags", "--json", "--dry-run").out)
    assert plan["changes"]["x.y"] == {"before": {"type": "i16", "value": -3}, "after": None}
    assert plan["bytes_written"] == 0
    assert "x.y" in GGUFReader(path).fields
    done_json = json.loads(cli("metadata", "unset", path, "x.y", "general.tags", "--json").out)
    assert done_json["in_place"] is plan["in_place"] is True
    assert "x.y" not in GGUFReader(path).fields
    assert "nothing to change" in cli("metadata", "set", path, "general.name=Other: name").out
    assert cli("verify", path).code == 0


def test_copy(cli: Cli, path: Path, tmp_path: Path, example_model: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(path.read_bytes())
    words = ("general.name=Source", "tokenizer.chat_template=new", "llama.rope.freq_base=f32:7")
    assert cli("metadata", "set", other, *words).code == 0
    assert cli("metadata", "copy", other, path, "--keys", "tokenizer.chat*").code == 0
    fields = GGUFReader(path).fields
    assert fields["tokenizer.chat_template"].contents() == "new"
    assert fields["general.name"].contents() == "Example"
    assert cli("metadata", "copy", other, path).code == 0
    fields = GGUFReader(path).fields
    assert fields["general.name"].contents() == "Source"
    assert fields["llama.rope.freq_base"].contents() == pytest.approx(0.1)
    refused = cli("metadata", "copy", example_model, path, "-k", "tokenizer.ggml.*")
    assert (refused.code, "4,096 tokens, but token_embd.weight 40 rows" in refused.err) == (2, True)
    none = cli("metadata", "copy", other, path, "-k", "nothing.*")
    assert (none.code, "has no key like nothing.*" in none.err) == (2, True)
    assert cli("verify", path).code == 0


def test_refusals(cli: Cli, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    for words, message in (
        (("set", path), "nothing to set"),
        (("set", path, "new.key=5"), "no key 'new.key' yet, so it needs a type"),
        (("set", path, "llama.rope.freq_base=x"), "cannot hold 'x'"),
        (("set", path, "general.architecture=gemma"), "readers choose names and shapes"),
        (("set", path, "--file", f"general.name={tmp_path}/none"), "no such file"),
        (("unset", path, "general.nme"), "Nearest: general.name"),
        (("unset", path, "general.architecture"), "--force changes it"),
        (("unset", tmp_path / "none.gguf", "general.name"), "no such file"),
    ):
        done = cli("metadata", *words)
        assert done.code in (1, 2)
        assert message in done.err
    assert path.read_bytes() == before
