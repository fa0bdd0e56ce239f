"""The built-in encodings by name, for tests that need no plugin manager."""

from __future__ import annotations

from qconv.quantizers.base import Encoding
from qconv.quantizers.catalog import BUILT_IN

ENCODINGS: dict[str, Encoding] = {encoding.name: encoding for encoding in BUILT_IN}
