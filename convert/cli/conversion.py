"""What ``convert``, ``hf-to-gguf`` and ``quantize`` share: from a source, an output and settings to a printed result."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import FormatError, UsageError
from ...formats.base import Format, Model
from ...formats.getters import get_integer
from ...plugins.manager import Registries
from ..api import add_feedback, load_importance
from ..jobs import Result, run_plan
from ..output import check_output
from ..plan import Plan, make_plan
from ..prune import prune_importance, prune_layers
from ..settings import Settings
from ..warmup import compile_codec
from . import report
from .choice import choice_as_json, show_choice
from .validate import show_receipt

if TYPE_CHECKING:
    from ...quantizers.importance import ImportanceMatrix
    from ..budget import Fit
    from ..validation.certify import Certifier
    from ..validation.validate import Receipt

__all__ = ["convert", "plan_as_json"]


def convert(
    model: Model,
    output: Path,
    target: Format,
    settings: Settings,
    registries: Registries,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Plan, show or carry out, and print what came of it. Ctrl-C keeps what is done and exits with 1."""
    model, importance = _pruned(model, load_importance(settings, registries, model), settings.prune)
    found: Fit | None = None
    label = None
    if settings.budget is not None or settings.recipe is not None:
        label = "chosen types"
        settings, found = _choose_types(model, output, target, settings, registries, importance, as_json)
    certifier = _certifier(model, target, settings, registries, as_json) if settings.validate else None
    if certifier is not None:
        settings = replace(settings, overrides={**settings.overrides, **certifier.blank_fields()})
    plan = make_plan(
        model,
        output,
        target,
        settings,
        registries.encodings,
        importance,
        float_source=model.format != "gguf",
        architectures=registries.architectures,
    )
    plan = add_feedback(plan, model, settings, registries)
    for text in plan.notes:
        report.note(text)
    if certifier is not None:
        certifier.check(plan)
    choice = {} if found is None else {"choice": choice_as_json(found)}
    if dry_run:
        _show_plan(plan, label, as_json, choice)
        check_output(plan.layout, model.files, settings.force)
        _forget(found, output)
        return
    result = _carry_out(plan, settings, certifier, as_json)
    _forget(found, output)
    receipt = None if certifier is None else _keep_receipt(certifier, result.paths[0])
    if as_json:
        shown: dict[str, Any] = {"written": [str(path) for path in result.paths]}
        shown |= {} if receipt is None else {"receipt": receipt.to_dict()}
        report.print_json(plan_as_json(plan) | choice | _result_as_json(result) | shown)
    else:
        _show_result(plan, label, result)
    if receipt is not None and not as_json:
        show_receipt(receipt)
    if certifier is not None and result.paths[0] != plan.layout.path:
        report.note(f"{plan.layout.path} was not written; the result that failed is {result.paths[0]}")
        raise typer.Exit(1)


def _pruned(
    model: Model, importance: ImportanceMatrix | None, layers: frozenset[int]
) -> tuple[Model, ImportanceMatrix | None]:
    """Return model and importance without ``layers``."""
    if not layers:
        return model, importance
    whole = get_integer(model.metadata, f"{model.architecture}.block_count", model.path) or 0
    left = None if importance is None else prune_importance(importance, whole, layers)
    return prune_layers(model, layers), left


def _certifier(model: Model, target: Format, settings: Settings, registries: Registries, quiet: bool) -> Certifier:
    """Return what validates the result before it is sealed."""
    from ..validation.certify import Certifier
    from .running import running_bar

    if target.name != "gguf":
        raise UsageError(
            f"--validate works on GGUF files, and the output is {target.name}",
            remedy="Compare afterwards, with `qconv validate`.",
        )
    return Certifier(model, settings, registries, partial(running_bar, quiet=quiet))


def _carry_out(plan: Plan, settings: Settings, certifier: Certifier | None, quiet: bool) -> Result:
    """Write the output, with progress; Ctrl-C keeps what is done and exits with 1."""
    total = sum(step.target.nbytes for step in plan.steps)
    try:
        _prepare(plan, quiet)
        with report.progress_bar(plan.layout.path.name, total, quiet) as progress:
            result = run_plan(plan, settings.force, progress, certifier)
    except KeyboardInterrupt:
        report.note("interrupted; run the same command again to continue")
        raise typer.Exit(1) from None
    for name, count in result.replaced.items():
        report.note(f"{name}: {count:,} weights were not finite and are zero now")
    return result


def _choose_types(
    model: Model,
    output: Path,
    target: Format,
    settings: Settings,
    registries: Registries,
    importance: ImportanceMatrix | None,
    quiet: bool,
) -> tuple[Settings, Fit | None]:
    """Return the settings with every tensor's type, and say and return what came of a budget."""
    from ..budget import fit_to_budget
    from .running import running_bar

    bar = partial(running_bar, quiet=quiet)
    try:
        chosen, found = fit_to_budget(model, output, target, settings, registries, importance, bar)
    except KeyboardInterrupt:
        if settings.budget is None or not settings.budget.texts:
            raise
        # what has been measured is kept
        report.note("interrupted; run the same command again to continue")
        raise typer.Exit(1) from None
    if found is not None:
        unit = "predicted divergence" if found.measured else "sum of relative errors"
        report.note(
            f"types chosen: {found.size:,} bytes, {found.bits_per_weight:.3f} bits per weight, {unit} {found.predicted:.4g}"
        )
        if not quiet:
            show_choice(found)
        if not found.measured:
            report.note("what each tensor's errors cost was guessed; --measure-on TEXT measures it, and chooses better")
    return chosen, found


def _forget(found: Fit | None, output: Path) -> None:
    """Remove what was measured to choose types, which a rerun would have gone on with."""
    if found is not None:
        from ..budget import forget

        forget(output)


def _keep_receipt(certifier: Certifier, result: Path) -> Receipt | None:
    """Write the receipt beside the result and return it; None where an earlier run had done everything but rename."""
    from ..validation.receipt import receipt_path, write_receipt

    if certifier.receipt is None:
        report.note("an earlier run has validated this; the file's qconv.receipt keys say with what result")
        return None
    write_receipt(receipt_path(result), certifier.receipt)
    return certifier.receipt


def _prepare(plan: Plan, quiet: bool) -> None:
    """Compile the kernels that the plan needs, or load them from the user's cache, so that progress shows work on the model only."""
    used = {
        encoding.name: encoding
        for step in plan.steps
        for encoding in (step.source.encoding, step.target.encoding)
        if encoding.is_quantized and step.source.encoding.name != step.target.encoding.name
    }
    with report.counter_bar("preparing", len(used), quiet) as start:
        for name, encoding in used.items():
            start(name)
            compile_codec(encoding)


def _shapes(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-compatible values."""
    folder = plan.layout.path.parent
    return {
        "source": str(plan.model.path),
        "source_format": plan.model.format,
        "target_format": plan.target,
        "architecture": plan.model.architecture,
        "type": plan.recipe,
        "outputs": [{"path": str(part.path), "bytes": part.size} for part in plan.layout.parts],
        "weights": plan.weights,
        "bytes": plan.layout.size,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "fallback_share": round(plan.fallback_share, 6),
        "free_disk_bytes": _free(folder),
        "peak_memory_bytes": plan.peak_memory,
        "threads": plan.threads,
        "notes": list(plan.notes),
        "tensors": [
            {
                "name": step.target.name,
                "shape": list(step.target.shape),
                "source_type": step.source.encoding.name,
                "type": step.target.encoding.name,
                "wanted_type": step.choice.wanted,
                "bytes": step.target.nbytes,
                "bits_per_weight": step.target.encoding.bits_per_weight,
                "fallback": step.choice.is_fallback,
                "why": step.choice.why,
                "importance": step.importance is not None,
            }
            for step in plan.steps
        ],
    }


def _free(folder: Path) -> int:
    import shutil

    if not folder.is_dir():
        raise FormatError("no such folder", path=folder, remedy="Create it first, or choose another output.")
    return shutil.disk_usage(folder).free


def _result_as_json(result: Result) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 3),
        "resumed_tensors": result.resumed,
        "replaced_nonfinite": result.replaced,
        "sha256": result.digests,
    }


def _show_plan(plan: Plan, label: str | None, as_json: bool, choice: dict[str, Any]) -> None:
    if as_json:
        report.print_json(plan_as_json(plan) | choice)
        return
    rows = [
        (
            step.target.name,
            _shapes(step.target.shape),
            step.source.encoding.name,
            step.target.encoding.name,
            f"{step.target.nbytes:,}",
            f"{step.target.encoding.bits_per_weight:.2f}",
            step.choice.why,
        )
        for step in plan.steps
    ]
    columns = ("tensor", "shape", "source", "target", "bytes", "bpw", "why")
    report.print_table("", columns, rows, right=("shape", "bytes", "bpw"))
    screen = report.console()
    screen.print()
    report.paragraph(_totals(plan, label))
    screen.print(
        f"free disk {report.human_bytes(_free(plan.layout.path.parent))}, "
        f"peak memory at most {report.human_bytes(plan.peak_memory)} with {plan.threads} threads"
    )
    for part in plan.layout.parts:
        screen.print(f"would write {part.path} ({part.size:,} bytes)", soft_wrap=True)


def _totals(plan: Plan, label: str | None) -> str:
    """Return the sum of a plan in one line; ``label`` says what the types are, where not the name of the mixture."""
    if not plan.steps:
        return f"metadata and tokenizer alone, {plan.layout.size:,} bytes"
    counts: Counter[str] = Counter(step.target.encoding.name for step in plan.steps)
    mix = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    fallback = f", {100 * plan.fallback_share:.1f} % of weights by fallback" if plan.fallback_share else ""
    return (
        f"{label or plan.recipe}: {plan.weights:,} weights in {plan.layout.size:,} bytes, "
        f"{plan.bits_per_weight:.2f} bits per weight{fallback} ({mix})"
    )


def _show_result(plan: Plan, label: str | None, result: Result) -> None:
    screen = report.console()
    for path in result.paths:
        screen.print(f"wrote {path}", soft_wrap=True)
    report.paragraph(_totals(plan, label))
    resumed = f", {result.resumed} tensors taken over from an earlier run" if result.resumed else ""
    rate = f", {plan.weights / max(result.seconds, 1e-9) / 1e6:,.0f} million weights per second" if plan.steps else ""
    screen.print(f"{report.human_seconds(result.seconds)}{rate}{resumed}")
    sys.stdout.flush()
