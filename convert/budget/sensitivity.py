"""What each type costs each tensor: the relative error of its weights, and how much the model's predictions suffer from it.

The error of a type is the importance-weighted squared error of encoding a sample of a tensor's rows, over what writing zeros would
leave; with importance from an imatrix that is the relative error of the tensor's products. With ``--method gptq`` the sample is encoded with
error feedback, and the whole second moment weighs errors. What an error means to the model differs
between tensors by orders of magnitude. Where there is a text, the tensor alone is given a type, the text is run, and the divergence
of the predictions from the source's is what that error costs; errors of other types cost in proportion, and costs of several tensors
add up, since small perturbations of the predictions do (V. Malinovskii et al., Pushing the Limits of Large Language Model Quantization via the
Linearity Theorem, 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...formats.base import Model, Tensor
from ...formats.predictions import block_of, first_prediction
from ...quantizers.base import Encoding, ImportanceUse
from ...quantizers.recipes.choose import needs_importance
from ...runtime.building.network import load_network
from ...runtime.measuring.bases import compare_with_base
from ...runtime.measuring.compact_base import DEFAULT_KEPT, TopRows, encode_top
from ...runtime.measuring.perplexity import scored_rows
from .checkpoint import Checkpoint
from .rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...runtime.measuring.windows import Windows

__all__ = [
    "Candidate",
    "TensorCosts",
    "base_rows",
    "divergence",
    "guessed_sensitivity",
    "measure_costs",
    "possible_types",
    "probe",
]

_SAMPLE_WEIGHTS = 1 << 20  # of a tensor, in pieces that are spread evenly over its rows
_PIECES = 8
_BATCH_TOKENS = 8192  # share one encoding of the weights
_PROBE_BITS = 3.4  # an error large enough to stand out from rounding, and small enough for costs to add up
# what a weight's error costs, beside that of most matrices
_GUESSES = (("output.weight", 4.0), ("attn_v", 2.0), ("ffn_down", 1.5))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One type that a tensor may get.

    Attributes:
        encoding: its name.
        nbytes: of the whole tensor.
        error: relative weighted squared error, 0 to about 1.
    """

    encoding: str
    nbytes: int
    error: float


@dataclass(frozen=True)
class TensorCosts:
    """A tensor's types and what they cost.

    Attributes:
        name: canonical name.
        weights: number of weights.
        candidates: in the order of their size.
        sensitivity: divergence of the predictions, in nats per token, for a relative error of 1.
    """

    name: str
    weights: int
    candidates: tuple[Candidate, ...]
    sensitivity: float

    def costs(self) -> NDArray[np.float64]:
        """Return float64 (candidates,): what each adds to the divergence of the predictions."""
        return self.sensitivity * np.array([it.error for it in self.candidates])


def guessed_sensitivity(name: str, share: float) -> float:
    """Return how sensitive a tensor with ``share`` of all weights is likely to be: by size, and more where mixtures by hand spend more."""
    part = name.removeprefix("blk.").partition(".")[2]
    return share * next((factor for stem, factor in _GUESSES if (part or name).startswith(stem)), 1.0)


def possible_types(tensors: Sequence[Tensor], encodings: Sequence[Encoding], rounding: Rounding) -> list[TensorCosts]:
    """Return the types that fit each tensor with their sizes, no error measured.

    Types that need importance are left out for tensors without an entry.
    """
    return [
        TensorCosts(
            tensor.name,
            tensor.row_count * tensor.columns,
            tuple(
                sorted(
                    (
                        Candidate(it.name, it.nbytes(tensor.shape), 0.0)
                        for it in _possible(tensor, encodings, rounding.has_importance(tensor.name))
                    ),
                    key=lambda it: it.nbytes,
                )
            ),
            1.0,
        )
        for tensor in tensors
    ]


def _possible(tensor: Tensor, encodings: Sequence[Encoding], entry: bool) -> list[Encoding]:
    return [it for it in encodings if it.fits(tensor.columns) and (entry or not _needs_importance(tensor, it))]


def measure_costs(
    tensors: Sequence[Tensor],
    encodings: Sequence[Encoding],
    rounding: Rounding,
    *,
    threads: int = 1,
    advance: Callable[[str], None] = lambda name: None,
) -> list[TensorCosts]:
    """Measure every one of :func:`possible_types`; all tensors are equally sensitive until :func:`probe` has been asked.

    ``advance`` is called with the name of each finished tensor.
    """

    def measured(tensor: Tensor) -> TensorCosts:
        sample = _sample(tensor)
        entry = rounding.has_importance(tensor.name)
        found = []
        for encoding in _possible(tensor, encodings, entry):
            error = _relative_error(tensor, sample, encoding, rounding)
            found.append(Candidate(encoding.name, encoding.nbytes(tensor.shape), error))
        advance(tensor.name)
        found.sort(key=lambda it: (it.nbytes, it.error))
        return TensorCosts(tensor.name, tensor.row_count * tensor.columns, tuple(found), 1.0)

    with rounding.alone(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(measured, tensors))


def _needs_importance(tensor: Tensor, encoding: Encoding) -> bool:
    return encoding.importance is ImportanceUse.REQUIRED or needs_importance(tensor.name, encoding.name)


def _sample(tensor: Tensor) -> list[tuple[int, NDArray[np.float32]]]:
    """Return pieces of rows, each within one expert, with the expert's number."""
    wanted = max(1, min(tensor.row_count, _SAMPLE_WEIGHTS // max(1, tensor.columns)))
    rows = tensor.shape[-2] if len(tensor.shape) > 2 else tensor.row_count
    length = max(1, wanted // _PIECES)
    starts = np.linspace(0, tensor.row_count - length, min(_PIECES, wanted)).astype(int)
    pieces = []
    for start in map(int, starts):
        expert = start // rows
        first = min(start, max(expert * rows, (expert + 1) * rows - length))
        pieces.append((expert, tensor.rows(first, min(first + length, (expert + 1) * rows))))
    return pieces


def _relative_error(
    tensor: Tensor,
    sample: Sequence[tuple[int, NDArray[np.float32]]],
    encoding: Encoding,
    rounding: Rounding,
) -> float:
    lost = whole = 0.0
    for expert, rows in sample:
        difference = encoding.decode(rounding.encode(tensor, encoding, rows, expert)) - rows
        lost += rounding.cost(tensor, difference, expert)
        whole += rounding.cost(tensor, rows, expert)
    return lost / whole if whole else 0.0


def probe(
    model: Model,
    costs: Sequence[TensorCosts],
    encodings: Mapping[str, Encoding],
    rounding: Rounding,
    windows: Windows,
    threads: int = 1,
    advance: Callable[[str], None] = lambda name: None,
    move: Callable[[float], None] = lambda tensors: None,
    kept: Checkpoint | None = None,
) -> dict[str, float]:
    """Return the sensitivity of each tensor: run ``windows`` with the tensor alone in a type of about three bits.

    It takes a pass of the text per tensor, and one of the source. Blocks that predict tokens after next take no part in a pass: their tensors are taken for as
    sensitive as those of the same kind in the last block that has such, and those without any by their size. ``advance`` is called with each tensor's name when it is done,
    ``move`` with the number of tensors that what was just done amounts to; what ``kept`` knows is not measured again, and it is told the rest.
    """
    base: list[TopRows] = []
    found: dict[str, float] = {}
    first = first_prediction(model)
    for it in costs:
        if first is not None and block_of(it.name) >= first:
            continue
        near = min(it.candidates, key=lambda one: abs(8 * one.nbytes / it.weights - _PROBE_BITS))
        known = None if kept is None else kept.known.get((it.name, near.encoding))
        if known is None:
            base = base or base_rows(model, windows, threads)
            types = {it.name: encodings[near.encoding]}
            lost = divergence(model, types, rounding, base, windows, threads, move)
            known = max(0.0, lost) / max(near.error, 1e-12)
            if kept is not None:
                kept.add(it.name, near.encoding, known)
        found[it.name] = known
        advance(it.name)
    lent = {it.name: _lent(it, costs, found) for it in costs if it.name not in found}
    for name in lent:
        advance(name)
    return found | lent


def _lent(tensor: TensorCosts, costs: Sequence[TensorCosts], found: Mapping[str, float]) -> float:
    """Return the sensitivity of the nearest block's tensor of the same kind, or else what that of all measured weights makes for as many."""
    kind = _kind(tensor.name)
    alike = [name for name in found if block_of(name) >= 0 and _kind(name) == kind]
    if alike:
        return found[max(alike, key=block_of)]
    measured = [it for it in costs if it.name in found]
    return tensor.weights * sum(found[it.name] for it in measured) / max(1, sum(it.weights for it in measured))


def _kind(name: str) -> str:
    return name.removeprefix("blk.").partition(".")[2]


def divergence(
    model: Model,
    types: Mapping[str, Encoding],
    rounding: Rounding,
    base: Sequence[TopRows],
    windows: Windows,
    threads: int = 1,
    move: Callable[[float], None] = lambda passes: None,
) -> float:
    """Return the mean divergence in nats of ``model``, with tensors as encodings would hold them, from ``base`` on ``windows``.

    ``move`` is called with the share of the pass that was just done.
    """
    damaged = _with_encoded(model, types, rounding)
    total, count = 0.0, 0
    scored = scored_rows(
        load_network(damaged),
        windows,
        batch_tokens=_BATCH_TOKENS,
        threads=threads,
        move=lambda count: move(count / len(windows.tokens)),
    )
    for rows in scored:
        compared = compare_with_base(base[rows.window], rows.part, rows.logits, rows.targets)
        total += float(compared.divergence.sum())
        count += len(compared.divergence)
    return total / count


def base_rows(model: Model, windows: Windows, threads: int) -> list[TopRows]:
    """Return what the source predicts, per window: its most probable tokens and the rest as one."""
    parts: dict[int, list[TopRows]] = {}
    network = load_network(model)
    kept = min(DEFAULT_KEPT, network.vocabulary)
    for rows in scored_rows(network, windows, threads=threads):
        parts.setdefault(rows.window, []).append(encode_top(rows.logits, rows.targets, kept))
    return [
        TopRows(*(np.concatenate(list(field)) for field in zip(*map(_fields, parts[window]), strict=True)))
        for window in sorted(parts)
    ]


def _fields(rows: TopRows) -> Iterator[NDArray[np.generic]]:
    yield from (rows.target, rows.tail, rows.tokens, rows.log_probabilities)


def _with_encoded(model: Model, types: Mapping[str, Encoding], rounding: Rounding) -> Model:
    """Return ``model`` with tensors as encodings would hold them, encoded when they are read; one alone is kept while the pass needs it."""
    tensors = dict(model.tensors)
    for name, encoding in types.items():
        tensor = model.tensors[name]
        if tensor.encoding.name == encoding.name:
            continue
        read: Callable[[int, int], NDArray[np.uint8]] = partial(_encoded_rows, tensor, encoding, rounding)
        if len(types) == 1:
            read = lru_cache(maxsize=64)(read)
        tensors[name] = replace(tensor, encoding=encoding, read=read)
    return replace(model, tensors=MappingProxyType(tensors), close=lambda: None)


def _encoded_rows(
    tensor: Tensor,
    encoding: Encoding,
    rounding: Rounding,
    start: int,
    stop: int,
) -> NDArray[np.uint8]:
    """Encode rows, those of each expert with its own importance."""
    rows = tensor.shape[-2] if len(tensor.shape) > 2 else tensor.row_count
    pieces = []
    while start < stop:
        expert = start // rows
        end = min(stop, (expert + 1) * rows)
        pieces.append(rounding.encode(tensor, encoding, tensor.rows(start, end), expert))
        start = end
    return np.concatenate(pieces) if pieces else np.empty((0, encoding.row_bytes(tensor.columns)), np.uint8)
