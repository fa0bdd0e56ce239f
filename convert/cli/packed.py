"""``qconv convert --to gptq`` and ``--to awq``: what the command does when the output is a folder of 4-bit matrices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import UsageError

if TYPE_CHECKING:
    from ...formats.base import Model
    from ...plugins.manager import Registries
    from ..jobs import Result
    from ..packed.folder import PackedPlan
    from ..settings import Settings

__all__ = ["GroupSize", "StaticGroups", "Symmetric", "refused", "to_packed"]

_PANEL = "GPTQ and AWQ"

GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        metavar="N",
        help="Inputs that share a scale; -1: all. Default: 128.",
        rich_help_panel=_PANEL,
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--sym/--asym",
        help="Whether the middle code is zero. Default: --sym for gptq, --asym for awq.",
        rich_help_panel=_PANEL,
    ),
]
StaticGroups = Annotated[
    bool,
    typer.Option(
        "--static-groups",
        help="With --activation-order: keep groups of neighbours.",
        rich_help_panel=_PANEL,
    ),
]


def refused(settings: Settings) -> dict[str, bool]:
    """Return the options that no packed folder has a use for, and whether they are given."""
    return {
        "--type": settings.type_name.lower() != "auto",
        "--tensor-type": bool(settings.tensor_rules),
        "--output-tensor-type": settings.output_tensor_type is not None,
        "--token-embedding-type": settings.token_embedding_type is not None,
        "--pure": settings.pure,
        "--leave-output-tensor": settings.leave_output_tensor,
        "--compat": settings.compat,
        "--imatrix": settings.imatrix is not None,
        "--include-weights": bool(settings.include_weights),
        "--exclude-weights": bool(settings.exclude_weights),
        "--measure-on": settings.budget is not None and bool(settings.budget.texts),
        "--recipe-out": settings.budget is not None and settings.budget.recipe_out is not None,
        "--figure": settings.budget is not None and settings.budget.figure is not None,
        "--keep-split": settings.keep_split,
        "--size": settings.budget is not None and settings.budget.size is not None,
        "--recipe": settings.recipe is not None,
        "--alignment": settings.write.alignment is not None,
        "--validate": bool(settings.validate),
        "--allow-nonfinite": settings.allow_nonfinite,
    }


def to_packed(
    model: Model,
    output: Path,
    packing: Literal["gptq", "awq"],
    settings: Settings,
    registries: Registries,
    *,
    group_size: int | None,
    symmetric: bool | None,
    static_groups: bool,
    others: dict[str, bool],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a GPTQ or AWQ folder and print what came of it. Ctrl-C keeps what is done and exits with 1.

    ``others`` are further options that do not go with it, and whether they are given.
    """
    from ..output import check_output
    from ..packed.folder import PackedRequest, plan_packed, run_packed
    from . import report

    bits = settings.budget is not None and settings.budget.bits_per_weight is not None
    wrong = [name for name, given in {**refused(settings), "--bpw": bits, **others}.items() if given]
    if wrong:
        raise UsageError(f"{wrong[0]} does not go with --to {packing}", remedy="Leave it out.")
    request = PackedRequest(packing, 128 if group_size is None else group_size, symmetric, static_groups)
    planned = plan_packed(model, output, request, settings, registries)
    plan = planned.plan
    for text in plan.notes:
        report.note(text)
    if dry_run:
        _show_plan(planned, as_json)
        check_output(plan.layout, plan.model.files, settings.force)
        return
    total = sum(step.target.nbytes for step in plan.steps)
    try:
        with report.progress_bar(plan.layout.path.name, total, quiet=as_json) as progress:
            result = run_packed(planned, settings.force, progress)
    except KeyboardInterrupt:
        report.note("interrupted; run the same command again to continue")
        raise typer.Exit(1) from None
    _show(planned, result, as_json)


def _how(planned: PackedPlan, name: str) -> str:
    if name not in planned.measured:
        return "nearest"
    words = ["error feedback" if planned.rounding.feedback else "second moments"]
    words += ["scaled inputs"] if name in planned.scaled else []
    return ", ".join(words)


def _as_json(planned: PackedPlan) -> dict[str, Any]:
    grid = planned.rounding.grid
    return {
        "target_format": planned.rounding.packing,
        "bits": grid.bits,
        "group_size": grid.group_size,
        "symmetric": grid.symmetric,
        "activation_order": planned.rounding.order,
        "bytes": planned.plan.layout.size,
        "packed_weights": planned.weights,
        "bits_per_weight": round(planned.bits_per_weight, 4),
        "notes": list(planned.plan.notes),
        "matrices": [
            {"name": it.name, "shape": [it.outputs, it.inputs], "rounding": _how(planned, it.name)}
            for it in planned.linears
        ],
    }


def _show_plan(planned: PackedPlan, as_json: bool) -> None:
    from . import report

    if as_json:
        report.print_json(_as_json(planned))
        return
    rows = [(it.name, f"{it.outputs} × {it.inputs}", _how(planned, it.name)) for it in planned.linears]
    report.print_table("", ("matrix", "shape", "rounding"), rows, right=("shape",))
    screen = report.console()
    screen.print(f"\n{_totals(planned)}", soft_wrap=True)
    for part in planned.plan.layout.parts:
        screen.print(f"would write {part.path} ({part.size:,} bytes)", soft_wrap=True)


def _totals(planned: PackedPlan) -> str:
    from . import report

    return (
        f"{planned.plan.recipe}: {planned.weights:,} weights in {len(planned.linears)} matrices, "
        f"{planned.bits_per_weight:.3f} bits per weight; {report.human_bytes(planned.plan.layout.size)} in all"
    )


def _show(planned: PackedPlan, result: Result, as_json: bool) -> None:
    from . import report

    if as_json:
        done = {
            "written": [str(path) for path in result.paths],
            "seconds": round(result.seconds, 3),
            "resumed_tensors": result.resumed,
            "sha256": result.digests,
        }
        report.print_json(_as_json(planned) | done)
        return
    screen = report.console()
    for path in result.paths:
        screen.print(f"wrote {path}", soft_wrap=True)
    resumed = f", {result.resumed} tensors taken over from an earlier run" if result.resumed else ""
    screen.print(f"{_totals(planned)}{resumed}", soft_wrap=True)
