"""The plan of a conversion: every output tensor's encoding, size and place, known before a weight is read.

The same value is printed by ``--dry-run``, checked against the disk, worked off by :mod:`.execute`, and fingerprinted for the
journal. What is planned is exact: sizes and offsets are those of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from .. import __version__
from ..errors import EncodingError, OutputError, UsageError
from ..formats.base import Format, Layout, Model, OpenContext, OutputTensor, Tensor, WriteOptions
from ..formats.metadata import Field, string, uint32
from ..formats.scales import fold_scales
from ..quantizers.base import EncodeOptions, Encoding, ImportanceUse
from ..quantizers.recipes.choose import unmatched_rules
from ..quantizers.recipes.facts import TensorInfo
from ..quantizers.recipes.request import Choice, RecipeRequest
from ..quantizers.recipes.situation import visiting_order
from ..quantizers.recipes.tables import find_recipe
from .choices import COPY, OWN, choose_encodings, stand_in_notes, type_for
from .settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..formats.architectures import Architecture
    from ..quantizers.importance import ImportanceMatrix

__all__ = ["Plan", "Step", "make_plan"]

# bytes that Python, NumPy, numba and its compiler take at work: what scripts/bench_conversion.py measures, and some room
_BASE_MEMORY = 330 << 20
_SLAB_MEMORY = 24 << 20  # per thread: the slab in both encodings, in float32, and those that wait for the digest
_FACTOR_BYTES = 24  # per weight of a second moment, while it is factorized: it, float64 work, the factor and kept ones
_RECEIPT = "qconv.receipt."  # keys that speak of one file, not of what is made from it
_DERIVED = frozenset({"general.file_type", "general.quantization_version", "qconv.version"})  # written anew, at the end
_NO_ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({})
_SOURCE_DTYPES = (
    "qconv.source.dtypes"  # what the weights were before, which says nothing of weights that were rounded since
)
_WIDENED = frozenset({("BF16", "F32"), ("F16", "F32")})
_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION


@dataclass(frozen=True)
class Step:
    """One tensor's way from source to output.

    Attributes:
        source: the tensor to read.
        target: the tensor to write.
        choice: why it gets its encoding.
        importance: given an expert's number, the importance vector of its columns; None where the encoder takes none.
        feedback: given float32 rows and the expert's number that they belong to, returns them encoded with error feedback, or None where
            nothing is known of the expert's inputs; None where the tensor is encoded without.
    """

    source: Tensor
    target: OutputTensor
    choice: Choice
    importance: Callable[[int], NDArray[np.float32]] | None = None
    feedback: Callable[[NDArray[np.float32], int], NDArray[np.uint8] | None] | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before work starts.

    Attributes:
        model: the source, as the target's format prepares it.
        target: name of the target's format.
        recipe: name of the recipe, upper-case.
        steps: tensors in the order of the output.
        metadata: what the output will hold.
        layout: the output's files.
        encode_options: effort and objective.
        threads: worker threads.
        allow_nonfinite: whether NaN and infinity become zeros.
        notes: what the user should know.
        lay_out: returns the layout with other metadata instead.
    """

    model: Model
    target: str
    recipe: str
    steps: tuple[Step, ...]
    metadata: Mapping[str, Field]
    layout: Layout
    encode_options: EncodeOptions
    threads: int
    allow_nonfinite: bool
    notes: tuple[str, ...]
    lay_out: Callable[[Mapping[str, Field]], Layout]

    @property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(step.source.row_count * step.source.columns for step in self.steps)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all output tensors, without headers and padding."""
        return sum(step.target.nbytes for step in self.steps)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors."""
        return 8 * self.tensor_bytes / self.weights if self.weights else 0.0

    @property
    def fallback_share(self) -> float:
        """Share of the weights whose tensor got another encoding than the recipe wanted, because its rows did not fit."""
        if not self.weights:
            return 0.0
        fallen = (step.source for step in self.steps if step.choice.is_fallback)
        return sum(tensor.row_count * tensor.columns for tensor in fallen) / self.weights

    @property
    def peak_memory(self) -> int:
        """Bytes of anonymous memory that the run may take at most."""
        widths = [step.source.columns for step in self.steps if step.feedback is not None]
        stacks = any(step.feedback is not None and len(step.source.shape) > 2 for step in self.steps)
        at_once = (
            self.threads if stacks else 2
        )  # factors in the making: of as many experts, or of this tensor and the next
        return _BASE_MEMORY + self.threads * _SLAB_MEMORY + at_once * _FACTOR_BYTES * max(widths, default=0) ** 2

    def fingerprint(self) -> str:
        """Return a digest of everything that the output's bytes depend on; source files count by size and time of change."""
        sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.model.files]
        steps = [
            (s.target.name, s.target.shape, s.source.encoding.name, s.target.encoding.name, s.importance is not None)
            for s in self.steps
        ]
        blank = {step.target.name: "0" * 64 for step in self.steps}
        headers = [(part.path.name, part.size, _sha256(part.header(blank))) for part in self.layout.parts]
        options = (self.encode_options.effort, self.encode_options.objective, self.allow_nonfinite)
        return _sha256(json.dumps([__version__, sources, steps, headers, options]).encode())


def make_plan(
    model: Model,
    output: Path,
    target: Format,
    settings: Settings,
    encodings: Mapping[str, Encoding],
    importance: ImportanceMatrix | None = None,
    float_source: bool = False,
    architectures: Mapping[str, Architecture] = _NO_ARCHITECTURES,
) -> Plan:
    """Decide everything about converting ``model`` to ``output``.

    ``float_source`` says that the source is a training checkpoint: tensors that are never quantized become F32, as runtimes expect.
    ``architectures`` are needed by formats that rename tensors.

    Raises EncodingError, UsageError or UnknownTypeError for a request that cannot be met, and whatever the writer refuses.
    """
    if target.lay_out is None:
        raise OutputError(f"{target.name} files can be read but not written")
    if not model.tensors and settings.imatrix is not None:
        raise UsageError("a vocabulary alone has no weights for an importance matrix")
    if target.encodings:  # scales beside tensors are GGUF's
        model = replace(model, tensors=MappingProxyType(fold_scales(model.tensors)))
    if target.prepare is not None:
        overridden = MappingProxyType({**model.metadata, **settings.overrides})
        model = target.prepare(replace(model, metadata=overridden), OpenContext(encodings, architectures))
    asked = COPY if settings.type_name.lower() == "auto" else settings.type_name
    recipe, file_type = type_for(target, asked), None
    if target.mixtures:
        found = find_recipe(asked, encodings)
        recipe, file_type = found.name, found.file_type
    request = _request(recipe, settings, importance, "F32" if float_source else "keep")
    in_order = settings.keep_split or not target.mixtures
    names = list(model.tensors) if in_order else visiting_order(model.tensors)
    ordered = [model.tensors[name] for name in names]
    infos = [TensorInfo(tensor.name, tensor.shape, tensor.encoding.name) for tensor in ordered]
    choices = choose_encodings(model, infos, target, request, encodings)
    steps = _steps(model.tensors, choices, encodings, importance)
    metadata = _metadata(model, file_type, steps, settings, importance)
    write = replace(settings.write, documents=model.documents)
    if settings.keep_split:
        write = replace(write, part_of={tensor.name: tensor.part for tensor in ordered})
    lay_out = partial(_lay_out, target.lay_out, output, [step.target for step in steps], write)
    unused = [f"--tensor-type {pattern!r} matches no tensor" for pattern in unmatched_rules(infos, request, encodings)]
    return Plan(
        model=model,
        target=target.name,
        recipe=recipe,
        steps=steps,
        metadata=metadata,
        layout=lay_out(metadata),
        encode_options=settings.encode,
        threads=settings.threads,
        allow_nonfinite=settings.allow_nonfinite,
        notes=(*model.notes, *stand_in_notes(choices, target), *unused),
        lay_out=lay_out,
    )


def _request(
    recipe: str, settings: Settings, importance: ImportanceMatrix | None, unquantized: Literal["F32", "keep"]
) -> RecipeRequest:
    """Return what the rules that choose types are asked."""
    return RecipeRequest(
        type=recipe,
        compat=settings.compat,
        tensor_rules=settings.tensor_rules,
        output_tensor_type=settings.output_tensor_type,
        token_embedding_type=settings.token_embedding_type,
        leave_output_tensor=settings.leave_output_tensor,
        pure=settings.pure,
        allow_requantize=settings.allow_requantize,
        importance=frozenset() if importance is None else frozenset(importance.entries),
        no_fallback=settings.no_fallback,
        unquantized=unquantized,
        keep_order=settings.keep_split,
    )


def _steps(
    tensors: Mapping[str, Tensor],
    choices: Sequence[Choice],
    encodings: Mapping[str, Encoding],
    importance: ImportanceMatrix | None,
) -> tuple[Step, ...]:
    """Return a step per choice; a tensor that gets another encoding takes its scale in, which then needs no step."""
    changed = [choice.name for choice in choices if choice.encoding != tensors[choice.name].encoding.name]
    folded = fold_scales(tensors, changed)
    return tuple(
        _step(folded[choice.name], choice, encodings, importance) for choice in choices if choice.name in folded
    )


def _lay_out(
    writer: Callable[[Path, Mapping[str, Field], Sequence[OutputTensor], WriteOptions], Layout],
    output: Path,
    tensors: Sequence[OutputTensor],
    options: WriteOptions,
    metadata: Mapping[str, Field],
) -> Layout:
    """Return the layout, metadata being the last argument."""
    return writer(output, metadata, tensors, options)


def _step(tensor: Tensor, choice: Choice, encodings: Mapping[str, Encoding], matrix: ImportanceMatrix | None) -> Step:
    encoding = encodings[choice.encoding]
    target = OutputTensor(tensor.name, tensor.shape, encoding)
    if tensor.encoding.name != encoding.name and encoding.load is None:
        raise EncodingError(f"{encoding.name} has no encoder", tensor=tensor.name, remedy="Choose another --type.")
    if matrix is None or encoding.importance is ImportanceUse.UNUSED or tensor.name not in matrix.entries:
        return Step(tensor, target, choice)
    if tensor.encoding.name == encoding.name:
        return Step(tensor, target, choice)
    experts = tensor.shape[0] if len(tensor.shape) > 2 else 1
    matrix.vector(
        tensor.name, tensor.columns, 0, experts
    )  # raises now, not in the middle of the work, if sizes disagree
    return Step(tensor, target, choice, partial(_vector, matrix, tensor, experts))


def _vector(matrix: ImportanceMatrix, tensor: Tensor, experts: int, expert: int) -> NDArray[np.float32]:
    """Return the importance of one expert's columns; made when its slabs come up, since all of a large model's would take gigabytes."""
    return matrix.vector(tensor.name, tensor.columns, expert, experts)


def _metadata(
    model: Model,
    file_type: int | None,
    steps: tuple[Step, ...],
    settings: Settings,
    importance: ImportanceMatrix | None,
) -> dict[str, Field]:
    """Return the source's metadata with what the conversion changes."""
    fields = {
        key: field for key, field in model.metadata.items() if key not in _DERIVED and not key.startswith(_RECEIPT)
    }
    if steps:
        number = _dominant_file_type(steps) if file_type is None else file_type
        if number is not None:
            fields["general.file_type"] = uint32(number)
        if any(step.target.encoding.is_quantized for step in steps):
            fields["general.quantization_version"] = uint32(_QUANTIZATION_VERSION)
    if any(_rounds(step) for step in steps):
        fields.pop(_SOURCE_DTYPES, None)
    fields["qconv.version"] = string(__version__)
    if importance is not None and settings.imatrix is not None:
        fields["quantize.imatrix.file"] = string(settings.imatrix.name)
        fields["quantize.imatrix.entries_count"] = uint32(len(importance.entries))
        if importance.datasets:
            fields["quantize.imatrix.dataset"] = string(importance.datasets[0])
        if importance.chunk_count:
            fields["quantize.imatrix.chunks_count"] = uint32(importance.chunk_count)
    fields.update(settings.overrides)
    return fields


def _rounds(step: Step) -> bool:
    """Whether a step leaves plain floats that are not what the source's training left."""
    source, target = step.source.encoding, step.target.encoding
    if source.name == target.name or target.is_quantized or step.choice.why == OWN:
        return False
    return (source.name, target.name) not in _WIDENED


def _dominant_file_type(steps: tuple[Step, ...]) -> int | None:
    """Return the file type of the encoding that most weights have, where one of that name exists."""
    weights: Counter[str] = Counter()
    for step in steps:
        weights[step.target.encoding.name] += step.source.row_count * step.source.columns
    try:
        return find_recipe(weights.most_common(1)[0][0]).file_type
    except EncodingError:
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
