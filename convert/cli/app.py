"""The application: commands, exit codes, and what a mistake looks like.

Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage. A user's mistake is one sentence on standard error, never a traceback; so is Ctrl-C.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from ... import __version__
from ...errors import QconvError, UsageError
from ...plugins.manager import PluginWarning, load_plugins
from . import (
    calibrate,
    chat,
    convert,
    diff,
    generate,
    hf_to_gguf,
    imatrix,
    inspect,
    lists,
    merge,
    metadata,
    perplexity,
    quantize,
    split,
    validate,
    verify,
    warmup,
)

__all__ = ["build_app", "main"]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"qconv {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the application with the built-in commands and those of installed plugins."""
    app = typer.Typer(
        name="qconv",
        cls=_Commands,
        help="Convert, quantize and check language-model files, in one pass and bounded memory.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        del version

    for module in (
        hf_to_gguf,
        convert,
        quantize,
        split,
        merge,
        metadata,
        diff,
        inspect,
        verify,
        validate,
        perplexity,
        imatrix,
        calibrate,
        generate,
        chat,
        lists,
        warmup,
    ):
        module.register(app)
    load_plugins().register_commands(app)
    return app


def main() -> None:
    """Run the command line and exit."""
    warnings.showwarning = _show_warning
    try:
        app = build_app()
    except QconvError as error:  # two plugins that contradict each other
        sys.exit(_fail(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    app()


class _Commands(TyperGroup):
    """Makes sentences of errors before typer sees them: it takes an EOFError, which TruncatedError is, for a closed terminal."""

    def invoke(self, ctx: Any) -> object:  # the class of ctx differs between versions of typer
        try:
            return super().invoke(ctx)
        except UsageError as error:
            code = _fail(str(error), 2)
        except QconvError as error:
            code = _fail(str(error), 1)
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
            code = 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            code = _fail(f"{where}{error.strerror or error}.", 1)
        except (KeyboardInterrupt, typer.Abort):  # commands that can be continued have said so themselves
            code = _interrupted()
        except MemoryError:
            code = _fail("out of memory. Use fewer --threads, or close other programs.", 1)
        raise typer.Exit(code)


def _fail(message: str, code: int) -> int:
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    return code


def _interrupted() -> int:
    typer.echo("interrupted; nothing unfinished is left behind", err=True)
    return 1


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    if issubclass(category, PluginWarning):
        typer.echo(f"{typer.style('warning:', fg='yellow', bold=True)} {message}.", err=True)
