"""Models for the runtime's tests."""

from __future__ import annotations

from typing import Any

import pytest
from qconv_encodings import ENCODINGS

from qconv.formats.architectures import built_in_architectures
from qconv.formats.base import OpenContext
from qconv.formats.huggingface.tokenizer import TokenizerResult


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> OpenContext:
    """Every built-in encoding and architecture; models without tokenizer files open too."""

    def read(*arguments: Any, **options: Any) -> TokenizerResult:
        return TokenizerResult({}, ())

    monkeypatch.setattr("qconv.formats.huggingface.reader.read_tokenizer", read)
    return OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})
