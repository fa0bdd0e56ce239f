"""The Python verbs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qconv
from qconv.convert.settings import Settings
from qconv.errors import OutputExistsError
from qconv.formats.gguf.verify import verify_gguf


def test_open_and_quantize(example_model: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    result = qconv.quantize(example_model, tmp_path / "out.gguf", "q8_0", progress=seen.append)
    assert result.paths == (tmp_path / "out.gguf",)
    assert sum(seen) > 7_000_000
    assert verify_gguf(result.paths[0]).ok
    with qconv.open(tmp_path / "out.gguf") as model:
        assert model.tensors["blk.0.attn_q.weight"].encoding.name == "Q8_0"
    with pytest.raises(OutputExistsError):
        qconv.quantize(example_model, tmp_path / "out.gguf", "q8_0")
    qconv.quantize(example_model, tmp_path / "out.gguf", settings=Settings(force=True))


def test_convert_model_tells_the_format_by_the_name(example_model: Path, tmp_path: Path) -> None:
    assert qconv.convert_model(example_model, tmp_path / "out.ggjt", "q8_0").paths == (tmp_path / "out.ggjt",)
    assert (tmp_path / "out.ggjt").read_bytes()[:4] == b"tjgg"
    qconv.convert_model(tmp_path / "out.ggjt", tmp_path / "back", to="gguf")
    with qconv.open(tmp_path / "back") as model:
        assert model.format == "gguf"


def test_import_is_quick_and_names_are_complete() -> None:
    code = "import sys, qconv; print('numpy' in sys.modules, sorted(set(qconv.__all__) - set(dir(qconv))), callable(qconv.open))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "['__version__',", "'convert_model',", "'open',", "'quantize']", "True"]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = qconv.nonsense
