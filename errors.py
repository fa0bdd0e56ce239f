"""Every error that qconv raises on purpose.

::

    QconvError
    ├── UsageError                    the command or call contradicts itself            (ValueError)
    ├── FormatError                   a file is not what it claims to be                (ValueError)
    │   ├── TruncatedError            a file ends before its contents do                (EOFError)
    │   ├── UnknownFormatError        no reader recognises the path
    │   └── MissingFileError          a file that another one names is absent           (FileNotFoundError)
    ├── ModelError                    the files are sound, the model in them is not     (ValueError)
    │   ├── UnknownArchitectureError  no architecture description fits
    │   ├── UnmappedTensorError       tensor names that the architecture does not know
    │   ├── MissingTensorError        tensors that the architecture needs are absent
    │   ├── ShapeError                a tensor's shape contradicts the configuration
    │   └── TokenizerError            a vocabulary that cannot be converted faithfully
    ├── EncodingError                 a tensor cannot be held in the encoding asked for (ValueError)
    │   ├── UnknownTypeError          no encoding or recipe of that name                (LookupError)
    │   └── NonFiniteError            NaN or infinity in a source tensor
    ├── OutputError                   the result cannot be written
    │   ├── OutputExistsError         the output is there already, or is the input      (FileExistsError)
    │   ├── DiskFullError             the file system has too little room               (OSError)
    │   └── BusyError                 another process writes the same output
    ├── VerificationError             bytes differ from their recorded digest
    └── PluginError                   a plugin contradicts the contract or another one
        └── DuplicateNameError        two plugins register one name                     (ValueError)

Every message says what is wrong, where (``path``, ``tensor``, ``offset``) and what to do about it (``remedy``).
The command line prints :func:`describe` of any of these and exits with 1 (``UsageError`` and ``UnknownTypeError``: 2).
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BusyError",
    "DiskFullError",
    "DuplicateNameError",
    "EncodingError",
    "FormatError",
    "MissingFileError",
    "MissingTensorError",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "OutputExistsError",
    "PluginError",
    "QconvError",
    "ShapeError",
    "TokenizerError",
    "TruncatedError",
    "UnknownArchitectureError",
    "UnknownFormatError",
    "UnknownTypeError",
    "UnmappedTensorError",
    "UsageError",
    "VerificationError",
    "describe",
]


class QconvError(Exception):
    """Root of the tree: ``message`` says what, the attributes say where and what to do.

    Attributes:
        path: the file or folder at fault, if there is one.
        tensor: the tensor at fault, by the name that its file gives it.
        offset: position in ``path``, in bytes from its start.
        remedy: one sentence that tells the user what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else Path(path)
        self.tensor = tensor
        self.offset = offset
        self.remedy = remedy

    def __str__(self) -> str:
        """The whole sentence: where, what, remedy."""
        return describe(self)


def describe(error: QconvError) -> str:
    """Return ``path: tensor T: at byte N: message. Remedy.`` with the parts that are known.

    >>> describe(TruncatedError("the header ends early", path="m.gguf", offset=24, remedy="Download it again."))
    'm.gguf: at byte 24: the header ends early. Download it again.'
    """
    where = [str(error.path)] if error.path is not None else []
    if error.tensor is not None:
        where.append(f"tensor {error.tensor}")
    if error.offset is not None:
        where.append(f"at byte {error.offset}")
    sentence = ": ".join([*where, error.message])
    if not sentence.endswith((".", "!", "?")):
        sentence += "."
    return sentence if error.remedy is None else f"{sentence} {error.remedy}"


class UsageError(QconvError, ValueError):
    """The options of a command, or the arguments of a call, contradict each other."""


class FormatError(QconvError, ValueError):
    """A file is not what it claims to be: a length, an offset, a type or a magic number is wrong."""


class TruncatedError(FormatError, EOFError):
    """A file ends before its contents do, as after a broken download."""


class UnknownFormatError(FormatError):
    """No registered reader recognises the path."""


class MissingFileError(FormatError, FileNotFoundError):
    """A file that the user or another file names is absent."""


class ModelError(QconvError, ValueError):
    """Every file is sound, but together they make no model that can be converted."""


class UnknownArchitectureError(ModelError):
    """No registered architecture description fits the model."""


class UnmappedTensorError(ModelError):
    """The model holds tensors that its architecture's name map does not know."""


class MissingTensorError(ModelError):
    """The model lacks tensors that its architecture needs."""


class ShapeError(ModelError):
    """The shape of a tensor contradicts the model's configuration."""


class TokenizerError(ModelError):
    """The vocabulary is absent, inconsistent, or cannot be identified."""


class EncodingError(QconvError, ValueError):
    """A tensor cannot be held in the encoding that was asked for."""


class UnknownTypeError(EncodingError, LookupError):
    """No encoding or recipe has the name; the message lists the nearest ones."""


class NonFiniteError(EncodingError):
    """A source tensor holds NaN or infinity; ``tensor`` and the message name the tensor and row."""


class OutputError(QconvError):
    """The result cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already (``--force`` replaces it), or is the input itself (nothing does)."""


class DiskFullError(OutputError, OSError):
    """The target's file system, or a limit of the user's, has too little room for the result."""


class BusyError(OutputError):
    """Another process is writing the same output."""


class VerificationError(QconvError):
    """Bytes of a file differ from the digest recorded for them."""


class PluginError(QconvError):
    """A plugin registers something that contradicts the contract of its kind."""


class DuplicateNameError(PluginError, ValueError):
    """Two plugins register the same name."""
