"""The application: commands, exit codes, and what a mistake looks like.

Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage. A user's mistake is one sentence on standard error, never a traceback; so is Ctrl-C.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from ...errors import QconvError, UsageError
from ...plugins.manager import PluginWarning, load_plugins

__all__ = ["build_app", "main"]

# Modules by the commands that they add, in the order of the help.
_MODULES = {
    "hf_to_gguf": ("hf-to-gguf",),
    "convert": ("convert",),
    "quantize": ("quantize",),
    "split": ("split",),
    "merge": ("merge",),
    "metadata": ("metadata",),
    "diff": ("diff",),
    "inspect": ("inspect",),
    "verify": ("verify",),
    "validate": ("validate",),
    "perplexity": ("perplexity",),
    "imatrix": ("imatrix",),
    "calibrate": ("calibrate",),
    "generate": ("generate",),
    "chat": ("chat",),
    "lists": ("formats", "types", "plugins"),
    "warmup": ("warmup",),
}


def _version(value: bool) -> None:
    if value:
        from ... import __version__

        typer.echo(f"qconv {__version__}")
        raise typer.Exit


def build_app(command: str | None = None) -> typer.Typer:
    """Return the application with the built-in commands and those of installed plugins.

    Of the built-in commands only ``command`` is added where it is one: typer reads the options of every command that it is given, which
    takes a tenth of the time to start.
    """
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

    asked = [module for module, commands in _MODULES.items() if command in commands]
    for module in asked or _MODULES:
        import_module(f".{module}", __package__).register(app)
    load_plugins().register_commands(app)
    return app


def main() -> None:
    """Run the command line and exit."""
    warnings.showwarning = _show_warning
    try:
        app = build_app(next((word for word in sys.argv[1:] if not word.startswith("-")), None))
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
