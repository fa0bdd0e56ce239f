"""``qconv merge``: a GGUF model in parts becomes one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST-PART", help="The first part; the others are found beside it.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source", help="Delete the parts, once the output is whole and on disk.", rich_help_panel="Output"
        ),
    ] = False,
    no_digests: options.NoDigests = False,
    threads: options.Threads = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Join the parts of a GGUF model. Every part is checked before a byte is written."""
    from ...plugins.manager import load_plugins
    from ..editing.split import check_bytes, plan_merge
    from ..editing.transfer import run_transfer
    from ..output import check_output
    from ..settings import Settings
    from . import report
    from .split import show_parts, transfer_as_json

    workers = Settings().threads if threads is None else threads
    context = load_plugins().registries().open_context()
    with plan_merge(first, output, context, digests=not no_digests) as (transfer, parts):
        check_output(transfer.layout, transfer.sources, force)
        total = sum(tensor.nbytes for tensor in transfer.tensors)
        digested = sum(transfer.digests.get(tensor.name) is not None and tensor.nbytes for tensor in transfer.tensors)
        with report.progress_bar(f"check {first.name}", digested, quiet=as_json or not digested) as progress:
            checked = len(check_bytes(parts, workers, progress))
        if dry_run:
            if as_json:
                report.print_json(transfer_as_json(first, transfer) | {"parts": len(parts), "parts_verified": checked})
            else:
                show_parts(transfer, "would write")
            return
        with report.progress_bar(f"merge {first.name}", total, quiet=as_json) as progress:
            done = run_transfer(transfer, force, workers, progress)
    if delete_source:
        for path in transfer.sources:
            path.unlink()
    if as_json:
        counts = {"parts": len(parts), "parts_verified": checked, "deleted": delete_source}
        report.print_json(transfer_as_json(first, transfer, done) | counts)
        return
    if checked < len(parts):
        unverified = f"{len(parts) - checked} of {len(parts)} parts carry"
        report.note(f"{unverified} no digests: their sizes were checked, their bytes could not be")
    show_parts(transfer, "wrote", done)
