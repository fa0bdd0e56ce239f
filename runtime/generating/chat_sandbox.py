"""Renders one chat template, as a program of its own that can be stopped: see :mod:`.chat_template`, which runs this file.

A request comes as JSON on standard input: ``template``, ``variables``, ``output`` (most characters), ``memory`` (bytes), ``seconds``. The answer goes
as JSON to standard output: ``text``, or ``error``. Only jinja2 and the standard library are imported here.

Whoever makes a model writes its template. jinja2's sandbox keeps it from Python's internals, but not from asking for endless loops or
gigabytes: so it runs in a process, with limits where the system has them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["environment", "main", "render"]

_LONGEST_MESSAGE = 400  # characters of an error
# what an expression of a template may bring about
_ERRORS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def render(template: str, variables: Mapping[str, Any], longest: int) -> str:
    """Return what ``template`` makes of ``variables``.

    Raises TemplateError (SecurityError for what the sandbox refuses, OverflowError beyond ``longest`` characters), and any error of Python
    that an expression of the template brings about.
    """
    pieces, size = [], 0
    for piece in environment().from_string(template).generate(variables):
        size += len(piece)
        if size > longest:
            raise OverflowError(f"its text is longer than {longest:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that templates are written for: that of transformers."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _SafeNamespace,
    }
    return made


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what a model is trained on: here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as no ClassVar

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's contents."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _SafeNamespace(Namespace):
    """jinja2's namespace without names of Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # without self, which may be an attribute's name
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set an attribute; raises SecurityError for a private name."""
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the escapes that jinja2's own filter makes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _limit(memory: int, seconds: int) -> None:
    """Let the system end this process beyond so many bytes or seconds of processor time, where it can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # a stricter limit holds already, or the system knows no such limit
            continue


def _explain(error: Exception) -> str:
    """Return what went wrong, in one printable line."""
    match error:
        case TemplateSyntaxError():
            found = f"line {error.lineno}: {error.message}"
        case SecurityError():
            found = f"the sandbox refuses it: {error.message}"
        case TemplateError():
            found = f"it says: {error.message}"
        case MemoryError():
            found = "it takes too much memory"
        case RecursionError():
            found = "it calls itself too often"
        case OverflowError():
            found = str(error)
        case _:
            found = f"{type(error).__name__}: {error}"
    return "".join(letter if letter.isprintable() else " " for letter in found[:_LONGEST_MESSAGE])


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    _limit(request["memory"], request["seconds"])
    try:
        answer = {"text": render(request["template"], request["variables"], request["output"])}
    except _ERRORS as error:
        answer = {"error": _explain(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
