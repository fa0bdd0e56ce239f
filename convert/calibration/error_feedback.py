"""``--method gptq``: what a calibration file adds to a plan.

A :class:`Factors` gives the factor of a tensor's inputs (:mod:`qconv.quantizers.rounding.feedback`) to whichever thread needs it first, and keeps the last
few, since the slabs of a tensor, and tensors that share an input, follow each other.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import ModelError, UsageError
from ...formats.base import Model, OpenContext
from ...formats.calibration import CalibrationFacts, open_calibration
from ...formats.metadata import string
from ...quantizers.base import EncodeOptions, Encoding
from ...quantizers.rounding.feedback import Factor, block_order, factorize
from ...quantizers.rounding.feedback_rounding import ORDER_BLOCK, encode_with_feedback, takes_feedback
from ...runtime.measuring.identity import weights_digest
from ..plan import Plan, Step
from ..settings import Settings
from ..shared_work import LastUsed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Factors", "open_factors", "plan_feedback", "refuse_other_model"]

_NAMED: Final = 4  # tensors or experts that a note lists
_KEY: Final = "quantize.calibration."


class Factors:
    """The factors of one calibration file, by the damping and the order of the settings."""

    def __init__(self, settings: Settings, path: Path, context: OpenContext) -> None:
        with open_calibration(path, context) as found:
            self.facts = found.facts
            self.entries = dict(found.entries)
            self.counts = {name: found.counts(name) for name in found.entries}
        self.path = path
        self.damping = settings.damping
        self.activation_order = settings.activation_order
        self._context = context
        self._last = LastUsed[Factor](settings.threads + 1)

    def get(self, name: str, expert: int = 0) -> Factor | None:
        """Return the factor of a tensor's input (of one ``expert`` of a stack), None where no token met it; any thread may call."""
        if not self.counts[name][expert]:
            return None
        return self._last.get((self.entries[name].names[0], expert), lambda: self._make(name, expert))

    def _make(self, name: str, expert: int) -> Factor:
        with open_calibration(self.path, self._context) as found:
            moment = found.hessian(name, expert)
        order = block_order(moment, ORDER_BLOCK) if self.activation_order else None
        return factorize(moment, self.damping, order)


def open_factors(settings: Settings, model: Model, context: OpenContext) -> Factors | None:
    """Return the factors that the settings ask for, None for the method ``plain``.

    Raises UsageError for ``gptq`` without a file, ModelError for the file of another model, FormatError for what is no calibration file.
    """
    if settings.calibration is None:
        if settings.method != "plain":
            raise UsageError(
                f"--method {settings.method} needs second moments",
                remedy="Measure them with qconv calibrate, and pass the file with --calibration.",
            )
        return None
    if settings.prune:
        raise UsageError("--calibration and --prune-layers exclude each other", remedy="Prune first, then calibrate.")
    with open_calibration(settings.calibration, context) as found:
        refuse_other_model(found.facts, found.path, model)
    return None if settings.method == "plain" else Factors(settings, settings.calibration, context)


def refuse_other_model(facts: CalibrationFacts, path: Path, model: Model) -> None:
    """Raise ModelError where the calibration file at ``path`` was measured on a model of other weights."""
    digest = weights_digest(model)
    if digest != facts.weights:
        raise ModelError(
            f"it was measured on a model with other weights ({facts.weights[:12]}…) than {model.path} ({digest[:12]}…)",
            path=path,
            remedy="Measure this very model with qconv calibrate.",
        )


def plan_feedback(plan: Plan, factors: Factors | None) -> Plan:
    """Return a plan whose tensors are rounded with error feedback where that can be, and whose notes say where it cannot.

    Raises UsageError where that is nowhere, ModelError for moments of another size.
    """
    if factors is None:
        return plan
    steps = [_with_feedback(step, factors, plan.encode_options) for step in plan.steps]
    if all(step.feedback is None for step in steps):
        raise UsageError(
            f"no tensor of a {plan.recipe} {plan.target} file can be rounded with error feedback by {factors.path}",
            remedy="Leave out --method, or choose a quantized --type.",
        )
    fields = {
        _KEY + "method": string("gptq"),
        _KEY + "file": string(factors.path.name),
        _KEY + "job": string(factors.facts.job),
        _KEY + "options": string(f"damping {factors.damping:g}" + ", activation order" * factors.activation_order),
    }
    metadata = {**plan.metadata, **fields}
    return replace(
        plan,
        steps=tuple(steps),
        metadata=metadata,
        layout=plan.lay_out(metadata),
        notes=(*plan.notes, *_notes(steps, factors)),
    )


def _with_feedback(step: Step, factors: Factors, options: EncodeOptions) -> Step:
    entry = factors.entries.get(step.source.name)
    if not _rounds(step) or not takes_feedback(step.target.encoding) or entry is None:
        return step
    experts = step.source.shape[0] if len(step.source.shape) > 2 else 1
    if (entry.columns, entry.matrices) != (step.source.columns, experts):
        raise ModelError(
            f"it holds {entry.matrices} × {entry.columns} columns for a tensor of {experts} × {step.source.columns}",
            path=factors.path,
            tensor=step.source.name,
            remedy="Measure this very model with qconv calibrate.",
        )
    return replace(step, feedback=partial(_encode, step, factors, options))


def _encode(
    step: Step, factors: Factors, options: EncodeOptions, rows: NDArray[np.float32], expert: int
) -> NDArray[np.uint8] | None:
    factor = factors.get(step.source.name, expert)
    return None if factor is None else encode_with_feedback(step.target.encoding, rows, factor, options)


def _rounds(step: Step) -> bool:
    """Whether a step quantizes a matrix."""
    target: Encoding = step.target.encoding
    return target.is_quantized and target.name != step.source.encoding.name


def _notes(steps: list[Step], factors: Factors) -> list[str]:
    """Return a sentence for each way in which tensors stay without feedback."""
    notes = []
    plain = [step for step in steps if _rounds(step) and step.feedback is None]
    unmeasured = [step.target.name for step in plain if step.source.name not in factors.entries]
    if unmeasured:
        notes.append(f"rounded without error feedback, because no second moments were measured: {_list(unmeasured)}")
    others = [step for step in plain if step.source.name in factors.entries]
    for name in dict.fromkeys(step.target.encoding.name for step in others):
        tensors = [step.target.name for step in others if step.target.encoding.name == name]
        notes.append(f"rounded without error feedback, which {name} does not take: {_list(tensors)}")
    for step in steps:
        unseen = [number for number, count in enumerate(factors.counts.get(step.source.name, ())) if not count]
        if step.feedback is not None and unseen:
            experts = f"experts {_list(unseen)}" if len(unseen) > 1 else f"expert {unseen[0]}"
            notes.append(
                f"{step.target.name}: {experts} met no token in calibration; rounded without error feedback, by the importance of the other "
                "experts' columns"
            )
    return notes


def _list(things: list[str] | list[int]) -> str:
    return ", ".join(map(str, things[:_NAMED])) + (f" and {len(things) - _NAMED} more" if len(things) > _NAMED else "")
