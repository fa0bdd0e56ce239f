"""``qconv convert --to exl2``: what the command does when the output is an EXL2 folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import UsageError
from .packed import refused

if TYPE_CHECKING:
    from ...formats.base import Model
    from ...plugins.manager import Registries
    from ..exl2.folder import Exl2Result
    from ..settings import Settings

__all__ = ["Calibration", "CalibrationChunks", "CalibrationContext", "HeadBits", "Measurement", "to_exl2"]

_PANEL = "EXL2"

HeadBits = Annotated[
    int,
    typer.Option("--head-bits", metavar="N", help="Bits of the output matrix: 2 to 6, or 8.", rich_help_panel=_PANEL),
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration-text",
        metavar="TEXT",
        help="Text like what the model will read (UTF-8); may be repeated.",
        rich_help_panel=_PANEL,
    ),
]
CalibrationContext = Annotated[
    int, typer.Option("--calibration-context", metavar="N", help="Tokens per window.", rich_help_panel=_PANEL)
]
CalibrationChunks = Annotated[
    int,
    typer.Option(
        "--calibration-chunks", min=1, metavar="N", help="Use the first N windows of each text.", rich_help_panel=_PANEL
    ),
]
Measurement = Annotated[
    Path | None,
    typer.Option(
        "--measurement",
        metavar="FILE",
        help="measurement.json to use where it exists, and to write where it does not.",
        rich_help_panel=_PANEL,
    ),
]


def to_exl2(
    model: Model,
    output: Path,
    settings: Settings,
    registries: Registries,
    *,
    bpw: float | None,
    head_bits: int,
    calibration: Sequence[Path] | None,
    context: int,
    chunks: int,
    measurement: Path | None,
    others: dict[str, bool],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Quantize a model to an EXL2 folder and print what came of it. Ctrl-C keeps what is done and exits with 1.

    ``others`` are further options that do not go with it, and whether they are given.
    """
    from ...runtime.measuring.identity import read_text
    from ...runtime.measuring.windows import join
    from ..exl2.folder import Exl2Request, check_request, write_exl2
    from ..measure import Cut, cut_text, subject_of
    from . import report
    from .running import running_bar, tell_notes

    refused = [name for name, given in {**_others(settings), **others, "--dry-run": dry_run}.items() if given]
    if refused:
        raise UsageError(f"{refused[0]} does not go with --to exl2", remedy="Leave it out.")
    if bpw is None:
        raise UsageError("--bpw is missing", remedy="Name the bits per weight, such as --bpw 4.0.")
    if not calibration:
        raise UsageError(
            "--calibration-text is missing", remedy="Name one or more files of text like what the model will read."
        )
    dataset = ", ".join(path.name for path in calibration)
    split = settings.write.split_max_size
    request = Exl2Request(bpw, head_bits, dataset, measurement, split, settings.force, settings.threads)
    check_request(output, request, model.files)
    subject = subject_of(model, registries)
    tell_notes(subject, context=context)
    windows = join([cut_text(subject, read_text(path), Cut(context, None, chunks)) for path in calibration])
    with ExitStack() as bars:

        def progress(label: str, total: int) -> Callable[[], None]:
            bars.close()  # one begins where another has ended
            tell = bars.enter_context(running_bar(label, total, as_json))
            return lambda: tell("")

        try:
            result = write_exl2(subject, registries, windows, output, request, progress)
        except KeyboardInterrupt:
            bars.close()
            report.note("interrupted; run the same command again to continue")
            raise typer.Exit(1) from None
    _show(result, as_json)


def _others(settings: Settings) -> dict[str, bool]:
    """Return the options that a conversion to EXL2 has no use for, and whether they are given."""
    from ...quantizers.rounding.feedback import DAMPING

    return {
        **refused(settings),
        "--calibration": settings.calibration is not None,
        "--method": settings.method != "plain",
        "--activation-order": settings.activation_order,
        "--damping": settings.damping != DAMPING,
        "--override-kv": bool(settings.overrides),
        "--prune-layers": bool(settings.prune),
    }


def _show(result: Exl2Result, as_json: bool) -> None:
    from . import report

    if result.unseen:
        count = f" and {len(result.unseen) - 4} more" if len(result.unseen) > 4 else ""
        report.note(
            f"no token of the calibration text met {', '.join(result.unseen[:4])}{count}: rounded as if all inputs were alike"
        )
    if as_json:
        report.print_json(
            {
                "written": [str(result.path)],
                "bytes": result.nbytes,
                "bits_per_weight": round(result.bits_per_weight, 4),
                "measured_loss": result.strategy.loss,
                "resumed_modules": result.resumed,
                "strategy": {name: list(map(str, row)) for name, row in result.strategy.rows.items()},
            }
        )
        return
    resumed = f", {result.resumed} modules taken over from an earlier run" if result.resumed else ""
    report.console().print(
        f"wrote {result.path}: {result.bits_per_weight:.3f} bits per weight in the layers, "
        f"{report.human_bytes(result.nbytes)}{resumed}",
        soft_wrap=True,
    )
