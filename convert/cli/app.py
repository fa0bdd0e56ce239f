"""The application: commands, exit codes, and what a mistake looks like.

Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage. A user's mistake is one sentence on standard error, never a traceback; so is Ctrl-C.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ...errors import QconvError, UnknownTypeError, UsageError
from ...plugins.manager import PluginWarning, load_plugins

__all__ = ["build_app", "main"]

_OBJECTS_BETWEEN_COLLECTIONS = 100_000
_COMPLETE = "_QCONV_COMPLETE"  # set by shells that complete a command line

# Modules by the commands that they add, in the order of the help, with what each says first of itself there.
_MODULES = {
    "hf_to_gguf": {
        "hf-to-gguf": "Convert a Hugging Face folder to GGUF, quantized on the way: one pass, bounded memory, whole or absent."
    },
    "convert": {"convert": "Convert a model of any format to any other: one pass, bounded memory, whole or absent."},
    "quantize": {"quantize": "Quantize a GGUF file: one pass, bounded memory, whole or absent."},
    "split": {"split": "Cut a GGUF model into parts, named as llama.cpp's: no weight is changed."},
    "merge": {"merge": "Join the parts of a GGUF model. Every part is checked before a byte is written."},
    "diff": {
        "diff": "Compare two models tensor by tensor, the worst first. Exit code 0: the same, 1: different, 2: no comparison was possible."
    },
    "inspect": {"inspect": "Show what a model holds: architecture, sizes, types, tokenizer. Reads no weights."},
    "verify": {
        "verify": "Compare every byte of a GGUF file with the digests stored in it; finds a single flipped bit."
    },
    "validate": {
        "validate": "Compare a model with its source: tokens, weights, predictions. Exit code 1 where it is not what it should be."
    },
    "perplexity": {
        "perplexity": "Measure the perplexity of texts, as llama.cpp does position for position, and the divergence from a base."
    },
    "imatrix": {
        "imatrix": "Measure how much each input channel of each matrix matters, on texts; merge such measurements; show them."
    },
    "calibrate": {
        "calibrate": "Measure, on texts, the second moments that error feedback needs (qconv quantize --method gptq)."
    },
    "generate": {
        "generate": "Print how a model goes on with a text; the prompt itself is not repeated. Ctrl-C ends it with exit code 1."
    },
    "chat": {"chat": "Talk with a model, line by line, from a terminal or a pipe."},
    "lists": {
        "formats": "List the file formats and model architectures that can be read and written.",
        "types": "List the mixtures that --type takes and the encodings that they are made of.",
        "plugins": "List the plugins, with the hooks that each implements, and why one was left out.",
    },
    "warmup": {"warmup": "Compile kernels; once compiled they are kept for this user until qconv changes."},
    "metadata": {"metadata": "Show or change the metadata of a model file."},
}


def _version(value: bool) -> None:
    if value:
        from ... import __version__

        typer.echo(f"qconv {__version__}")
        raise typer.Exit


def build_app(command: str | None = None, *, names_alone: bool = False) -> typer.Typer:
    """Return the application with the built-in commands and those of installed plugins.

    Of the built-in commands only ``command`` is added where it is one, and with ``names_alone`` none but as a name in the help: typer reads the
    options of every command that it is given, which is much of the time to start.
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

    if names_alone:
        for name, summary in (it for commands in _MODULES.values() for it in commands.items()):
            app.command(name, help=summary)(_unasked)
    else:
        asked = [module for module, commands in _MODULES.items() if command in commands]
        for module in asked or _MODULES:
            import_module(f".{module}", __package__).register(app)
    load_plugins().register_commands(app)
    return app


def _unasked() -> None:
    """Stand for a command of which nothing but the name is asked."""


def main() -> None:
    """Run the command line and exit."""
    # a command makes many objects that stay, modules and tables, and little garbage
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    warnings.showwarning = _show_warning
    _ready_streams()
    word = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        app = build_app(word, names_alone=word is None and _COMPLETE not in os.environ)
    except QconvError as error:  # two plugins that contradict each other
        sys.exit(_fail(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    try:
        app()
    finally:
        gc.freeze()  # what is left is left to the system: it is quicker at it than a last search for garbage


_REMEDIES = {
    errno.EACCES: " Check the permissions of this path and of its folder.",
    errno.EPERM: " Check the permissions of this path and of its folder.",
    errno.EROFS: " Choose a place on a disk that can be written to.",
    errno.ENOSPC: " Free some space, or choose a place on another disk.",
    errno.EMFILE: " Raise the limit of open files (ulimit -n).",
    errno.EIO: " The disk may be failing: copy the file to another one first.",
}


def _ready_streams() -> None:
    """Let any text be printed on the standard streams: they may be closed, and their encoding may lack characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open to the end
        else:
            # what a name of a file holds beside UTF-8 is printed as it is, and what an encoding lacks by number
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")


class _Commands(TyperGroup):
    """Makes sentences of errors before typer sees them: it takes an EOFError, which TruncatedError is, for a closed terminal."""

    def invoke(self, ctx: Any) -> object:  # the class of ctx differs between versions of typer
        try:
            return super().invoke(ctx)
        except (UsageError, UnknownTypeError) as error:
            code = _fail(str(error), 2)
        except QconvError as error:
            code = _fail(str(error), 1)
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
            code = 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "")
            code = _fail(f"{where}{error.strerror or error}.{remedy}", 1)
        except (KeyboardInterrupt, typer.Abort):  # commands that can be continued have said so themselves
            code = _interrupted()
        except MemoryError:
            code = _fail("out of memory. Use fewer --threads, or close other programs.", 1)
        raise typer.Exit(code)


def _fail(message: str, code: int) -> int:
    from . import report  # slow, and most commands end well

    report.error(message)
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
        from . import report

        report.warning(f"{message}.")
