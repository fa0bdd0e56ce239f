"""The built-in plugins, in the order in which they load: plain modules, written as a third party would write them."""

from types import ModuleType

from . import architectures, encodings, formats

__all__ = ["BUILT_IN"]

BUILT_IN: tuple[tuple[str, ModuleType], ...] = (
    ("encodings", encodings),
    ("formats", formats),
    ("architectures", architectures),
)
