"""Two models, of any formats, compared tensor by tensor: names are canonical, so a checkpoint and what was made of it can be compared.

Where encodings agree, the bytes are compared, and their SHA-256 told; where they differ, or the encodings do, the weights are decoded to float32 and
their differences measured. Rows are read a slab at a time, so memory does not grow with the models.

A model without ``output.weight`` has its embeddings in that place. Keys that speak of a file rather than of the model in it (:data:`FILE_KEYS`) are not compared.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import numpy as np

from ..formats.base import Model, Tensor
from ..formats.metadata import Field
from .editing.edit_metadata import Change, same_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FILE_KEYS",
    "Difference",
    "TensorDifference",
    "Verdict",
    "diff_metadata",
    "diff_tensors",
    "first_difference",
]

FILE_KEYS: Final = (
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "qconv.*",
    "quantize.*",
    "split.*",
)
_SLAB_WEIGHTS: Final = 1 << 20


class Verdict(StrEnum):
    """What came of comparing one tensor; the worst are the first."""

    ONLY_FIRST = "only in the first"
    ONLY_SECOND = "only in the second"
    SHAPE = "other shape"
    UNREADABLE = "cannot be decoded"
    DIFFERENT = "other values"
    EQUAL = "same values"
    SAME = "same bytes"

    @property
    def is_difference(self) -> bool:
        """Whether the models differ here; another encoding of the same values is no difference."""
        return self not in (Verdict.EQUAL, Verdict.SAME)


@dataclass(frozen=True)
class TensorDifference:
    """One tensor in both models.

    Attributes:
        name: canonical name.
        verdict: what came of it.
        shapes: NumPy order, of the first and of the second, None where it is absent.
        encodings: names, as ``shapes``.
        max_abs: largest absolute difference of two weights; None where values were not compared.
        relative: root of the sum of squared differences over that of the first's squared weights.
        non_finite: number of places where one weight or both are no finite number and they are not the same.
        sha256: of the bytes of both, where encodings agree.
    """

    name: str
    verdict: Verdict
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    encodings: tuple[str | None, str | None]
    max_abs: float | None = None
    relative: float | None = None
    non_finite: int = 0
    sha256: tuple[str, str] | None = None

    @property
    def badness(self) -> tuple[int, float, float, str]:
        """Sorts the worst first."""
        return (
            list(Verdict).index(self.verdict),
            -math.inf if self.non_finite else -(self.relative or 0),
            -(self.max_abs or 0),
            self.name,
        )


@dataclass(frozen=True)
class Difference:
    """Everything that was compared; tensors are sorted, the worst first."""

    tensors: tuple[TensorDifference, ...]
    metadata: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether the models are the same."""
        return not self.metadata and not any(it.verdict.is_difference for it in self.tensors)

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """Number of tensors by verdict."""
        return Counter(it.verdict for it in self.tensors)


def diff_metadata(first: Model, second: Model) -> tuple[Change, ...]:
    """Return the keys of the models, as opposed to their files, that differ in type or value."""
    keys = [*first.metadata, *(key for key in second.metadata if key not in first.metadata)]
    pairs = [
        Change(key, first.metadata.get(key), second.metadata.get(key))
        for key in keys
        if not any(fnmatchcase(key, pattern) for pattern in FILE_KEYS)
    ]
    return tuple(pair for pair in pairs if not same_value(pair.before, pair.after))


def first_difference(one: Field, other: Field) -> tuple[int, int]:
    """Return how many elements of two arrays differ, those that only one has included, and the index of the first."""
    left, right = _elements(one), _elements(other)
    places = [index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]]
    shorter, longer = sorted((len(left), len(right)))
    return len(places) + longer - shorter, places[0] if places else shorter


def _elements(field: Field) -> Sequence[object]:
    if isinstance(field.value, np.ndarray):
        return list(field.value.tolist())
    return [field.value] if isinstance(field.value, bool | int | float | str) else list(field.value)


def diff_tensors(
    first: Model,
    second: Model,
    *,
    chosen: Callable[[str], bool] = lambda name: True,
    threads: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[TensorDifference, ...]:
    """Compare the tensors whose names are ``chosen``; ``progress`` is called with the bytes of the first that were just
    compared, by one thread at a time.

    Raises what reading the models raises.
    """
    names = [name for name in {**first.tensors, **second.tensors} if chosen(name)]
    pairs = [(name, (_tensor(first, name), _tensor(second, name))) for name in names]
    comparison = _Comparison(progress)
    with ThreadPoolExecutor(threads, thread_name_prefix="qconv") as pool:
        # the largest first, so that no thread starts one when the others are done
        pairs.sort(key=lambda pair: 0 if pair[1][0] is None else -pair[1][0].nbytes)
        futures = [pool.submit(comparison.compare, name, *pair) for name, pair in pairs]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            comparison.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tuple(sorted(found, key=lambda it: it.badness))


def _tensor(model: Model, name: str) -> Tensor | None:
    """Return the tensor that plays the part of ``name``: an output that is absent is tied to the embeddings."""
    return model.tensors.get(name) or (model.tensors.get("token_embd.weight") if name == "output.weight" else None)


class _Comparison:
    """State that the threads share."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.stop = threading.Event()
        self._progress = progress
        self._lock = threading.Lock()

    def compare(self, name: str, first: Tensor | None, second: Tensor | None) -> TensorDifference:
        """Compare one tensor of both models."""
        if first is None or second is None:
            verdict = Verdict.ONLY_SECOND if first is None else Verdict.ONLY_FIRST
            return _difference(name, first, second, verdict)
        if first.shape != second.shape:
            return _difference(name, first, second, Verdict.SHAPE)
        if first.encoding.name == second.encoding.name:
            digests = self._digests(first, second)
            if digests[0] == digests[1]:
                return _difference(name, first, second, Verdict.SAME, _Errors(), digests)
        else:
            digests = None
        if first.encoding.load is None or second.encoding.load is None:
            return _difference(name, first, second, Verdict.UNREADABLE, None, digests)
        errors = _Errors()
        for start, stop in self._slabs(first, counted=digests is None):
            errors.add(first.rows(start, stop), second.rows(start, stop))
        equal = digests is None and errors.largest == 0 and not errors.non_finite
        return _difference(name, first, second, Verdict.EQUAL if equal else Verdict.DIFFERENT, errors, digests)

    def _digests(self, first: Tensor, second: Tensor) -> tuple[str, str]:
        one, other = hashlib.sha256(), hashlib.sha256()
        for start, stop in self._slabs(first, counted=True):
            one.update(np.ascontiguousarray(first.read(start, stop)).data)
            other.update(np.ascontiguousarray(second.read(start, stop)).data)
        return one.hexdigest(), other.hexdigest()

    def _slabs(self, tensor: Tensor, counted: bool) -> Iterator[tuple[int, int]]:
        """Cut a tensor into slabs of rows; report each that was looked at, if they are ``counted``."""
        rows = max(1, _SLAB_WEIGHTS // max(1, tensor.columns))
        width = tensor.nbytes // max(1, tensor.row_count)
        for start in range(0, tensor.row_count, rows):
            if self.stop.is_set():
                return
            stop = min(start + rows, tensor.row_count)
            yield start, stop
            if counted:
                with self._lock:
                    self._progress((stop - start) * width)


class _Errors:
    """Differences of float32 weights, summed in float64."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.non_finite = 0
        self._squares = 0.0
        self._signal = 0.0

    def add(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
        """Take rows of both tensors."""
        left, right = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(left) & np.isfinite(right)
        if not finite.all():
            alike = (left == right) | (np.isnan(left) & np.isnan(right))
            self.non_finite += int((~finite & ~alike).sum())
            left, right = np.where(finite, left, 0), np.where(finite, right, 0)
        self._signal += float(np.vdot(left, left))
        left -= right
        self._squares += float(np.vdot(left, left))
        self.largest = max(self.largest, float(np.abs(left, out=left).max(initial=0)))

    @property
    def relative(self) -> float:
        """Root of the squared differences over the squared weights of the first; infinite where that has none."""
        if self._squares == 0:
            return 0.0
        return math.sqrt(self._squares / self._signal) if self._signal else math.inf


def _difference(
    name: str,
    first: Tensor | None,
    second: Tensor | None,
    verdict: Verdict,
    errors: _Errors | None = None,
    digests: tuple[str, str] | None = None,
) -> TensorDifference:
    return TensorDifference(
        name=name,
        verdict=verdict,
        shapes=(None if first is None else first.shape, None if second is None else second.shape),
        encodings=(None if first is None else first.encoding.name, None if second is None else second.encoding.name),
        max_abs=None if errors is None else errors.largest,
        relative=None if errors is None else errors.relative,
        non_finite=0 if errors is None else errors.non_finite,
        sha256=digests,
    )
