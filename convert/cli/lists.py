"""``qconv formats``, ``qconv types``, ``qconv plugins``: what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...plugins.manager import Registries
    from ..speed import Speed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("formats")(formats)
    app.command("types")(types)
    app.command("plugins")(plugins)


def formats(as_json: options.Json = False) -> None:
    """List the file formats and model architectures that can be read and written."""
    from ...formats.packed import PACKINGS
    from ...plugins.manager import load_plugins
    from ..targets import PACKED
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
    packings = [
        {"name": it.name, "read": True, "write": it.name in PACKED, "description": f"{it.label}: {it.description}"}
        for it in PACKINGS
    ]
    if as_json:
        report.print_json({"formats": found, "packings": packings, "architectures": architectures})
        return
    rows = [
        (str(it["name"]), _yes(it["read"]), _yes(it["write"]), str(it["description"]), str(it["plugin"]))
        for it in found
    ]
    report.print_table("", ("format", "read", "write", "description", "plugin"), rows)
    report.console().print("\nHugging Face folders whose matrices are packed:")
    packed = [(str(it["name"]), _yes(it["read"]), _yes(it["write"]), str(it["description"])) for it in packings]
    report.print_table("", ("packing", "read", "write", "description"), packed)
    names = ", ".join(registries.architectures)
    report.paragraph(f"\narchitectures: {names}")


def types(
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure how fast this machine encodes and decodes; compiles all kernels.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the mixtures that --type takes and the encodings that they are made of."""
    from ...plugins.manager import load_plugins
    from ...quantizers.recipes.tables import ALIASES, recipes
    from ..speed import measure
    from . import report

    registries = load_plugins().registries()
    codecs = [it for it in registries.encodings.values() if it.load is not None] if bench else []
    speeds = {}
    with report.counter_bar("measuring", len(codecs), quiet=as_json or not bench) as start:
        for it in codecs:
            start(it.name)
            speeds[it.name] = measure(it)
    if as_json:
        mixtures = [
            {"name": it.name, "file_type": it.file_type, "base": it.base, "description": it.about}
            for it in recipes().values()
        ]
        encodings = _encodings_as_json(registries, speeds)
        report.print_json({"types": mixtures, "aliases": dict(ALIASES), "encodings": encodings})
        return
    rows = [(it.name, it.base or "source's", it.about) for it in recipes().values()]
    report.print_table("Types for --type", ("type", "mostly", "description"), rows)
    _show_encodings(registries, speeds)


def _encodings_as_json(registries: Registries, speeds: Mapping[str, Speed]) -> list[dict[str, Any]]:
    """Return what is known of every encoding, with speeds where there are any."""
    from dataclasses import asdict

    return [
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
            **({"million_weights_per_second": asdict(speeds[it.name])} if it.name in speeds else {}),
        }
        for it in registries.encodings.values()
    ]


def _show_encodings(registries: Registries, speeds: Mapping[str, Speed]) -> None:
    """Print the table of encodings, with speeds where there are any."""
    from . import report

    lines = [
        (
            it.name,
            it.family,
            f"{it.bits_per_weight:.4g}",
            str(it.block_size),
            str(it.block_bytes),
            str(it.importance),
            "yes" if it.load is not None else "size only",
            *(_speed(speeds.get(it.name)) if speeds else ()),
        )
        for it in registries.encodings.values()
    ]
    columns = ("encoding", "family", "bits per weight", "block", "bytes", "importance", "codec")
    rates = ("encode", "with importance", "decode") if speeds else ()
    report.print_table("\nEncodings", (*columns, *rates), lines, right=("bits per weight", "block", "bytes", *rates))
    if speeds:
        report.console().print("\nencode and decode: million weights per second on one core")


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


def _speed(speed: Speed | None) -> tuple[str, str, str]:
    rates = (None, None, None) if speed is None else (speed.encode, speed.encode_importance, speed.decode)
    encode, weighted, decode = ("-" if rate is None else f"{rate:,.0f}" for rate in rates)
    return encode, weighted, decode


def _yes(value: object) -> str:
    return "yes" if value else "no"
