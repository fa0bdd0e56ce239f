"""``qconv verify``: whether every bit of a file, or of a folder with a checklist, is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="GGUF file with digests, as qconv writes them, or folder with Meta's checklist.chk."
        ),
    ],
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare every byte of a GGUF file with the digests stored in it; finds a single flipped bit."""
    if model.is_dir():
        _verify_folder(model, as_json)
        return
    from ...formats.gguf.verify import verify_gguf
    from ...plugins.manager import load_plugins
    from ..settings import Settings
    from . import report

    encodings = load_plugins().registries().encodings
    workers = Settings().threads if threads is None else threads
    total = model.stat().st_size
    with report.progress_bar(model.name, total, quiet=as_json) as progress:
        found = verify_gguf(model, progress, workers, encodings)
    if as_json:
        report.print_json(found.to_dict())
    elif found.ok:
        tensors = sum(len(part.tensors) for part in found.parts)
        nbytes = sum(part.path.stat().st_size for part in found.parts)
        report.console().print(
            f"{model}: whole: {tensors} tensors, {nbytes:,} bytes as they were written", soft_wrap=True
        )
    else:
        for problem in found.problems():
            report.error(problem, "damaged")
        typer.echo("Download or convert it again.", err=True)
    if not found.ok:
        raise typer.Exit(1)


def _verify_folder(folder: Path, as_json: bool) -> None:
    """Compare the files of a Meta checkpoint with its checklist."""
    from ...errors import MissingFileError
    from ...formats.meta.checklist import NAME, read_checklist, verify_checklist
    from . import report

    if not (folder / NAME).is_file():
        raise MissingFileError(
            f"the folder has no {NAME} to compare its files with",
            path=folder,
            remedy="Of GGUF files, name the file: those that qconv writes carry digests.",
        )

    total = sum((folder / name).stat().st_size for name in read_checklist(folder) if (folder / name).is_file())
    with report.progress_bar(folder.name, total, quiet=as_json) as progress:
        found = verify_checklist(folder, progress)
    damaged = [name for name, same in found.items() if not same]
    if as_json:
        report.print_json({"path": str(folder), "ok": not damaged, "files": found})
    elif damaged:
        for name in damaged:
            report.error(f"{name} differs from {NAME}", "damaged")
        typer.echo("Download it again.", err=True)
    else:
        report.console().print(
            f"{folder}: whole: {len(found)} files, {total:,} bytes as {NAME} has them", soft_wrap=True
        )
    if damaged:
        raise typer.Exit(1)
