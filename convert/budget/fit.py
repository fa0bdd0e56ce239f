"""From a size to types: measure, solve, and make sure that the file really fits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import EncodingError, UsageError
from ...formats.base import Format, Model
from ...plugins.manager import Registries
from ...quantizers.budget import Options, bounds, solve
from ...quantizers.importance import ImportanceMatrix
from ...quantizers.recipes.tables import recipes
from ...runtime.measuring.windows import Windows
from ..calibration.error_feedback import Factors, plan_feedback
from ..plan import Plan, Step, make_plan
from ..progress import Bar, no_bar
from ..settings import Budget, Settings
from .checkpoint import Checkpoint
from .rounding import Rounding
from .sensitivity import TensorCosts, guessed_sensitivity, measure_costs, possible_types, probe

__all__ = ["CANDIDATES", "Fit", "Request", "choose", "fit", "measure", "mixtures", "predict"]

CANDIDATES = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K"),
    *("Q4_0", "Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
)
"""Types that a tensor may get, beside the one that it has."""
_PROBE_RECIPE = "Q4_K_M"  # tells which tensors a recipe would quantize at all
_MOST_ROUNDS = 8


@dataclass(frozen=True)
class Fit:
    """The types that were chosen.

    Attributes:
        chosen: encoding by tensor name, for every tensor that a recipe would quantize.
        costs: what every type would have cost.
        predicted: sum of the chosen types' costs; the divergence in nats where it was measured on a text.
        size: bytes of the output.
        bits_per_weight: over all tensors.
        measured: whether sensitivities come from a text.
    """

    chosen: Mapping[str, str]
    costs: tuple[TensorCosts, ...]
    predicted: float
    size: int
    bits_per_weight: float
    measured: bool

    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a conversion with these types; the user's own ``--tensor-type`` go before."""
        rules = tuple((f"^{re.escape(name)}$", encoding) for name, encoding in self.chosen.items())
        return replace(settings, type_name="auto", tensor_rules=(*rules, *settings.tensor_rules))


@dataclass(frozen=True)
class Request:
    """A conversion whose types are to be chosen.

    Attributes:
        model: the source.
        output: file to make.
        target: its format.
        settings: every other choice; ``budget`` is not looked at.
        registries: what is registered.
        importance: the importance matrix, or None.
        factors: of the method ``gptq``, or None.
    """

    model: Model
    output: Path
    target: Format
    settings: Settings
    registries: Registries
    importance: ImportanceMatrix | None = None
    factors: Factors | None = None

    @property
    def rounding(self) -> Rounding:
        """How the conversion encodes."""
        return Rounding(self.settings.encode, self.importance, self.factors)

    def plan(self, settings: Settings) -> Plan:
        """Return the plan of this conversion with other settings."""
        plan = make_plan(
            self.model,
            self.output,
            self.target,
            settings,
            self.registries.encodings,
            self.importance,
            float_source=self.model.format != "gguf",
            architectures=self.registries.architectures,
        )
        return plan_feedback(plan, self.factors)


def measure(
    request: Request,
    windows: Windows | None = None,
    bar: Bar = no_bar,
    candidates: Sequence[str] = CANDIDATES,
    *,
    goal: Budget | None = None,
    kept: Checkpoint | None = None,
) -> list[TensorCosts]:
    """Return what every type costs every tensor that a recipe would quantize and for which the user has named no type.

    ``windows`` are of a text on which sensitivities are measured; without, they are guessed from a tensor's kind and size; ``kept`` has those
    of an earlier run. ``goal`` is checked first, as :func:`choose` would. Raises UsageError where there is no such tensor, and what plans and
    networks raise.
    """
    settings, registries = request.settings, request.registries
    plan = request.plan(replace(settings, type_name=_PROBE_RECIPE))
    free = [step for step in plan.steps if step.target.encoding.is_quantized and not _is_settled(step, settings)]
    if not free:
        raise UsageError("no tensor of this model would be quantized, so no type can be chosen")
    tensors = [step.source for step in free]
    every = {name: registries.encodings[name] for name in candidates} | {
        it.encoding.name: it.encoding for it in tensors
    }
    if goal is not None:
        sizes = possible_types(tensors, list(every.values()), request.rounding)
        _check(sizes, _bytes_for(plan, sizes, goal), plan, goal)
    with bar("measuring types", len(free)) as advance:
        costs = measure_costs(
            tensors,
            list(every.values()),
            request.rounding,
            threads=settings.threads,
            advance=advance,
        )
    if windows is None:
        whole = sum(it.weights for it in costs)
        return [replace(it, sensitivity=guessed_sensitivity(it.name, it.weights / whole)) for it in costs]
    with bar("measuring tensors", len(costs)) as advance:
        found = probe(
            request.model,
            costs,
            registries.encodings,
            request.rounding,
            windows,
            settings.threads,
            advance,
            advance.move,
            kept,
        )
    return [replace(it, sensitivity=found[it.name]) for it in costs]


def choose(request: Request, goal: Budget, costs: Sequence[TensorCosts], measured: bool) -> Fit:
    """Choose a type per tensor so that the output meets ``goal`` at the least predicted damage: the same for the same arguments.

    ``measured`` says that sensitivities come from a text. Raises UsageError, with both bounds, for a goal that cannot be met.
    """
    first = request.plan(replace(request.settings, type_name=_PROBE_RECIPE))
    budget = _bytes_for(first, costs, goal)
    _check(costs, budget, first, goal)
    for _ in range(_MOST_ROUNDS):
        done = Fit({}, tuple(costs), 0.0, 0, 0.0, measured)
        done = _complete(request, done, _solve(costs, budget))
        excess = 0 if goal.size is None else done.size - goal.size
        if excess <= 0:
            better = _better_mixture(request, done, goal)
            return done if better is None else _complete(request, done, better)
        budget -= excess  # padding and the header came out a little larger than guessed
    raise UsageError(f"no choice of types fits {goal.size or 0:,} bytes", remedy="Ask for a little more.")


def fit(
    request: Request,
    goal: Budget,
    windows: Windows | None = None,
    bar: Bar = no_bar,
    kept: Checkpoint | None = None,
) -> Fit:
    """Measure, and choose; a goal that cannot be met is refused before anything is measured."""
    return choose(request, goal, measure(request, windows, bar, goal=goal, kept=kept), windows is not None)


def _complete(request: Request, draft: Fit, chosen: Mapping[str, str]) -> Fit:
    done = replace(draft, chosen=chosen, predicted=predict(draft.costs, chosen))
    plan = request.plan(done.settings(request.settings))
    return replace(done, size=plan.layout.size, bits_per_weight=plan.bits_per_weight)


def _is_settled(step: Step, settings: Settings) -> bool:
    """Whether the user has named the tensor's type."""
    return any(re.search(pattern, step.target.name) for pattern, _ in settings.tensor_rules)


def _bytes_for(plan: Plan, costs: Sequence[TensorCosts], goal: Budget) -> int:
    """Return the bytes that the measured tensors may take."""
    taken = _taken(plan, costs)
    if goal.size is not None:
        return goal.size - (plan.layout.size - taken)
    assert goal.bits_per_weight is not None
    return int(goal.bits_per_weight * plan.weights / 8) - (plan.tensor_bytes - taken)


def _check(costs: Sequence[TensorCosts], budget: int, plan: Plan, goal: Budget) -> None:
    least, most = bounds(_options(costs))
    fixed = (0 if goal.size is None else goal.size) - budget
    if goal.size is None:
        assert goal.bits_per_weight is not None
        low, high = (8 * (plan.tensor_bytes - _taken(plan, costs) + bytes_) / plan.weights for bytes_ in (least, most))
        wanted, between = f"{goal.bits_per_weight:g} bits per weight", f"{low:.3f} and {high:.3f}"
    else:
        wanted, between = f"{goal.size:,} bytes", f"{least + fixed:,} and {most + fixed:,}"
    if not least <= budget <= most:
        raise UsageError(
            f"{wanted} cannot be met: this model takes between {between}",
            remedy="Choose a goal in between."
            if budget > most
            else "Choose a larger goal, or give an importance matrix, which opens the smallest types.",
        )


def _taken(plan: Plan, costs: Sequence[TensorCosts]) -> int:
    names = {it.name for it in costs}
    return sum(step.target.nbytes for step in plan.steps if step.source.name in names)


def _options(costs: Sequence[TensorCosts]) -> list[Options]:
    return [Options(np.array([it.nbytes for it in one.candidates], np.int64), one.costs()) for one in costs]


def _solve(costs: Sequence[TensorCosts], budget: int) -> dict[str, str]:
    found = solve(_options(costs), budget)
    return {it.name: it.candidates[option].encoding for it, option in zip(costs, found, strict=True)}


def predict(costs: Sequence[TensorCosts], chosen: Mapping[str, str]) -> float:
    """Return the sum of the costs of a choice."""
    return sum(float(it.costs()[[one.encoding for one in it.candidates].index(chosen[it.name])]) for it in costs)


def _better_mixture(request: Request, done: Fit, goal: Budget) -> dict[str, str] | None:
    """Return the types of a named mixture that meets the goal and is predicted to be better than what was solved, if there is one."""
    best, found = done.predicted, None
    for _, plan, chosen in mixtures(request, done.costs):
        too_large = plan.layout.size > goal.size if goal.size else plan.bits_per_weight > (goal.bits_per_weight or 0)
        predicted = predict(done.costs, chosen)
        if not too_large and predicted < best:
            best, found = predicted, chosen
    return found


def mixtures(request: Request, costs: Sequence[TensorCosts]) -> Iterator[tuple[str, Plan, dict[str, str]]]:
    """Yield the named mixtures that the conversion could use: name, plan, and the encoding of each tensor of ``costs``."""
    known = {it.name: {one.encoding for one in it.candidates} for it in costs}
    for recipe in recipes().values():
        if not recipe.is_mixture:
            continue
        try:
            plan = request.plan(replace(request.settings, type_name=recipe.name))
        except EncodingError:  # it needs importance, or its blocks do not fit
            continue
        chosen = {step.source.name: step.target.encoding.name for step in plan.steps if step.source.name in known}
        if all(encoding in known[name] for name, encoding in chosen.items()):
            yield recipe.name, plan, chosen
