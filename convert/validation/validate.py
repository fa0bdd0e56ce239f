"""Whether a conversion still says what its source says: run side by side on the same tokens, measured, and judged.

The judgement has three parts, each of which can fail on its own: the tokenizers make the same tokens; every tensor's weights differ from the source's
by no more than its encoding explains, block by block; the mean KL divergence is below the threshold of the result's type. Where weights or
predictions fail, blocks and then tensors are compared one by one, each on the source's own input, to name the first that differs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import UsageError
from ...formats.base import Model
from ...runtime.building.network import has_bound_blocks
from ...runtime.measuring.divergence import Summary, compare_logits, concatenate, summarise
from ...runtime.measuring.identity import ModelIdentity, Text, plain
from ...runtime.measuring.layerwise import compare_layers, compare_steps
from ...runtime.measuring.perplexity import scored_rows
from ...runtime.measuring.weight_check import WeightReport, compare_weights, expected_error
from ...runtime.measuring.windows import Windows, join
from ..measure import Cut, Subject, cut_text, describe_cut
from ..progress import Bar, no_bar
from .parity import Parity, compare_tokenizers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Difference", "Receipt", "cut_for_validation", "dominant_encoding", "threshold", "validate"]

_PROBE_TOKENS = 128  # of the text, for comparing block by block
_LAYER_SLACK = 1.5  # a block's difference over the largest that its encodings explain for a matrix
_LAYER_CEILING = 0.9  # whatever the encodings: beyond it nothing of the block's work is left
_ARITHMETIC = 1e-3  # differences that rounding alone may make


@dataclass(frozen=True)
class Difference:
    """Where the result first parts from the source.

    Attributes:
        layer: number of the block, None outside the blocks.
        tensor: name of the tensor.
        problem: what is wrong, for people.
    """

    layer: int | None
    tensor: str
    problem: str


@dataclass(frozen=True)
class Receipt:
    """A validation: what was compared, what was measured, and the judgement.

    Attributes:
        source: the source's identity.
        result: the result's.
        type: encoding that most of the result's weights have.
        cut: what was run (:func:`~.measure.describe_cut`).
        parity: of the tokenizers.
        statistics: of the predictions; None where the tokenizers differ, since then no two positions belong together.
        weights: comparison of the tensors.
        max_divergence: threshold of the mean divergence.
        metadata: the architecture's keys that differ, with both values.
        first: where the result first parts from the source, if it failed.
        reasons: why it failed, for people; empty where it passed.
    """

    source: ModelIdentity
    result: ModelIdentity
    type: str
    cut: Mapping[str, object]
    parity: Parity
    statistics: Summary | None
    weights: WeightReport
    max_divergence: float
    metadata: Mapping[str, tuple[object, object]]
    first: Difference | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {
            "version": __version__,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "first_difference": None if self.first is None else asdict(self.first),
            "source": self.source.summary(),
            "result": self.result.summary(),
            "type": self.type,
            **self.cut,
            "tokenizer_parity": self.parity.to_dict(),
            "max_mean_divergence": self.max_divergence,
            "statistics": None if self.statistics is None else self.statistics.to_dict(),
            "weights": self.weights.to_dict(),
            "metadata_differences": {key: list(values) for key, values in self.metadata.items()},
        }


@cache
def _thresholds() -> dict[str, float]:
    text = files(__package__).joinpath("validation_thresholds.json").read_text(encoding="utf-8")
    table: dict[str, float] = json.loads(text)["mean_divergence"]
    return table


def threshold(encoding: str) -> float:
    """Return the largest mean divergence of a model whose weights are mostly of this encoding; raises UsageError for an unknown one."""
    known = _thresholds().get(encoding)
    if known is None:
        raise UsageError(f"there is no threshold for {encoding}", remedy="Give one with --max-kld.")
    return known


def dominant_encoding(model: Model) -> str:
    """Return the encoding that most of a model's weights have."""
    weights: Counter[str] = Counter()
    for tensor in model.tensors.values():
        weights[tensor.encoding.name] += tensor.row_count * tensor.columns
    return weights.most_common(1)[0][0]


def cut_for_validation(subject: Subject, texts: Sequence[Text], cut: Cut) -> Windows:
    """Return the windows of all texts, of the model's own context where that is shorter; raises UsageError where a text is too short."""
    own = subject.network.configuration.context
    fitting = Cut(min(cut.context, own) if own else cut.context, None, cut.limit)
    return join([cut_text(subject, text, fitting) for text in texts])


def validate(
    source: Subject,
    result: Subject,
    texts: Sequence[Text],
    windows: Windows,
    *,
    max_divergence: float | None = None,
    threads: int = 1,
    bar: Bar = no_bar,
) -> Receipt:
    """Compare two models and judge; ``bar`` shows the comparison of weights, and then that of predictions, window by window.

    Raises UsageError where the result's type has no threshold, ModelError where either model computes numbers that are not finite.
    """
    kind = dominant_encoding(result.model)
    limit = threshold(kind) if max_divergence is None else max_divergence
    parity = compare_tokenizers(source.tokenizer, result.tokenizer, texts)
    reasons = [] if parity.same else [f"the tokenizers differ: {parity.difference}"]
    comparable = parity.same and source.network.vocabulary == result.network.vocabulary
    if parity.same and not comparable:
        sizes = f"{source.network.vocabulary} in the source, {result.network.vocabulary} in the result"
        reasons.append(f"the numbers of logits differ: {sizes}")
    with bar("compare weights", len(result.model.tensors)) as compared:
        weights = compare_weights(source.model, result.model, threads, lambda count: compared(""))
    reasons += [f"{fault.tensor}: {fault.problem}" for fault in weights.faults[:1]]
    summary = _measure(source, result, windows, threads, bar) if comparable else None
    if summary is not None and not summary.divergence.value <= limit:
        reasons.append(
            f"the mean divergence of {summary.divergence.value:.4g} is above {limit:.4g}, the limit of {kind}"
        )
    first = _locate(source, result, windows, weights) if weights.faults or len(reasons) > (not parity.same) else None
    return Receipt(
        source=source.identity,
        result=result.identity,
        type=kind,
        cut=describe_cut(windows, source, texts),
        parity=parity,
        statistics=summary,
        weights=weights,
        max_divergence=limit,
        metadata=_metadata_differences(source.model, result.model),
        first=first,
        reasons=tuple(reasons),
    )


def _measure(source: Subject, result: Subject, windows: Windows, threads: int, bar: Bar) -> Summary:
    """Run both models side by side, a block of logits of each at a time."""
    compared, total, count = [], 0.0, 0
    with bar("validate", len(windows.tokens)) as running:

        def move(things: float) -> None:
            running.move(things / 2)  # each model does half of a window

        pairs = zip(
            scored_rows(source.network, windows, threads=threads, move=move),
            scored_rows(result.network, windows, threads=threads, move=move),
            strict=True,
        )
        for one, other in pairs:
            compared.append(compare_logits(one.logits, other.logits, one.targets))
            total += float(compared[-1].divergence.sum())
            count += len(compared[-1].divergence)
            if one.part.stop == windows.scored_per_window:
                running(f"divergence {total / count:.5f}")
    return summarise(concatenate(compared))


def _locate(source: Subject, result: Subject, windows: Windows, weights: WeightReport) -> Difference | None:
    """Return the first block, and the first tensor in it, whose work differs more than encodings explain."""
    fault = weights.faults[0] if weights.faults else None
    by_weights = None if fault is None else Difference(fault.layer, fault.tensor, fault.problem)
    one, other = source.network, result.network
    if len(one.blocks) != len(other.blocks) or one.configuration.hidden != other.configuration.hidden:
        return by_weights
    if has_bound_blocks(one):
        return by_weights  # no block runs by itself
    tokens = windows.evaluated[0, :_PROBE_TOKENS].tolist()
    embedded, layers = compare_layers(one, other, tokens)
    embedding = one.embedding.name
    if embedded > _limit(source, result, embedding):
        return Difference(None, embedding, f"embeddings differ by {100 * embedded:.3g} %")
    bad = next((it for it in layers if it.error > _layer_limit(source, result, it.layer)), None)
    if bad is None or (fault is not None and fault.layer is not None and fault.layer <= bad.layer):
        return by_weights
    problem = f"given the source's input, block {bad.layer} adds something that differs by {100 * bad.error:.3g} %"
    steps = compare_steps(one, other, tokens, bad.layer)
    step = next((it for it in steps if it.error > _layer_limit(source, result, bad.layer)), steps[-1])
    if step.tensor in result.model.tensors and weights.errors.get(step.tensor, 0.0) <= _limit(
        source, result, step.tensor
    ):
        problem += "; its weights are as they should be, so look at the metadata"
    return Difference(bad.layer, step.tensor, problem)


def _layer_limit(source: Subject, result: Subject, layer: int) -> float:
    names = [name for name in result.model.tensors if name.startswith(f"blk.{layer}.")]
    return max(_limit(source, result, name) for name in names)


def _limit(source: Subject, result: Subject, name: str) -> float:
    """Return how far a tensor's product may differ."""
    one, other = source.model.tensors.get(name), result.model.tensors.get(name)
    if one is None or other is None:
        return _ARITHMETIC
    explained = _LAYER_SLACK * expected_error(one.encoding.name, other.encoding.name)
    return min(_LAYER_CEILING, max(_ARITHMETIC, explained))


def _metadata_differences(source: Model, result: Model) -> dict[str, tuple[object, object]]:
    """Return the architecture's keys that differ, with both values, None where one has none."""
    prefix = source.architecture + "."
    keys = [key for key in {**source.metadata, **result.metadata} if key.startswith(prefix)]
    fields = {key: (source.metadata.get(key), result.metadata.get(key)) for key in sorted(keys)}
    pairs = {
        key: (None if one is None else plain(one), None if other is None else plain(other))
        for key, (one, other) in fields.items()
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
