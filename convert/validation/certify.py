"""Validate a conversion before its seal, so that the receipt lies in the file and under its digests.

A result that fails does not get the name that the user gave: what stands there stays, a script that goes on regardless finds nothing new, and
``NAME.rejected.gguf`` can be looked into, or renamed by who knows better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import OutputExistsError, UsageError
from ...formats.base import Layout, Model
from ...formats.metadata import Field
from ...plugins.manager import Registries
from ...runtime.measuring.identity import identify_model, read_text
from ..measure import Cut, Subject, subject_of
from ..output import OutputFiles, journal_path
from ..plan import Plan
from ..progress import Bar
from ..settings import Settings
from .receipt import blank_fields, fill_layout, unsealed_model
from .validate import Receipt, cut_for_validation, threshold, validate

__all__ = ["Certifier", "dominant_target", "rejected_path"]

_NAME = re.compile(r"(?P<stem>.*?)(?P<part>-\d{5}-of-\d{5})?(?P<suffix>\.[^.]*)?")


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
        """Refuse what cannot end well, before any work.

        Raises UsageError where the output's type has no threshold and the user gives none, OutputExistsError where the files that a failure
        would write exist.
        """
        if self._settings.max_kld is None:
            threshold(dominant_target(plan))
        if journal_path(plan.layout).exists():
            return  # an earlier run was here, and may have been killed among its renames
        for part in _rejected(plan.layout).parts:
            _refuse_earlier(part.path, plan.model.files, self._settings.force)

    def __call__(self, plan: Plan, output: OutputFiles, digests: Mapping[str, str]) -> Layout:
        """Measure what was written and return the layout with the receipt in it, under other names if it failed.

        Raises ModelError where a model computes NaN.
        """
        with self._result(plan, output, digests) as result:
            self.receipt = validate(
                self._source,
                result,
                self._texts,
                self._windows,
                max_divergence=self._settings.max_kld,
                threads=plan.threads,
                bar=self._bar,
            )
        filled = fill_layout(plan, self.receipt, [text.sha256 for text in self._texts])
        return filled if self.receipt.passed else _rejected(filled)

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


def rejected_path(path: Path) -> Path:
    """Return the name that a file gets when its validation failed; parts stay recognisable as such.

    >>> rejected_path(Path("m-00001-of-00002.gguf")).name
    'm.rejected-00001-of-00002.gguf'
    """
    found = _NAME.fullmatch(path.name)
    assert found is not None  # every group may be empty
    return path.with_name(f"{found['stem']}.rejected{found['part'] or ''}{found['suffix'] or ''}")


def _rejected(layout: Layout) -> Layout:
    return replace(layout, parts=tuple(replace(part, path=rejected_path(part.path)) for part in layout.parts))


def _refuse_earlier(path: Path, sources: Sequence[Path], force: bool) -> None:
    if not path.exists():
        return
    if any(source.exists() and path.samefile(source) for source in sources):
        raise OutputExistsError(
            "a result that fails its validation would replace the input itself",
            path=path,
            remedy="Choose another output.",
        )
    if path.is_dir() or not force:
        raise OutputExistsError(
            "a result that fails its validation would get this name, and it exists",
            path=path,
            remedy="Delete or rename it, or use --force to replace it.",
        )
