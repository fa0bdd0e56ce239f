"""The verbs of the command line for Python programs: ``qconv.open``, ``qconv.convert_model`` and ``qconv.quantize``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UnknownFormatError, UsageError
from ..formats.base import Model
from ..plugins.manager import Registries, load_plugins
from ..quantizers.importance import ImportanceMatrix
from .jobs import Result, run_plan
from .opening import detect
from .plan import Plan, make_plan
from .settings import Settings
from .targets import find_target

if TYPE_CHECKING:
    from .budget import Fit

__all__ = ["add_feedback", "convert_model", "load_importance", "open", "quantize"]


def open(path: str | Path, *, architecture: str | None = None, pre_tokenizer: str | None = None) -> Model:
    """Open a model of any readable format; use it as a context manager, or close it.

    Raises FormatError or ModelError for what cannot be read.

    >>> with open("examples/prose-llama-7m") as model:
    ...     model.tensors["blk.0.attn_q.weight"].shape
    (256, 256)
    """
    registries = load_plugins().registries()
    reader = detect(Path(path), registries)
    if reader.open is None:
        raise UnknownFormatError(f"{reader.name} files can be written but not read", path=path)
    return reader.open(Path(path), registries.open_context(architecture, pre_tokenizer))


def convert_model(
    source: str | Path,
    output: str | Path,
    type_name: str = "auto",
    *,
    to: str | None = None,
    settings: Settings | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Write ``source``, of any readable format, in any writable one: one pass, whole or absent.

    Args:
        source: model file or folder.
        output: file or folder to make.
        type_name: a recipe such as ``q4_k_m``, an encoding, or ``auto`` for the source's own type.
        to: format of the output, where its name does not tell; or ``gptq`` or ``awq``, for a folder of 4-bit matrices.
        settings: every other choice; its ``type_name`` is overruled.
        progress: called with the number of output bytes whenever some are done, from worker threads, one at a time.

    Raises a QconvError for anything that is wrong with the source, the request or the disk.
    """
    registries = load_plugins().registries()
    chosen = replace(settings or Settings(), type_name=type_name)
    packing = (to or "").strip().lower()
    if packing in ("gptq", "awq"):
        return _pack(source, Path(output), "gptq" if packing == "gptq" else "awq", chosen, registries, progress)
    target = find_target(Path(output), to, registries)
    with open(source) as model:
        importance = load_importance(chosen, registries, model)
        fitted: Fit | None = None
        if chosen.budget is not None or chosen.recipe is not None:
            from .budget import fit_to_budget, forget

            chosen, fitted = fit_to_budget(model, Path(output), target, chosen, registries, importance)
        plan = make_plan(
            model,
            Path(output),
            target,
            chosen,
            registries.encodings,
            importance,
            float_source=model.format != "gguf",
            architectures=registries.architectures,
        )
        plan = add_feedback(plan, model, chosen, registries)
        done = run_plan(plan, chosen.force, progress or (lambda count: None))
        if fitted is not None:
            forget(Path(output))
        return done


def _pack(
    source: str | Path,
    output: Path,
    packing: Literal["gptq", "awq"],
    settings: Settings,
    registries: Registries,
    progress: Callable[[int], None] | None,
) -> Result:
    from .packed.folder import PackedRequest, plan_packed, run_packed

    if settings.type_name.lower() != "auto":
        raise UsageError(
            f"a type does not go with the format {packing}", remedy="Leave it out: all matrices get 4 bits."
        )
    with open(source) as model:
        planned = plan_packed(model, output, PackedRequest(packing), settings, registries)
        return run_packed(planned, settings.force, progress or (lambda count: None))


def quantize(
    source: str | Path,
    output: str | Path,
    type_name: str = "auto",
    *,
    settings: Settings | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Write ``source``, of any readable format, as a GGUF file of another type: :func:`convert_model` to GGUF, whatever the output's name."""
    return convert_model(source, output, type_name, to="gguf", settings=settings, progress=progress)


def load_importance(settings: Settings, registries: Registries, model: Model) -> ImportanceMatrix | None:
    """Read and filter the importance matrix that the settings name, or the diagonals of their calibration file; None without either.

    Raises ModelError for a calibration file of another model than ``model``.
    """
    if settings.imatrix is not None:
        from ..formats.imatrix import read_imatrix

        matrix = read_imatrix(settings.imatrix, registries.open_context(), compat=settings.compat)
    elif settings.calibration is not None:
        from ..formats.calibration import open_calibration
        from .calibration.error_feedback import refuse_other_model

        with open_calibration(settings.calibration, registries.open_context()) as found:
            refuse_other_model(found.facts, found.path, model)
            matrix = replace(found.importance, compat=settings.compat)
    else:
        return None
    return matrix.filtered(settings.include_weights, settings.exclude_weights)


def add_feedback(plan: Plan, model: Model, settings: Settings, registries: Registries) -> Plan:
    """Return the plan of a conversion of ``model`` with error feedback where the settings ask for it.

    Raises UsageError for a method without its file, ModelError for the calibration file of another model.
    """
    if settings.calibration is None and settings.method == "plain":
        return plan
    from .calibration.error_feedback import open_factors, plan_feedback

    return plan_feedback(plan, open_factors(settings, model, registries.open_context()))
