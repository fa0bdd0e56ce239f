"""Convert, quantize and check language-model files: any format in, any format out, in one bounded pass."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qconv")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
