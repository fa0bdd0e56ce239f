"""``qconv verify``: whether every bit of a file is as it was written."""

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
    model: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file with digests, as qconv writes them.")],
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare every byte of a GGUF file with the digests stored in it; finds a single flipped bit."""
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
            typer.echo(f"{typer.style('damaged:', fg='red', bold=True)} {problem}", err=True)
        typer.echo("Download or convert it again.", err=True)
    if not found.ok:
        raise typer.Exit(1)
