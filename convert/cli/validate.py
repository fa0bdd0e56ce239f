"""``qconv validate``: whether a conversion still says what its source says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..validation.validate import Receipt

__all__ = ["register", "show_receipt"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("validate")(validate)


def validate(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="What was converted: any readable format.")],
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="What came of it: any readable format.")],
    text: options.Texts = None,
    max_kld: options.MaxKld = None,
    context: options.Context = 512,
    chunks: options.Chunks = None,
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Where to write the receipt; default: RESULT.receipt.json."),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare a model with its source: tokens, weights, predictions. Exit code 1 where it is not what it should be."""
    from functools import partial

    from ...errors import UsageError
    from ...plugins.manager import load_plugins
    from ...runtime.measuring.identity import read_text
    from ..measure import Cut, open_subject
    from ..settings import Settings
    from ..validation.receipt import check_receipt_path, receipt_path, write_receipt
    from ..validation.validate import cut_for_validation
    from ..validation.validate import validate as compare
    from . import report
    from .running import identified, running_bar, tell_notes

    if not text:
        raise UsageError("--text is missing", remedy="Name one or more text files.")
    path = receipt_path(result) if receipt is None else receipt
    check_receipt_path(path)
    texts = [read_text(path) for path in text]
    registries = load_plugins().registries()
    with open_subject(source, registries) as one, open_subject(result, registries) as other:
        tell_notes(one, other, context=context)
        windows = cut_for_validation(one, texts, Cut(context, None, chunks))
        found = compare(
            identified(one, as_json),
            identified(other, as_json),
            texts,
            windows,
            max_divergence=max_kld,
            threads=Settings().threads if threads is None else threads,
            bar=partial(running_bar, quiet=as_json),
        )
    write_receipt(path, found)
    if as_json:
        report.print_json(found.to_dict())
    else:
        show_receipt(found)
    if not found.passed:
        raise typer.Exit(1)


def show_receipt(receipt: Receipt) -> None:
    """Print a judgement and what it rests on."""
    from . import report

    statistics = receipt.statistics
    rows = [
        ("tokenizer", "the same tokens" if receipt.parity.same else receipt.parity.difference),
        ("weights", f"{receipt.weights.compared} tensors compared, {len(receipt.weights.faults)} are wrong"),
    ]
    if statistics is not None:
        percentiles = statistics.divergence_percentiles
        rows += [
            (
                "perplexity of the source",
                f"{statistics.base_perplexity.value:.4f} ± {statistics.base_perplexity.error:.4f}",
            ),
            ("perplexity of the result", f"{statistics.perplexity.value:.4f} ± {statistics.perplexity.error:.4f}"),
            ("mean KL divergence", f"{statistics.divergence.value:.6f} ± {statistics.divergence.error:.6f}"),
            ("its limit", f"{receipt.max_divergence:.6g} ({receipt.type})"),
            ("median, 99 %", f"{percentiles[0.5]:.6f}, {percentiles[0.99]:.6f}"),
            ("same first token", f"{100 * statistics.same_top.value:.2f} ± {100 * statistics.same_top.error:.2f} %"),
            ("positions", f"{statistics.positions:,}"),
        ]
    report.print_table("", ("", ""), rows)
    screen = report.console()
    if receipt.passed:
        screen.print("passed", style="green")
        return
    for reason in receipt.reasons:
        screen.print(f"failed: {reason}", style="red", soft_wrap=True)
    if receipt.first is not None:
        screen.print(f"first difference at {receipt.first.tensor}: {receipt.first.problem}", soft_wrap=True)
    for key, (one, other) in receipt.metadata.items():
        screen.print(f"{key} is {one} in the source, {other} in the result", soft_wrap=True)
