"""``qconv diff``: what is different between two models of any format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ...formats.base import Model
    from ..diff import Difference, TensorDifference
    from ..editing.edit_metadata import Change

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diff")(diff)


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model file or folder of any readable format.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, perhaps of another format.")],
    tensors: Annotated[
        list[str] | None,
        typer.Option("--tensors", metavar="GLOB", help="Compare only tensors like 'blk.0.*'; may be repeated."),
    ] = None,
    metadata_only: Annotated[bool, typer.Option("--metadata-only", help="Read no weights.")] = False,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Leave the metadata out.")] = False,
    worst: Annotated[
        int, typer.Option("--worst", min=0, metavar="N", help="Most differences of each kind to show; 0: all.")
    ] = 20,
    as_arch: options.AsArch = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare two models tensor by tensor, the worst first. Exit code 0: the same, 1: different, 2: no comparison was possible."""
    from ...errors import QconvError, UsageError
    from . import report

    if metadata_only and (weights_only or tensors):
        raise UsageError("--metadata-only leaves no weights to choose from")
    try:
        same = _diff(first, second, tensors, metadata_only, weights_only, worst, as_arch, threads, as_json)
    except (QconvError, OSError, MemoryError) as error:
        report.error(str(error) or "out of memory")
        raise typer.Exit(2) from None
    if not same:
        raise typer.Exit(1)


def _diff(
    first: Path,
    second: Path,
    tensors: list[str] | None,
    metadata_only: bool,
    weights_only: bool,
    worst: int,
    as_arch: str | None,
    threads: int | None,
    as_json: bool,
) -> bool:
    from fnmatch import fnmatchcase

    from ...errors import UsageError
    from ...plugins.manager import load_plugins
    from ..diff import Difference, diff_metadata, diff_tensors
    from ..opening import open_model
    from ..settings import Settings
    from . import report

    def chosen(name: str) -> bool:
        return not tensors or any(fnmatchcase(name, glob) for glob in tensors)

    workers = Settings().threads if threads is None else threads
    registries = load_plugins().registries()
    with (
        open_model(first, registries, as_arch, vocabulary_only=metadata_only) as one,
        open_model(second, registries, as_arch, vocabulary_only=metadata_only) as other,
    ):
        found: tuple[TensorDifference, ...] = ()
        if not metadata_only:
            if not any(chosen(name) for name in (*one.tensors, *other.tensors)):
                raise UsageError(f"no tensor of either model is like {', '.join(tensors or ('*',))}")
            total = sum(it.nbytes for it in one.tensors.values() if chosen(it.name))
            with report.progress_bar("compare", total, quiet=as_json) as progress:
                found = diff_tensors(one, other, chosen=chosen, threads=workers, progress=progress)
        difference = Difference(found, () if weights_only else diff_metadata(one, other))
        if as_json:
            report.print_json(_as_json(one, other, difference))
        else:
            _show(one, other, difference, worst, metadata_only)
    return difference.same


def _as_json(first: Model, second: Model, difference: Difference) -> Mapping[str, object]:
    from ..editing.metadata_values import as_json, finite

    return {
        "first": {"path": str(first.path), "format": first.format, "architecture": first.architecture},
        "second": {"path": str(second.path), "format": second.format, "architecture": second.architecture},
        "same": difference.same,
        "counts": {str(verdict): count for verdict, count in difference.counts.items()},
        "tensors": [
            {
                "name": it.name,
                "verdict": str(it.verdict),
                "shapes": [None if shape is None else list(shape) for shape in it.shapes],
                "encodings": list(it.encodings),
                "max_abs": finite(it.max_abs),
                "relative_rms": finite(it.relative),
                "non_finite": it.non_finite,
                "sha256": None if it.sha256 is None else list(it.sha256),
            }
            for it in difference.tensors
        ],
        "metadata": {
            it.key: [None if field is None else as_json(field, False) for field in (it.before, it.after)]
            for it in difference.metadata
        },
    }


def _show(first: Model, second: Model, difference: Difference, worst: int, metadata_only: bool) -> None:
    from ..diff import Verdict
    from . import report

    screen = report.console()
    different = [it for it in difference.tensors if it.verdict.is_difference]
    shown = different[:worst] if worst else different
    if shown:
        columns = ("tensor", "shape", "A", "B", "max abs", "relative", "")
        report.print_table("", columns, [_row(it) for it in shown], right=("shape", "max abs", "relative"))
        if len(different) > len(shown):
            screen.print(f"… and {len(different) - len(shown):,} more (--worst 0 shows all)")
        screen.print()
    changes = difference.metadata[:worst] if worst else difference.metadata
    if changes:
        report.print_table("", ("key", "A", "B"), [_change(it) for it in changes])
        if len(difference.metadata) > len(changes):
            screen.print(f"… and {len(difference.metadata) - len(changes):,} more (--worst 0 shows all)")
        screen.print()
    screen.print(f"A {first.path} ({first.format})", soft_wrap=True)
    screen.print(f"B {second.path} ({second.format})", soft_wrap=True)
    if not metadata_only:
        counts = [
            f"{difference.counts[verdict]:,} {_PHRASES[verdict]}" for verdict in Verdict if difference.counts[verdict]
        ]
        screen.print(f"{len(difference.tensors):,} tensors: {', '.join(counts)}", soft_wrap=True)
    if difference.metadata:
        keys = "metadata key differs" if len(difference.metadata) == 1 else "metadata keys differ"
        screen.print(f"{len(difference.metadata):,} {keys}")
    screen.print("the models are the same" if difference.same else "the models are different")


_PHRASES: Mapping[str, str] = {
    "only in the first": "only in A",
    "only in the second": "only in B",
    "other shape": "of another shape",
    "cannot be decoded": "that cannot be decoded",
    "other values": "with other values",
    "same values": "with the same values in another encoding",
    "same bytes": "with the same bytes",
}


def _row(it: TensorDifference) -> tuple[str, ...]:
    from ...formats.summary import printable

    one, other = it.shapes
    shape = _shape(one or other or ())
    about = _PHRASES[it.verdict] if it.max_abs is None else ""
    if one is not None and other is not None and one != other:
        about = f"in B {_shape(other)}"
    if it.non_finite:
        about = f"{it.non_finite:,} not finite"
    errors = ("" if it.max_abs is None else f"{it.max_abs:.2e}", "" if it.relative is None else f"{it.relative:.2e}")
    return (printable(it.name), shape, it.encodings[0] or "", it.encodings[1] or "", *errors, about)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _change(it: Change) -> tuple[str, str, str]:
    from ...formats.summary import printable
    from ..diff import first_difference
    from ..editing.metadata_values import as_text, element_text, type_and_length

    key, one, other = printable(it.key), it.before, it.after
    if one is None or other is None or not (one.is_array and other.is_array):
        typed = one is not None and other is not None and one.type is not other.type
        words = [
            "absent" if field is None else as_text(field, False) + (f" ({type_and_length(field)})" if typed else "")
            for field in (one, other)
        ]
        return key, words[0], words[1]
    count, index = first_difference(one, other)
    words = [f"{type_and_length(field)}, {index}: {element_text(field, index)}" for field in (one, other)]
    return f"{key} ({count:,} differ)", words[0], words[1]
