"""``qconv imatrix``: measure, merge and inspect importance matrices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ...formats.imatrix_provenance import Provenance
    from ...quantizers.importance import ImportanceMatrix
    from ...runtime.measuring.importance_statistics import TensorStatistics
    from ..calibration.calibrate import Calibration

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("imatrix")(imatrix)


def imatrix(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A model of any readable format; not needed to merge.")
    ] = None,
    text: options.Texts = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file.", rich_help_panel="Output")
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge",
            metavar="FILE",
            help="Add a file; may be repeated. A .dat counts chunks: -c tells of how many tokens.",
        ),
    ] = None,
    show_statistics: Annotated[
        bool, typer.Option("--show-statistics", help="Show what the result says about each tensor.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="gguf|dat", help="Form of the output.", rich_help_panel="Output")
    ] = "gguf",
    compat: Annotated[
        str | None,
        typer.Option("--compat", metavar="llama.cpp", help="Count the row of BOS, as llama.cpp does."),
    ] = None,
    context: options.Context = 512,
    chunks: options.Chunks = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Measure the output matrix as well.")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let control tokens in the text become those tokens.")
    ] = False,
    min_tokens: Annotated[
        int, typer.Option("--min-tokens", min=1, metavar="N", help="Name the experts that saw fewer than N tokens.")
    ] = 32,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure how much each input channel of each matrix matters, on texts; merge such measurements; show them."""
    from contextlib import nullcontext

    from ...errors import UsageError
    from ...formats.imatrix import read_imatrix
    from ...formats.imatrix_provenance import merge_provenance, read_provenance
    from ...formats.whole_file import refuse_existing
    from ...plugins.manager import load_plugins
    from ...quantizers.importance import merge as add_up
    from ...runtime.measuring.identity import read_text
    from ...runtime.measuring.windows import join
    from ..calibration.calibrate import Calibration, checkpoint_path, save_importance
    from ..locking import sole_writer
    from ..measure import Cut, cut_text, open_subject
    from ..settings import choose
    from .running import identified, tell_notes

    choose("--format", form, ("gguf", "dat"))
    if compat is not None:
        choose("--compat", compat, ("llama.cpp",))
    if (model is None) != (not text):
        raise UsageError("measuring needs a model and --text", remedy="To merge files, name neither.")
    if model is None and not merge:
        raise UsageError("there is nothing to do", remedy="Name a model and --text, or files with --merge.")
    if output is None and (model is not None or not show_statistics):
        raise UsageError("--output is missing", remedy="Name a file with -o.")
    if output is not None:
        refuse_existing(output, force, [*([] if model is None else [model]), *(text or ())])
    registries = load_plugins().registries()
    files = registries.open_context()
    with nullcontext() if output is None else sole_writer(output):
        found: list[tuple[str, ImportanceMatrix, Provenance | None]] = [
            (str(path), _true_counts(read_imatrix(path, files), path, context), read_provenance(path, files))
            for path in merge or ()
        ]
        if model is not None and output is not None:
            texts = [read_text(path) for path in text or ()]
            cut = Cut(context, None, chunks, parse_special)
            with open_subject(model, registries, as_arch, pre_tokenizer) as opened:
                tell_notes(opened, context=context)
                subject = identified(opened, as_json)
                windows = join([cut_text(subject, it, cut) for it in texts])
                tied = "output.weight" not in subject.model.tensors
                compatible = compat is not None
                job = Calibration(subject, texts, windows, compatible, process_output and not (tied and compatible))
                found.insert(0, (str(model), _measure(job, output, threads, as_json), job.provenance))
        matrix = add_up([it for _, it, _ in found])
        provenance = merge_provenance([(name, it) for name, _, it in found])
        if output is not None:
            save_importance(output, matrix, provenance, form)
            checkpoint_path(output).unlink(missing_ok=True)
    _show(matrix, provenance, output, show_statistics, min_tokens, as_json)


def _true_counts(matrix: ImportanceMatrix, path: Path, context: int) -> ImportanceMatrix:
    """Return a matrix as it is; of a legacy file, which counts chunks, as one of chunks of ``context`` tokens."""
    from dataclasses import replace

    from ...formats.gguf import detect_gguf
    from ...quantizers.importance import ImportanceEntry

    if detect_gguf(path) or matrix.chunk_size == context:
        return matrix
    scale = context / matrix.chunk_size
    entries = {
        name: ImportanceEntry((entry.sums * scale).astype("float32"), entry.counts * scale)
        for name, entry in matrix.entries.items()
    }
    return replace(matrix, entries=entries, chunk_size=context)


def _measure(job: Calibration, output: Path, threads: int | None, quiet: bool) -> ImportanceMatrix:
    """Carry a job out, with progress; Ctrl-C leaves the checkpoint and exits with 1."""
    from ..calibration.calibrate import checkpoint_path, measure_importance
    from . import report
    from .running import running_bar

    try:
        with running_bar("imatrix", len(job.windows.tokens), quiet) as tell:

            def advance(count: int) -> None:
                for _ in range(count):
                    tell("")

            return measure_importance(job, checkpoint_path(output), advance, threads, tell.move)
    except KeyboardInterrupt:
        report.note("interrupted; run the same command again to continue")
        raise typer.Exit(1) from None


def _show(
    matrix: ImportanceMatrix,
    provenance: Provenance | None,
    output: Path | None,
    statistics: bool,
    min_tokens: int,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from ...runtime.measuring.importance_statistics import coverage, layer_statistics, tensor_statistics
    from . import report

    covered = coverage(matrix, min_tokens)
    tensors = tensor_statistics(matrix) if statistics else []
    if as_json:
        found = {
            "output": None if output is None else str(output),
            "datasets": list(matrix.datasets),
            "chunk_count": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "provenance": None if provenance is None else asdict(provenance),
            "coverage": [it.to_dict() for it in covered],
        }
        if statistics:
            found["statistics"] = [it.to_dict() for it in tensors]
            found["layers"] = [asdict(it) for it in layer_statistics(tensors)]
        report.print_json(found)
        return
    if statistics:
        _show_statistics(tensors)
    stacks = [it for it in covered if it.matrices > 1]
    if stacks:
        rows = [
            (
                it.name,
                str(it.matrices),
                str(it.unseen),
                f"{it.least:,}",
                f"{it.median:,.0f}",
                f"{it.most:,}",
                _few(it.thin),
            )
            for it in stacks
        ]
        columns = ("stack", "experts", "unseen", "fewest tokens", "median", "most", f"below {min_tokens}")
        report.print_table("", columns, rows, right=columns[1:-1])
    if output is not None:
        most = max((it.most for it in covered), default=0)
        report.console().print(
            f"wrote {output}: {len(matrix.entries)} tensors, {most:,} activations, "
            f"{report.counted(matrix.chunk_count, 'chunk')} of {matrix.chunk_size}",
            soft_wrap=True,
        )


def _few(numbers: tuple[int, ...]) -> str:
    """Return a list of numbers, cut where it grows long."""
    listed = ", ".join(map(str, numbers[:8]))
    return listed + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def _show_statistics(tensors: list[TensorStatistics]) -> None:
    """Print the tables of tensors and of layers."""
    from ...runtime.measuring.importance_statistics import layer_statistics
    from . import report

    columns = (
        "layer",
        "tensor",
        "Σ(Act²)",
        "min",
        "max",
        "μ",
        "σ",
        "% active",
        "N",
        "entropy",
        "E(norm)",
        "ZD",
        "CosSim",
    )
    rows = [
        (
            "-" if it.layer is None else str(it.layer),
            it.kind,
            f"{it.total:.2f}",
            f"{it.minimum:.4f}",
            f"{it.maximum:.4f}",
            f"{it.mean:.4f}",
            f"{it.deviation:.4f}",
            f"{100 * it.active:.2f} %",
            str(it.count),
            f"{it.entropy:.4f}",
            f"{100 * it.entropy_share:.2f} %",
            f"{100 * it.outliers:.2f} %",
            _optional(it.similarity),
        )
        for it in tensors
    ]
    report.print_table("", columns, rows, right=("layer", *columns[2:]))
    lines = [
        (str(it.layer), f"{it.total:.2f}", f"{100 * it.outliers:.2f} %", _optional(it.similarity))
        for it in layer_statistics(tensors)
    ]
    report.print_table(" ", ("layer", "Σ(Act²)", "ZD", "CosSim"), lines, right=("layer", "Σ(Act²)", "ZD", "CosSim"))


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
