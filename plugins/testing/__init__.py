"""What a plugin must keep to, as tests to inherit: one class each for encodings, readers and writers. They need pytest.

A plugin's tests subclass a contract and override its fixtures; qconv's own encodings and formats pass the same tests::

    class TestMyEncoding(EncodingContract):
        @pytest.fixture
        def encoding(self) -> Encoding:
            return my_plugin.ENCODING
"""

from .encodings import EncodingContract
from .readers import ReaderContract
from .writers import WriterContract, write_layout

__all__ = ["EncodingContract", "ReaderContract", "WriterContract", "write_layout"]
