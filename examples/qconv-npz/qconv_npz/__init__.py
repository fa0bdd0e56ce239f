"""A qconv plugin: model files as NumPy archives (``.npz``), and an encoding of six-bit weights.

An archive holds one array per tensor, so that ``numpy.load("model.npz")["blk.0.attn_q.weight"]`` gives it, and ``qconv.json``, which
holds the metadata and says how each array encodes its tensor: float32 and float16 as they are, everything else as rows of bytes.
"""

from collections.abc import Callable

from qconv.formats.base import Format
from qconv.plugins import hookimpl
from qconv.quantizers.base import Encoding

from .reader import detect, open_archive
from .six import SIX
from .writer import lay_out

__all__ = ["NPZ", "SIX", "register_encodings", "register_formats"]

NPZ = Format(
    "npz",
    "NumPy archive with metadata",
    detect,
    open_archive,
    lay_out,
    suffixes=(".npz",),
)


@hookimpl
def register_encodings(register: Callable[[Encoding], None]) -> None:
    """Add the six-bit encoding."""
    register(SIX)


@hookimpl
def register_formats(register: Callable[[Format], None]) -> None:
    """Add the archive."""
    register(NPZ)
