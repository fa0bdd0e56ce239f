"""``qconv warmup``: compile the kernels now, so that the first conversion does not wait for them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("warmup")(warmup)


def warmup(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ENCODING]...", help="Encodings to compile; default: all.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compile kernels; once compiled they are kept for this user until qconv changes."""
    from ...errors import UnknownTypeError
    from ...plugins.manager import load_plugins
    from ...plugins.registry import nearest
    from ..warmup import compile_codec
    from . import report

    known = {name: it for name, it in load_plugins().registries().encodings.items() if it.load is not None}
    for name in names or ():
        if name.upper() not in known:
            raise UnknownTypeError(f"no encoding {name!r} has kernels", remedy=nearest(name, known))
    wanted = [name.upper() for name in names or ()] or list(known)
    seconds: dict[str, float] = {}
    with report.counter_bar("compiling", len(wanted), quiet=as_json) as start:
        for name in wanted:
            start(name)
            started = time.monotonic()
            compile_codec(known[name])
            seconds[name] = time.monotonic() - started
    if as_json:
        report.print_json({"seconds": {name: round(value, 3) for name, value in seconds.items()}})
        return
    rows = [(name, f"{value:.2f}") for name, value in seconds.items()]
    report.print_table("", ("encoding", "seconds"), rows, right=("seconds",))
