"""Validate a conversion before its seal, so that the receipt lies in the file and under its digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from ..errors import UsageError
from ..formats.base import Layout, Model
from ..formats.metadata import Field
from ..plugins.manager import Registries
from ..runtime.identity import identify_model, read_text
from .measure import Cut, Subject, subject_of
from .output import OutputFiles
from .plan import Plan
from .receipt import blank_fields, fill_layout, unsealed_model
from .settings import Settings
from .validate import Receipt, cut_for_validation, threshold, validate

__all__ = ["Certifier", "dominant_target"]

Bar = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
"""Given a label and a number of windows, opens a display of progress; what it yields is called once per window."""


class Certifier:
    """What stands ready before a conversion to validate it afterwards.

    Args:
        model: the source.
        settings: those of the conversion; ``validate`` names the texts.
        registries: for reading the result.
        bar: shows progress.

    Raises UsageError where the model has no weights or a text is too short, and what tokenizers and networks raise.

    Attributes:
        receipt: the judgement, None before.
    """

    def __init__(self, model: Model, settings: Settings, registries: Registries, bar: Bar) -> None:
        if not model.tensors:
            raise UsageError("a vocabulary alone has no predictions to validate")
        self._settings = settings
        self._registries = registries
        self._bar = bar
        self._texts = [read_text(path) for path in settings.validate]
        self._source = subject_of(model, registries)
        self._windows = cut_for_validation(
            self._source, self._texts, Cut(settings.validate_context, None, settings.validate_chunks)
        )
        self.receipt: Receipt | None = None

    def blank_fields(self) -> dict[str, Field]:
        """Return the metadata keys to lay the output out with."""
        return blank_fields(len(self._texts))

    def check(self, plan: Plan) -> None:
        """Raise UsageError, before any work, where the output's type has no threshold and the user gives none."""
        if self._settings.max_kld is None:
            threshold(dominant_target(plan))

    def __call__(self, plan: Plan, output: OutputFiles, digests: Mapping[str, str]) -> Layout:
        """Measure what was written and return the layout with the receipt in it; raises ModelError where a model computes NaN."""
        with self._result(plan, output, digests) as result, self._bar("validate", len(self._windows.tokens)) as advance:
            self.receipt = validate(
                self._source,
                result,
                self._texts,
                self._windows,
                max_divergence=self._settings.max_kld,
                threads=plan.threads,
                advance=advance,
            )
        return fill_layout(plan, self.receipt, [text.sha256 for text in self._texts])

    @contextmanager
    def _result(self, plan: Plan, output: OutputFiles, digests: Mapping[str, str]) -> Iterator[Subject]:
        with unsealed_model(plan, output) as model:
            yield replace(subject_of(model, self._registries), known_identity=identify_model(model, digests))


def dominant_target(plan: Plan) -> str:
    """Return the encoding that most of the output's weights will have."""
    weights: dict[str, int] = {}
    for step in plan.steps:
        name = step.target.encoding.name
        weights[name] = weights.get(name, 0) + step.source.row_count * step.source.columns
    return max(weights, key=lambda name: weights[name])
