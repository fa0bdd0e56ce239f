"""``qconv calibrate``: second moments of what every matrix is multiplied by, for error feedback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..calibration.second_moments import Measured, MomentJob

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model of any readable format.")],
    text: options.Texts = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file.", rich_help_panel="Output")
    ] = None,
    context: options.Context = 512,
    chunks: options.Chunks = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let control tokens in the text become those tokens.")
    ] = False,
    include_weights: Annotated[
        list[str] | None,
        typer.Option("--include-weights", metavar="TEXT", help="Measure only tensors with TEXT in their name."),
    ] = None,
    exclude_weights: Annotated[
        list[str] | None,
        typer.Option("--exclude-weights", metavar="TEXT", help="Measure no tensors with TEXT in their name."),
    ] = None,
    min_tokens: Annotated[
        int, typer.Option("--min-tokens", min=1, metavar="N", help="Name the experts that saw fewer than N tokens.")
    ] = 32,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0,
            callback=options.finite,
            metavar="GiB",
            help="Memory for second moments; default: half of what is free. With less, stages are run several times.",
            rich_help_panel="Work",
        ),
    ] = None,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure, on texts, the second moments that error feedback needs (qconv quantize --method gptq)."""
    from ...errors import UsageError
    from ...formats.whole_file import refuse_existing
    from ...plugins.manager import load_plugins
    from ...runtime.held import memory_budget
    from ...runtime.measuring.identity import read_text
    from ...runtime.measuring.windows import join
    from ..calibration.second_moments import MomentJob
    from ..measure import Cut, cut_text, open_subject
    from .running import identified, tell_notes

    if not text:
        raise UsageError("--text is missing", remedy="Name one or more files of text like what the model will read.")
    if output is None:
        raise UsageError("--output is missing", remedy="Name a file with -o.")
    if include_weights and exclude_weights:
        raise UsageError("--include-weights and --exclude-weights exclude each other")
    refuse_existing(output, force)
    texts = [read_text(path) for path in text]
    cut = Cut(context, None, chunks, parse_special)

    def wanted(name: str) -> bool:
        if include_weights:
            return any(part in name for part in include_weights)
        return not any(part in name for part in exclude_weights or ())

    with open_subject(model, load_plugins().registries(), as_arch, pre_tokenizer) as opened:
        tell_notes(opened, context=context)
        subject = identified(opened, as_json)
        windows = join([cut_text(subject, it, cut) for it in texts])
        job = MomentJob(subject, texts, windows, wanted)
        budget = memory_budget() if memory is None else int(memory * 2**30)
        measured = _measure(job, output, budget, force, threads, as_json)
        _show(job, measured, output, min_tokens, as_json)


def _measure(job: MomentJob, output: Path, memory: int, force: bool, threads: int | None, quiet: bool) -> Measured:
    """Carry a job out, with progress; Ctrl-C leaves what is done and exits with 1."""
    from ..calibration.second_moments import measure_moments
    from . import report
    from .running import running_bar

    try:
        with running_bar("calibrate", len(job.stages) * len(job.windows.tokens), quiet) as tell:

            def advance(count: int) -> None:
                for _ in range(count):
                    tell("")

            return measure_moments(
                job, output, memory=memory, force=force, advance=advance, move=tell.move, threads=threads
            )
    except KeyboardInterrupt:
        report.note("interrupted; run the same command again to continue")
        raise typer.Exit(1) from None


def _show(job: MomentJob, measured: Measured, output: Path, min_tokens: int, as_json: bool) -> None:
    from dataclasses import asdict

    from . import report

    stacks = {names: counts for names, counts in measured.counts.items() if len(counts) > 1}
    unseen = {names[0]: [int(it) for it in (counts == 0).nonzero()[0]] for names, counts in stacks.items()}
    if as_json:
        report.print_json(
            {
                "output": str(output),
                "bytes": measured.nbytes,
                "resumed_stages": measured.resumed,
                "facts": asdict(job.facts),
                "entries": [
                    {"tensors": list(names), "tokens": counts.tolist()} for names, counts in measured.counts.items()
                ],
                "unseen_experts": {name: experts for name, experts in unseen.items() if experts},
            }
        )
        return
    if stacks:
        rows = [
            (
                ", ".join(names),
                str(len(counts)),
                str(len(unseen[names[0]])),
                f"{counts.min():,.0f}",
                f"{counts.max():,.0f}",
                report.listed([int(it) for it in (counts < min_tokens).nonzero()[0]]),
            )
            for names, counts in stacks.items()
        ]
        columns = ("stack", "experts", "unseen", "fewest tokens", "most", f"below {min_tokens}")
        report.print_table("", columns, rows, right=columns[1:-1])
    resumed = f", {measured.resumed} of {len(job.stages)} stages taken over" if measured.resumed else ""
    report.console().print(
        f"wrote {output}: {len(measured.counts)} second moments of "
        f"{report.counted(len(job.windows.tokens), 'chunk')} of {job.windows.context} tokens, {report.human_bytes(measured.nbytes)}{resumed}",
        soft_wrap=True,
    )
