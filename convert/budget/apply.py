"""What a conversion does with a budget or a recipe before it plans: from the user's wish to settings that name every tensor's type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...errors import QconvError, UsageError
from ...formats.base import Format, Model
from ...formats.whole_file import refuse_existing, refuse_foreign, whole_file
from ...plugins.manager import Registries
from ...quantizers.importance import ImportanceMatrix
from ...runtime.measuring.identity import read_text
from ..calibration.error_feedback import open_factors
from ..figure import check_figure
from ..measure import Cut, subject_of
from ..progress import Bar, no_bar
from ..settings import Settings
from ..validation.validate import cut_for_validation
from .checkpoint import Checkpoint, forget, job_digest
from .figure import draw_front
from .fit import Fit, Request, fit
from .front import trace_front
from .recipe_file import RECIPE_START, read_recipe, recipe_text

__all__ = ["fit_to_budget"]


def fit_to_budget(
    model: Model,
    output: Path,
    target: Format,
    settings: Settings,
    registries: Registries,
    importance: ImportanceMatrix | None,
    bar: Bar = no_bar,
) -> tuple[Settings, Fit | None]:
    """Return settings in which every tensor's type is named, and the fit that chose them, if the settings ask for one.

    Sensitivities that are measured lie beside the output until the caller, who is done with it, calls :func:`.checkpoint.forget`.
    Writes ``settings.budget.recipe_out`` and ``settings.budget.figure``. Raises UsageError for a goal that cannot be met, or together with a recipe; what readers of
    recipes and texts raise.
    """
    if settings.recipe is not None:
        if settings.budget is not None:
            raise UsageError("--recipe says every type already; leave --size and --bpw out")
        rules = read_recipe(settings.recipe, model.tensors)
        return replace(settings, type_name="auto", tensor_rules=(*rules, *settings.tensor_rules)), None
    if settings.budget is None:
        return settings, None
    goal = settings.budget
    if settings.compat or settings.pure:
        raise UsageError("--compat and --pure choose types by rules; leave them out to have types chosen for a size")
    if goal.figure is not None:
        check_figure(goal.figure)
        refuse_existing(goal.figure, settings.force)
    if goal.recipe_out is not None:
        refuse_foreign(goal.recipe_out, RECIPE_START)
    windows = None
    if goal.texts:
        subject = subject_of(model, registries)
        texts = [read_text(path) for path in goal.texts]
        windows = cut_for_validation(subject, texts, Cut(goal.context, None, goal.chunks))
    factors = open_factors(settings, model, registries.open_context())
    request = Request(model, output, target, replace(settings, budget=None), registries, importance, factors)
    kept = None
    if windows is not None:
        kept = Checkpoint(output, job_digest(subject.identity, windows, request.rounding))
    try:
        done = fit(request, goal, windows, bar, kept)
    except QconvError:
        forget(output)
        raise
    if goal.figure is not None:
        draw_front(goal.figure, trace_front(request, done, windows, bar), f"{model.path.name}: types for a size")
    if goal.recipe_out is not None:
        with whole_file(goal.recipe_out) as file:
            file.write(recipe_text(done, model.path.name).encode(errors="surrogateescape"))
    return done.settings(settings), done
