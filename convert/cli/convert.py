"""``qconv convert``: any format becomes any other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import UsageError
from . import exl2, options, packed
from .conversion_options import with_conversion_options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert")(with_conversion_options(convert))


def convert(
    model: Annotated[
        Path, typer.Argument(metavar="SRC", help="Model file or folder; its contents tell the format, not its name.")
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="DST", help="Output; {type} stands for the type. A name without ending is a folder."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FORMAT", help="Format of the output, where DST does not tell (see qconv formats)."
        ),
    ] = None,
    type_name: options.TypeOrAuto = "auto",
    head_bits: exl2.HeadBits = 6,
    calibration_text: exl2.Calibration = None,
    calibration_context: exl2.CalibrationContext = 2048,
    calibration_chunks: exl2.CalibrationChunks = 100,
    measurement: exl2.Measurement = None,
    group_size: packed.GroupSize = None,
    symmetric: packed.Symmetric = None,
    static_groups: packed.StaticGroups = False,
    **words: Any,
) -> None:
    """Convert a model of any format to any other: one pass, bounded memory, whole or absent."""
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from ..targets import PACKED, find_target
    from .conversion import convert as carry_out
    from .settings import default_output, read_settings, refuse_idle, type_label

    label = type_label(type_name, words)
    settings = read_settings(type_name, words)
    registries = load_plugins().registries()
    path = default_output(output, output, label)
    kind = (to or "").strip().lower()
    target = None if kind in PACKED else find_target(path, to, registries)
    of_exl2 = {"--calibration-text": bool(calibration_text), "--measurement": measurement is not None}
    of_packed = {
        "--group-size": group_size is not None,
        "--sym": symmetric is True,
        "--asym": symmetric is False,
        "--static-groups": static_groups,
    }
    choices = (words["as_arch"], words["pre_tokenizer"], words["vocab_only"])
    with open_model(model, registries, *choices) as source:
        if kind in ("gptq", "awq"):
            packed.to_packed(
                source,
                path,
                "gptq" if kind == "gptq" else "awq",
                settings,
                registries,
                group_size=group_size,
                symmetric=symmetric,
                static_groups=static_groups,
                others=of_exl2,
                dry_run=words["dry_run"],
                as_json=words["as_json"],
            )
            return
        if target is None:
            exl2.to_exl2(
                source,
                path,
                settings,
                registries,
                bpw=words.get("bpw"),
                head_bits=head_bits,
                calibration=calibration_text,
                context=calibration_context,
                chunks=calibration_chunks,
                measurement=measurement,
                others=of_packed,
                dry_run=words["dry_run"],
                as_json=words["as_json"],
            )
            return
        for name, given in {**of_exl2, **of_packed}.items():
            if given:
                raise UsageError(
                    f"{name} does not go with an output in the format {target.name}",
                    remedy=f"Leave it out, or add --to {'exl2' if name in of_exl2 else 'gptq or --to awq'}.",
                )
        refuse_idle(words)
        carry_out(source, path, target, settings, registries, dry_run=words["dry_run"], as_json=words["as_json"])
