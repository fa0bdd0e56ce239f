"""``qconv generate``: go on with a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..generation import Answer
    from ..measure import Subject

__all__ = ["register"]

_UNKNOWN_CONTEXT = 4096  # where the model does not say what it was trained for, and --context neither


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(generate)


def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file or folder of any readable format.")],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="What to go on with; default: standard input, without its last line feed.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Generate at most N tokens.")] = 128,
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", min=1, metavar="N", help="Most tokens in all; default: the model's context."),
    ] = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let control tokens in the prompt become those tokens.")
    ] = False,
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
    """Print how a model goes on with a text; the prompt itself is not repeated. Ctrl-C ends it with exit code 1."""
    import numpy as np

    from ...plugins.manager import load_plugins
    from ...runtime.cache import CACHE_TYPES, make_cache
    from ...runtime.generating.generate import Reader
    from ..generation import answer, budget_of, draw_of, open_held
    from ..settings import choose
    from . import report
    from .running import tell_notes
    from .speech import say

    kind = choose("--cache-type", cache_type.upper(), CACHE_TYPES)
    draw = draw_of(temperature, top_k, top_p, seed)
    text = _read_prompt() if prompt is None else prompt
    registries = load_plugins().registries()
    with open_held(model, registries, budget_of(memory), as_arch, pre_tokenizer) as (subject, held):
        tell_notes(subject, context=context or 0)
        tokenizer, network = subject.tokenizer, subject.network
        tokens = tokenizer.encode(text, parse_special=parse_special).tolist()
        if tokenizer.adds_eos:
            tokens = tokens[:-1]  # the text shall go on
        room = _room(subject, tokens, limit, context)
        with Reader(network, make_cache(network.configuration, (room,), kind), threads) as reader:
            random = np.random.default_rng(draw.seed)
            found = answer(reader, tokenizer, tokens, draw.sampling, random, limit, _ignore if as_json else say)
        if as_json:
            about = {"model": str(model), "prompt": text, **found.to_dict(), **draw.to_dict()}
            report.print_json({**about, "context": room, "cache": kind, "held_bytes": held.nbytes})
        else:
            _end(found)
    if found.stop == "interrupted":
        raise typer.Exit(1)


def _read_prompt() -> str:
    """Return standard input."""
    import sys

    from ...errors import UsageError

    if sys.stdin.isatty():
        raise UsageError("--prompt is missing", remedy="Give it with -p, or on standard input.")
    found = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return found.removesuffix("\n").removesuffix("\r")


def _room(subject: Subject, tokens: Sequence[int], limit: int, context: int | None) -> int:
    """Return how many positions the cache needs."""
    from ...errors import UsageError

    trained = subject.network.configuration.context
    most = context or trained or _UNKNOWN_CONTEXT
    if len(tokens) > most:
        raise UsageError(
            f"the prompt has {len(tokens):,} tokens, but the context {most:,}",
            remedy="Make the prompt shorter, or the context longer with --context.",
        )
    return min(len(tokens) + limit, most)


def _end(found: Answer) -> None:
    """End the text's last line, and say on standard error how it went."""
    from . import report
    from .speech import say, summary

    say("\n")
    line = summary(found.prompt_tokens, len(found.tokens), found.prompt_seconds, found.tokens_per_second)
    report.console(stderr=True).print(line, style="dim", soft_wrap=True)
    if found.stop == "context":
        report.note("the context is full")
    if found.stop == "interrupted":
        report.note("interrupted")


def _ignore(text: str) -> None:
    del text
