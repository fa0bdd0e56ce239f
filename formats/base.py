"""What every format meets in: a :class:`Model` of lazy :class:`Tensor` values, and the :class:`Layout` of an output.

A reader turns a path into a Model: GGUF metadata keys and canonical tensor names (``blk.0.attn_q.weight``) in GGUF row order. A writer
turns metadata and a list of tensors *without their data* into a Layout: which bytes go where. Between them the application
moves row slabs, so N readers and N writers serve N × N conversions, and nothing is held in memory but slabs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from ..quantizers.base import Encoding
from .metadata import Field, Scalar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .architectures.base import Architecture

__all__ = ["Format", "Layout", "Model", "OpenContext", "OutputTensor", "Part", "Placement", "Tensor", "WriteOptions"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named matrix whose weights stay on disk until rows of them are asked for.

    Attributes:
        name: canonical (GGUF) name.
        shape: NumPy order, the last axis being the row; GGUF's ``ne`` reversed. Leading axes are flattened into rows, so a stack of
            experts (experts, out, in) has ``experts * out`` rows.
        encoding: how ``read`` gives the weights.
        read: ``read(start, stop)`` returns uint8 (stop - start, row bytes), the rows as bytes of ``encoding``. Any thread may call it. A
            reader whose file holds another layout (packed, transposed, sharded) resolves it here.
        origin: where the weights lie, for messages: file and the name that the file gives them.
        part: number of the file that holds it, where a model has several.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    read: Callable[[int, int], NDArray[np.uint8]]
    origin: str = ""
    part: int = 0

    @property
    def columns(self) -> int:
        """Weights per row."""
        return self.shape[-1] if self.shape else 1

    @property
    def row_count(self) -> int:
        """Number of rows over all leading axes; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in ``encoding``."""
        return self.encoding.nbytes(self.shape)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows ``start`` to ``stop`` as float32 (stop - start, columns)."""
        return self.encoding.decode(self.read(start, stop))


@dataclass(frozen=True)
class Model:
    """What a reader found: metadata, lazy tensors, and the files beside them.

    Attributes:
        path: what the user named.
        format: name of the format that read it.
        metadata: GGUF keys to typed values, in the order to write them.
        tensors: canonical names to tensors, in file order.
        files: every file that was opened, for fingerprints and for "output is input" checks.
        side_files: configuration, tokenizer and template files by name, for writers that want them back.
        notes: what the user should know: guesses, dropped tensors, lossy steps.
        close: releases file handles; tensors are dead afterwards.
        container: facts about the file that are no metadata, for ``inspect`` (GGUF: version, byte order, alignment, parts).
        documents: contents of the files that are to lie beside the weights, by name, made by a writer's :attr:`Format.prepare`.
    """

    path: Path
    format: str
    metadata: Mapping[str, Field]
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...] = ()
    side_files: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None
    container: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    documents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string where the file has none (an adapter, an importance matrix)."""
        found = self.metadata.get("general.architecture")
        return found.value if found is not None and isinstance(found.value, str) else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class OpenContext:
    """What a reader may need beyond the path.

    Attributes:
        encodings: every registered encoding by name.
        architectures: every registered architecture by name.
        architecture: the user's ``--as-arch``, to be used instead of what the configuration says.
        pre_tokenizer: the user's ``--pre-tokenizer``, where structure alone does not identify it.
        vocabulary_only: read metadata and tokenizer, no tensors.
    """

    encodings: Mapping[str, Encoding]
    architectures: Mapping[str, Architecture]
    architecture: str | None = None
    pre_tokenizer: str | None = None
    vocabulary_only: bool = False


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written: everything but its data."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        """Bytes that its rows will take."""
        return self.encoding.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor's rows go: ``offset`` in bytes from the start of the part's file."""

    tensor: OutputTensor
    offset: int


@dataclass(frozen=True)
class Part:
    """One file of an output.

    Attributes:
        path: final name.
        size: bytes of the whole file, known before any weight is read.
        placements: tensors with their offsets; all bytes that nothing else covers are zero.
        header: given the lower-case hexadecimal SHA-256 of each placed tensor by name, returns the bytes to write at offset 0.
            Their number does not depend on the digests.
        records: offsets and bytes that a format without an index puts between its tensors.
        finish: given ``read(offset, count)`` of everything above, as written, returns more offsets and bytes: for a format with checksums of
            its own. Their places do not depend on what is read.
    """

    path: Path
    size: int
    placements: tuple[Placement, ...]
    header: Callable[[Mapping[str, str]], bytes]
    records: tuple[tuple[int, bytes], ...] = ()
    finish: Callable[[Callable[[int, int], bytes]], Sequence[tuple[int, bytes]]] | None = None


@dataclass(frozen=True)
class Layout:
    """Every file of an output.

    Attributes:
        parts: the files; the first is the one that users name, and is put in place last.
        folder: where the output is a folder: its path. It appears at once, with every part in it, and all parts lie in it.
        belongings: patterns (``model*.safetensors``) of names that an output of the format may have in its folder. A folder that holds
            anything else is never replaced.
    """

    parts: tuple[Part, ...]
    folder: Path | None = None
    belongings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """What users name: the folder, or the first file."""
        return self.parts[0].path if self.folder is None else self.folder

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a writer lays out its files.

    Attributes:
        alignment: bytes to which tensor data is padded, a power of two; None keeps the source's, or the format's default.
        split_max_size: largest number of tensor bytes per part, or None.
        split_max_tensors: largest number of tensors per part, or None.
        digests: whether digests are stored in the file.
        metadata_only_first: whether the first of several parts holds metadata alone (``--no-tensor-first-split``).
        part_of: number of each tensor's part by name, instead of limits: the parts of another model are kept.
        documents: the files that lie beside the weights, by name: :attr:`Model.documents`.
    """

    alignment: int | None = None
    split_max_size: int | None = None
    split_max_tensors: int | None = None
    digests: bool = True
    metadata_only_first: bool = False
    part_of: Mapping[str, int] | None = None
    documents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Format:
    """One file format: how it is recognised, read and written.

    Attributes:
        name: unique short name (``gguf``).
        description: one line for ``qconv formats``.
        detect: whether a path holds this format, judged by content; must not raise for foreign content.
        open: reads the headers and returns a Model; raises FormatError or ModelError.
        lay_out: ``lay_out(path, metadata, tensors, options)`` returns the Layout of an output; None where qconv only reads.
        prepare: makes a source what the format can hold, before anything is planned: tensors under the format's own names and in its
            own order of rows, repeated or untied where it cannot share, and documents. What comes back is what ``lay_out`` gets. No more than a
            few small tensors may be read. None where the canonical form is the format's own.
        own_types: given a prepared model, the encodings that tensors get where the user asks for no type, by name; None, and tensors that it
            leaves out, keep the source's.
        encodings: names of the encodings that the format holds, where they are few; the first holds float32 values as they are, and stands
            in for a source's encoding that the format lacks. Empty: every encoding that GGUF has a number for.
        mixtures: whether types are recipes that treat tensors differently, by canonical names; False: one encoding for all of a model.
        aliases: other names for ``--to``.
        suffixes: endings (``.gguf``) by which an output's name tells the format.
        folder: whether an output is a folder.
    """

    name: str
    description: str
    detect: Callable[[Path], bool]
    open: Callable[[Path, OpenContext], Model] | None
    lay_out: Callable[[Path, Mapping[str, Field], Sequence[OutputTensor], WriteOptions], Layout] | None = None
    prepare: Callable[[Model, OpenContext], Model] | None = None
    own_types: Callable[[Model], Mapping[str, str]] | None = None
    encodings: tuple[str, ...] = ()
    mixtures: bool = True
    aliases: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    folder: bool = False
