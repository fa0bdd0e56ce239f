"""Convert, quantize and check language-model files: any format in, any format out, in one bounded pass.

``qconv.open``, ``qconv.convert_model`` and ``qconv.quantize`` are the Python verbs; they are imported when first used, so that
``import qconv`` is quick. There is no ``qconv.convert`` function, since a room of the package has that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert.api import convert_model, open, quantize

__version__: str

__all__ = ["__version__", "convert_model", "open", "quantize"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("qconv")
        except PackageNotFoundError:  # run from a checkout that was never installed
            return "0+unknown"
    if name in ("convert_model", "open", "quantize"):
        from .convert import api

        return getattr(api, name)
    raise AttributeError(f"module 'qconv' has no attribute {name!r}")
