"""``qconv chat``: talk with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...runtime.generating.chat_template import ChatTemplate, Conversation
    from ...runtime.generating.generate import Reader
    from ...runtime.tokenizing.tokenizer import Tokenizer
    from ..generation import Answer, Draw

__all__ = ["register"]

_CONTEXT = 4096  # unless the model was trained for less, or --context says otherwise
_PROMPT = "> "


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file or folder of any readable format.")],
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="What the model should know beforehand.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option("--chat-template", metavar="FILE", help="A jinja2 template instead of the model's own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--tokens", "-n", min=1, metavar="N", help="Most tokens of one answer.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", "-c", min=1, metavar="N", help="Most tokens in all; default: the model's, at most 4096."
        ),
    ] = None,
    cache_type: options.CacheType = "f32",
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    seed: options.Seed = None,
    memory: options.Memory = None,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Talk with a model, line by line, from a terminal or a pipe.

    /clear begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer; in a pipe it ends everything, with exit code 1.
    """
    from ...plugins.manager import load_plugins
    from ...runtime.cache import CACHE_TYPES, make_cache
    from ...runtime.generating.chat_template import read_chat_template
    from ...runtime.generating.generate import Reader
    from ..generation import budget_of, draw_of, open_held
    from ..settings import choose
    from . import report
    from .running import tell_notes

    kind = choose("--cache-type", cache_type.upper(), CACHE_TYPES)
    draw = draw_of(temperature, top_k, top_p, seed)
    registries = load_plugins().registries()
    with open_held(model, registries, budget_of(memory), as_arch, pre_tokenizer) as (subject, held):
        tell_notes(subject, context=context or 0)
        template = read_chat_template(subject.model, subject.tokenizer, chat_template)
        network = subject.network
        room = context or min(network.configuration.context or _CONTEXT, _CONTEXT)
        with Reader(network, make_cache(network.configuration, (room,), kind), threads) as reader:
            talk = _Talk(reader, subject.tokenizer, template, draw, limit, system, as_json)
            finished = talk.run()
        if as_json:
            about = {"model": str(model), "messages": talk.messages, "answers": [it.to_dict() for it in talk.answers]}
            settings = {**draw.to_dict(), "context": room, "cache": kind, "held_bytes": held.nbytes}
            report.print_json({**about, **settings})
    if not finished:
        raise typer.Exit(1)


class _Talk:
    """A conversation: its messages, and the model that takes part."""

    def __init__(
        self,
        reader: Reader,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        draw: Draw,
        limit: int | None,
        system: str | None,
        quiet: bool,
    ) -> None:
        import sys

        import numpy as np

        self.reader = reader
        self.tokenizer = tokenizer
        self.template = template
        self.sampling = draw.sampling
        self.random = np.random.default_rng(draw.seed)
        self.limit = limit
        self.quiet = quiet
        self.interactive = sys.stdin.isatty()
        self.beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = list(self.beginning)
        self.answers: list[Answer] = []
        self.seen: Conversation | None = None

    def run(self) -> bool:
        """Take part until the input ends; return False where it was interrupted before."""
        from .speech import say

        try:
            for line in _lines(self.interactive):
                if line.strip() == "/exit":
                    break
                if line.strip() == "/clear":
                    self.messages = list(self.beginning)
                elif line.strip() and not self._take(line):
                    return False
        except KeyboardInterrupt:  # between two answers
            if not self.quiet:
                say("\n")
            return self.interactive
        return True

    def _take(self, line: str) -> bool:
        """Answer one message; return False where that ends the conversation: in a pipe, cut off by Ctrl-C."""
        from ...errors import QconvError
        from . import report

        try:
            interrupted = self.answer(line)
        except QconvError as error:
            if not self.interactive:
                raise
            report.note(f"{error} /clear begins anew.")
            return True
        return self.interactive or not interrupted

    def answer(self, line: str) -> bool:
        """Answer one message; return whether Ctrl-C cut the answer off. A message whose answer fails is taken back."""
        from ...runtime.generating.chat_template import read_conversation
        from ..generation import answer
        from . import report
        from .speech import say

        asked = [*self.messages, {"role": "user", "content": line}]
        prompt = read_conversation(self.tokenizer, self.template, asked, self.seen)
        show = _ignore if self.quiet else say
        found = answer(self.reader, self.tokenizer, prompt.tokens, self.sampling, self.random, self.limit, show)
        show("\n")
        self.messages = [*asked, {"role": "assistant", "content": found.text}]
        self.answers.append(found)
        ended = found.stop == "end"
        self.seen = prompt.answered(found.text, found.tokens[:-1] if ended else found.tokens)
        if found.stop == "context":
            report.note(f"the context of {self.reader.context:,} tokens is full; /clear begins anew")
        return found.stop == "interrupted"


def _lines(interactive: bool) -> Iterator[str]:
    """Yield what the user types, or the lines of standard input."""
    import sys
    from contextlib import suppress
    from importlib import import_module

    if not interactive:
        for raw in sys.stdin.buffer:
            yield raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
        return
    with suppress(ImportError):  # gives input() a history and keys to move in the line; Windows has its own
        import_module("readline")
    while True:
        try:
            line = input(_PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        yield line


def _ignore(text: str) -> None:
    del text
