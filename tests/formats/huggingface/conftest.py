"""Stand-ins for what the tests of weights and configurations do not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qconv_encodings import ENCODINGS

from qconv.formats.architectures import built_in_architectures
from qconv.formats.base import OpenContext
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult
from qconv.formats.metadata import string


@pytest.fixture
def context() -> OpenContext:
    """Every built-in encoding and architecture."""
    return OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models without tokenizer files open, with llama.cpp's marker for "no vocabulary"."""

    def read(folder: Path, *arguments: Any, **options: Any) -> TokenizerResult:
        return TokenizerResult({"tokenizer.ggml.model": string("none")}, ())

    monkeypatch.setattr("qconv.formats.huggingface.reader.read_tokenizer", read)
