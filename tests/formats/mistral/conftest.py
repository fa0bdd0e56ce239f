"""What the tests of this form share."""

from __future__ import annotations

import pytest
from qconv_encodings import ENCODINGS

from qconv.formats.architectures import built_in_architectures
from qconv.formats.base import OpenContext


@pytest.fixture
def context() -> OpenContext:
    """Every built-in encoding and architecture."""
    return OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})
