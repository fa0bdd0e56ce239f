"""``qconv split``: a GGUF model becomes one in parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..editing.transfer import Transfer, Transferred

__all__ = ["register", "show_parts", "transfer_as_json"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split")(split)


def split(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="GGUF file; of a split model the first part.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Prefix of the parts, which are OUT-00001-of-00003.gguf and so on.")
    ],
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="N[K|M|G]", help="Most bytes of tensors per part, such as 2G.")
    ] = None,
    max_tensors: Annotated[
        int | None, typer.Option("--max-tensors", min=1, metavar="N", help="Most tensors per part.")
    ] = None,
    no_tensor_first_split: Annotated[
        bool, typer.Option("--no-tensor-first-split", help="The first part holds metadata alone.")
    ] = False,
    no_digests: options.NoDigests = False,
    threads: options.Threads = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Cut a GGUF model into parts, named as llama.cpp's: no weight is changed."""
    from ...formats.base import WriteOptions
    from ...plugins.manager import load_plugins
    from ..editing.split import plan_split
    from ..editing.transfer import run_transfer
    from ..output import check_output
    from ..settings import Settings, parse_size
    from . import report

    context = load_plugins().registries().open_context()
    write = WriteOptions(
        split_max_size=None if max_size is None else parse_size(max_size),
        split_max_tensors=max_tensors,
        digests=not no_digests,
        metadata_only_first=no_tensor_first_split,
    )
    with plan_split(model, output, context, write) as transfer:
        if dry_run:
            check_output(transfer.layout, transfer.sources, force)
            if as_json:
                report.print_json(transfer_as_json(model, transfer))
            else:
                show_parts(transfer, "would write")
            return
        total = sum(tensor.nbytes for tensor in transfer.tensors)
        with report.progress_bar(f"split {model.name}", total, quiet=as_json) as progress:
            done = run_transfer(transfer, force, Settings().threads if threads is None else threads, progress)
    if as_json:
        report.print_json(transfer_as_json(model, transfer, done))
    else:
        show_parts(transfer, "wrote", done)


def transfer_as_json(source: Path, transfer: Transfer, done: Transferred | None = None) -> dict[str, object]:
    """Return what is or was moved as JSON-compatible values."""
    found: dict[str, object] = {
        "source": str(source),
        "outputs": [
            {"path": str(part.path), "bytes": part.size, "tensors": len(part.placements)}
            for part in transfer.layout.parts
        ],
        "bytes": transfer.layout.size,
        "tensors": len(transfer.tensors),
        "digests": transfer.digested,
    }
    if done is not None:
        found |= {"seconds": round(done.seconds, 3), "bytes_copied_by_system": done.copied_by_system}
    return found


def show_parts(transfer: Transfer, verb: str, done: Transferred | None = None) -> None:
    """Print one line per file, and the rate of what was done."""
    from . import report

    screen = report.console()
    for part in transfer.layout.parts:
        tensors = report.counted(len(part.placements), "tensor")
        screen.print(f"{verb} {part.path} ({tensors}, {part.size:,} bytes)", soft_wrap=True)
    if done is not None:
        rate = report.human_bytes(done.bytes / max(done.seconds, 1e-9))
        digests = "with digests" if transfer.digested else "without digests"
        screen.print(
            f"{len(transfer.tensors)} tensors {digests}, {report.human_seconds(done.seconds)}, {rate}/s", soft_wrap=True
        )
