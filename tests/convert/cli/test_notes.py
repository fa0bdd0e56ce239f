"""Commands that run a model say what they do not understand of its file: once, on standard error."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_cli import Cli
from standard_input import pipe

NOTE = "note: qconv does not know what the file says in llama.logit_scale (0.5) for the architecture llama"
TEXT = ("--text", "PROSE", "-c", 32, "--chunks", 2)
COMMANDS = {
    "perplexity": ("perplexity", "MODEL", *TEXT),
    "generate": ("generate", "MODEL", "-p", "The old man", "-n", 2),
    "chat": ("chat", "MODEL", "--chat-template", "TEMPLATE", "-n", 2),
    "imatrix": ("imatrix", "MODEL", *TEXT, "-o", "OUTPUT"),
    "calibrate": ("calibrate", "MODEL", *TEXT, "-o", "OUTPUT"),
    "validate": ("validate", "MODEL", "MODEL", *TEXT, "--receipt", "OUTPUT"),
    "convert": ("convert", "MODEL", "OUTPUT", "--to", "hf"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strange_key_is_told_once(
    command: str, cli: Cli, example_model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", "f16").code == 0
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8")
    places = {"MODEL": path, "PROSE": root / "docs" / "design.md", "OUTPUT": tmp_path / "out", "TEMPLATE": template}
    words = [places.get(str(word), word) for word in COMMANDS[command]]
    for strange in (False, True):
        if strange:
            assert cli("metadata", "set", path, "llama.logit_scale=f32:0.5").code == 0
        pipe(monkeypatch, b"Who are you?\n")
        done = cli(
            *words, *(("--force",) if strange and "OUTPUT" in COMMANDS[command] and command != "validate" else ())
        )
        assert done.code == 0, done.err
        assert done.err.count(NOTE) == strange
        assert NOTE not in done.out
