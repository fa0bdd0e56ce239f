"""``qconv metadata show``, ``set``, ``unset`` and ``copy``: what a model file says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ...formats.metadata import Field
    from ..editing.edit_metadata import Edited

__all__ = ["register"]

Target = Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file; of a split model the first part.")]
ForceKey = Annotated[
    bool, typer.Option("--force", "-f", help="Change keys that break the file if they are wrong, too.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(
        help="Show or change the metadata of a model file.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    commands.command("show")(show)
    commands.command("set")(set_keys)
    commands.command("unset")(unset)
    commands.command("copy")(copy)
    app.add_typer(commands, name="metadata")


def show(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A model file or folder of any readable format.")],
    keys: Annotated[
        list[str] | None, typer.Option("--keys", "-k", metavar="GLOB", help="Only keys like this; may be repeated.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print strings and arrays whole.")] = False,
    as_json: options.Json = False,
) -> None:
    """List every metadata key with its type and value."""
    from ...formats.summary import printable
    from ...plugins.manager import load_plugins
    from ..editing import metadata_values as values
    from . import report

    chosen = values.matching(values.read_metadata(model, load_plugins().registries()), keys)
    if as_json:
        found = {printable(key): values.as_json(field, full) for key, field in chosen.items()}
        report.print_json({"path": str(model), "metadata": found})
        return
    if keys and not chosen:
        report.note(f"no key is like {', '.join(keys)}")
        return
    if full:
        for key, it in chosen.items():
            text = f"{printable(key)} ({values.type_and_length(it)}): {values.as_text(it, full)}"
            report.console().print(text, soft_wrap=True)
        return
    rows = [(printable(key), values.type_and_length(it), values.as_text(it, full)) for key, it in chosen.items()]
    report.print_table("", ("key", "type", "value"), rows)


def set_keys(
    model: Target,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=TYPE:VALUE...", help="As --override-kv; TYPE: may be left out for keys that exist."
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file", metavar="KEY=PATH", help="Set a string to the content of a UTF-8 file; may be repeated."
        ),
    ] = None,
    force: ForceKey = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Set metadata keys, in place where they fit."""
    from ...errors import UsageError
    from ..editing.metadata_values import parse_assignments

    if not assignments and not files:
        raise UsageError("nothing to set", remedy="Name at least one KEY=TYPE:VALUE, or --file KEY=PATH.")
    _edit(model, lambda old: parse_assignments(assignments or (), files or (), old), (), force, dry_run, as_json)


def unset(
    model: Target,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys to remove.")],
    force: ForceKey = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Remove metadata keys, in place where what is left can be filled up."""
    _edit(model, lambda old: {}, keys, force, dry_run, as_json)


def copy(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A model file or folder of any readable format.")],
    model: Annotated[Path, typer.Argument(metavar="TO.gguf", help="GGUF file; of a split model the first part.")],
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--keys",
            "-k",
            metavar="GLOB",
            help="Keys to copy, such as 'tokenizer.*'; may be repeated. Default: general.* and tokenizer.* that fit any file.",
        ),
    ] = None,
    force: ForceKey = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Copy metadata keys from another model, such as its chat template or tokenizer."""
    from ...plugins.manager import load_plugins
    from ..editing.metadata_values import keys_to_copy, read_metadata

    chosen = keys_to_copy(read_metadata(source, load_plugins().registries()), keys, source)
    _edit(model, lambda old: chosen, (), force, dry_run, as_json)


def _edit(
    model: Path,
    assign: Callable[[Mapping[str, Field]], Mapping[str, Field]],
    remove: Sequence[str],
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ...plugins.manager import load_plugins
    from ..editing.edit_metadata import edit_metadata
    from ..editing.metadata_values import as_json as plain
    from . import report

    encodings = load_plugins().registries().encodings
    total = model.stat().st_size if model.is_file() else 0
    with report.progress_bar(f"rewrite {model.name}", total, quiet=as_json) as progress:
        done = edit_metadata(model, assign, remove, encodings, force=force, dry_run=dry_run, progress=progress)
    if as_json:
        report.print_json(
            {
                "path": str(done.path),
                "changes": {
                    it.key: {
                        "before": None if it.before is None else plain(it.before, False),
                        "after": None if it.after is None else plain(it.after, False),
                    }
                    for it in done.changes
                },
                "in_place": done.in_place,
                "bytes_written": 0 if dry_run else done.bytes_written,
                "notes": list(done.notes),
            }
        )
        return
    _show(model, done, dry_run)


def _show(model: Path, done: Edited, dry_run: bool) -> None:
    from ..editing.metadata_values import as_text, type_and_length
    from . import report

    screen = report.console()
    if not done.changes:
        screen.print(f"{model}: nothing to change", soft_wrap=True)
        return
    rows = [
        (
            it.key,
            "" if (one := it.after or it.before) is None else type_and_length(one),
            "absent" if it.before is None else as_text(it.before, False),
            "absent" if it.after is None else as_text(it.after, False),
        )
        for it in done.changes
    ]
    report.print_table("", ("key", "type", "before", "after"), rows)
    verb = "would write" if dry_run else "wrote"
    how = f"{verb} {done.bytes_written:,} bytes" + (" over the header" if done.in_place else ", the whole file anew")
    screen.print(f"\n{model}: {how}", soft_wrap=True)
    for text in done.notes:
        report.note(text)
