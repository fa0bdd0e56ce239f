"""``qconv inspect``: what a model file holds, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ...formats.base import Model
    from ...formats.summary import Summary

__all__ = ["register"]

_FIRST_VALUES = 80  # characters of a metadata value shown by --metadata


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A model file or folder of any readable format.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer", help="Show the tokenizer and chat templates.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List every metadata key.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a model holds: architecture, sizes, types, tokenizer. Reads no weights."""
    from ...formats.summary import plain_value, summarize, summarize_tensors
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from . import report

    with open_model(model, load_plugins().registries()) as source:
        summary = summarize(source)
        if as_json:
            found = summary.to_dict()
            if tensors:
                found["tensor_list"] = [
                    {"name": t.name, "shape": list(t.shape), "type": t.type, "bytes": t.bytes}
                    for t in summarize_tensors(source)
                ]
            if metadata:
                found["metadata"] = {key: plain_value(field) for key, field in source.metadata.items()}
            report.print_json(found)
            return
        _show(summary)
        if tokenizer:
            _show_tokenizer(source, summary)
        if metadata:
            rows = [(key, _shortened(str(plain_value(field)))) for key, field in source.metadata.items()]
            report.print_table("\nMetadata", ("key", "value"), rows)
        if tensors:
            lines = [(t.name, " × ".join(map(str, t.shape)), t.type, f"{t.bytes:,}") for t in summarize_tensors(source)]
            report.print_table("\nTensors", ("name", "shape", "type", "bytes"), lines, right=("shape", "bytes"))


def _shortened(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _FIRST_VALUES else line[: _FIRST_VALUES - 1] + "…"


def _show(summary: Summary) -> None:
    from . import report

    container = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in summary.container.items())
    facts = [
        (
            "file",
            ", ".join(summary.files) if len(summary.files) <= 3 else f"{summary.path} ({len(summary.files)} files)",
        ),
        ("format", summary.format + (f" ({container})" if container else "")),
        ("architecture", summary.architecture or "none"),
        ("name", summary.name or "none"),
        ("type", summary.file_type or "not stated"),
        ("weights", f"{summary.parameters:,} in {summary.tensors} tensors"),
        ("size", f"{report.human_bytes(summary.file_bytes)} ({summary.file_bytes:,} bytes)"),
    ]
    if summary.bits_per_weight is not None:
        facts.append(("bits per weight", f"{summary.bits_per_weight:.2f}"))
    if summary.context_length is not None:
        facts.append(("context", f"{summary.context_length:,} tokens"))
    vocabulary = summary.tokenizer
    if vocabulary is not None:
        pre = f", pre-tokenizer {vocabulary.pre}" if vocabulary.pre else ""
        facts.append(("tokenizer", f"{vocabulary.model or 'none'}{pre}, {vocabulary.size:,} tokens"))
        special = ", ".join(f"{role} {token.id} {token.text or '?'}" for role, token in vocabulary.special.items())
        facts.append(("special tokens", special or "none"))
        facts.append(("chat template", ", ".join(vocabulary.templates) or "none"))
    facts.append(("digests", "yes, check with qconv verify" if summary.digests else "none"))
    report.print_table("", ("", ""), [(name, value) for name, value in facts])
    shares = [
        (share.type, str(share.tensors), f"{share.parameters:,}", report.human_bytes(share.bytes))
        for share in summary.types
    ]
    if shares:
        report.print_table(" ", ("type", "tensors", "weights", "size"), shares, right=("tensors", "weights", "size"))
    keys = [(key, _shortened(str(value))) for key, value in summary.hyper_parameters.items()]
    if keys:
        report.print_table(" ", ("hyper-parameter", "value"), keys)
    for text in summary.notes:
        report.note(text)


def _show_tokenizer(source: Model, summary: Summary) -> None:
    from ...formats.summary import printable
    from . import report

    if summary.tokenizer is None:
        report.console().print("\nno tokenizer")
        return
    facts = [("merges", f"{summary.tokenizer.merges:,}")]
    facts += [(flag, "yes" if value else "no") for flag, value in summary.tokenizer.flags.items()]
    report.print_table("\nTokenizer", ("", ""), facts)
    for name in summary.tokenizer.templates:
        key = "tokenizer.chat_template" + ("" if name == "default" else f".{name}")
        text = source.metadata[key].value
        report.console().print(f"\nchat template {name}:\n{printable(str(text))}", soft_wrap=True)
