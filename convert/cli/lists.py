"""``qconv formats``, ``qconv types``, ``qconv plugins``: what is there."""

from __future__ import annotations

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("formats")(formats)
    app.command("types")(types)
    app.command("plugins")(plugins)


def formats(as_json: options.Json = False) -> None:
    """List the file formats and model architectures that can be read and written."""
    from ...plugins.manager import load_plugins
    from . import report

    registries = load_plugins().registries()
    found = [
        {
            "name": it.name,
            "read": it.open is not None,
            "write": it.lay_out is not None,
            "description": it.description,
            "plugin": registries.providers["format"][it.name],
        }
        for it in registries.formats.values()
    ]
    architectures = [
        {"name": name, "plugin": registries.providers["architecture"][name]} for name in registries.architectures
    ]
    if as_json:
        report.print_json({"formats": found, "architectures": architectures})
        return
    rows = [
        (str(it["name"]), _yes(it["read"]), _yes(it["write"]), str(it["description"]), str(it["plugin"]))
        for it in found
    ]
    report.print_table("", ("format", "read", "write", "description", "plugin"), rows)
    names = ", ".join(registries.architectures)
    report.console().print(f"\narchitectures: {names}", soft_wrap=True)


def types(as_json: options.Json = False) -> None:
    """List the mixtures that --type takes and the encodings that they are made of."""
    from ...plugins.manager import load_plugins
    from ...quantizers.recipes.tables import ALIASES, recipes
    from . import report

    registries = load_plugins().registries()
    mixtures = [
        {"name": it.name, "file_type": it.file_type, "base": it.base, "description": it.about}
        for it in recipes().values()
    ]
    encodings = [
        {
            "name": it.name,
            "type_id": it.type_id,
            "family": it.family,
            "bits_per_weight": it.bits_per_weight,
            "block_size": it.block_size,
            "block_bytes": it.block_bytes,
            "importance": str(it.importance),
            "decode": it.load is not None,
            "plugin": registries.providers["encoding"][it.name],
        }
        for it in registries.encodings.values()
    ]
    if as_json:
        report.print_json({"types": mixtures, "aliases": dict(ALIASES), "encodings": encodings})
        return
    rows = [(str(it["name"]), str(it["base"] or "source's"), str(it["description"])) for it in mixtures]
    report.print_table("Types for --type", ("type", "mostly", "description"), rows)
    lines = [
        (
            it.name,
            it.family,
            f"{it.bits_per_weight:.4g}",
            str(it.block_size),
            str(it.block_bytes),
            str(it.importance),
            "yes" if it.load is not None else "size only",
        )
        for it in registries.encodings.values()
    ]
    columns = ("encoding", "family", "bits per weight", "block", "bytes", "importance", "codec")
    report.print_table("\nEncodings", columns, lines, right=("bits per weight", "block", "bytes"))


def plugins(as_json: options.Json = False) -> None:
    """List the plugins, with the hooks that each implements, and why one was left out."""
    from ...plugins.manager import load_plugins
    from . import report

    found = load_plugins().info
    if as_json:
        report.print_json(
            {
                "plugins": [
                    {
                        "name": it.name,
                        "distribution": it.distribution,
                        "version": it.version,
                        "hooks": list(it.hooks),
                        "error": it.error,
                    }
                    for it in found
                ]
            }
        )
        return
    rows = [(it.name, f"{it.distribution} {it.version}", it.error or ", ".join(it.hooks)) for it in found]
    report.print_table("", ("plugin", "distribution", "hooks"), rows)


def _yes(value: object) -> str:
    return "yes" if value else "no"
