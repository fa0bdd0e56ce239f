"""What generating text starts from, and one answer of a model: its text as it comes, why it ended, how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..plugins.manager import Registries
from ..runtime.generating.generate import Reader, generate
from ..runtime.generating.sampling import Sampling
from ..runtime.held import Held, hold, memory_budget
from ..runtime.tokenizing.tokenizer import Tokenizer
from .measure import Subject, subject_of
from .opening import open_model

__all__ = ["Answer", "Draw", "answer", "budget_of", "draw_of", "open_held"]

Stop = Literal["end", "limit", "context", "interrupted"]


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: equal values give equal texts on one machine."""

    sampling: Sampling
    seed: int

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain data with stable keys."""
        kind = self.sampling
        return {"temperature": kind.temperature, "top_k": kind.top_k, "top_p": kind.top_p, "seed": self.seed}


def draw_of(temperature: float, top_k: int, top_p: float, seed: int | None) -> Draw:
    """Return how to draw; without a seed, with one that nobody knows yet. Raises UsageError for numbers without a meaning."""
    if seed is not None and seed < 0:
        raise UsageError(f"a seed is a whole number from 0, not {seed}")
    found = int(np.random.default_rng().integers(1 << 32)) if seed is None else seed
    return Draw(Sampling(temperature, top_k, top_p), found)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        prompt_tokens: number of tokens before it.
        tokens: its own, the one that ended it included.
        text: those as text, without control tokens.
        stop: why it ended: the model's own ``end``, the ``limit`` of tokens, a full ``context``, or ``interrupted`` by Ctrl-C.
        prompt_seconds: time up to the first token.
        seconds: time from the first token to the last.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    stop: Stop
    prompt_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed behind the first token, None where there is no second."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 and self.seconds else None

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain data with stable keys."""
        speed = self.tokens_per_second
        return {
            "text": self.text,
            "stop": self.stop,
            "prompt_tokens": self.prompt_tokens,
            "tokens": list(self.tokens),
            "prompt_seconds": round(self.prompt_seconds, 3),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": None if speed is None else round(speed, 1),
        }


def answer(
    reader: Reader,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    random: np.random.Generator,
    limit: int | None,
    show: Callable[[str], None],
) -> Answer:
    """Generate behind ``prompt`` and ``show`` the text as it comes. Ctrl-C ends the answer, with what there is of it.

    Raises as :func:`~qconv.runtime.generating.generate.generate`.
    """
    stream, tokens, texts = tokenizer.stream(after=prompt), list[int](), list[str]()
    started = first = time.monotonic()
    stop: Stop | None = None
    try:
        for token in generate(reader, prompt, sampling, random, tokenizer.is_end_of_generation, limit):
            if not tokens:
                first = time.monotonic()
            tokens.append(token)
            texts.append(stream.feed(token))
            show(texts[-1])
    except KeyboardInterrupt:
        stop = "interrupted"
    ended = time.monotonic()
    texts.append(stream.finish())
    show(texts[-1])
    if stop is None:
        if tokens and tokenizer.is_end_of_generation(tokens[-1]):
            stop = "end"
        else:
            stop = "limit" if len(tokens) == limit else "context"
    if not tokens:
        first = ended
    return Answer(len(prompt), tuple(tokens), "".join(texts), stop, first - started, ended - first)


@contextmanager
def open_held(
    path: Path, registries: Registries, budget: int, architecture: str | None = None, pre_tokenizer: str | None = None
) -> Iterator[tuple[Subject, Held]]:
    """Open a model of any readable format for generating; ``budget`` bytes of its decoded weights stay in memory.

    Raises what readers, tokenizers and networks raise.
    """
    with open_model(path, registries, architecture, pre_tokenizer) as model:
        kept, held = hold(model, budget)
        yield subject_of(kept, registries), held


def budget_of(gibibytes: float | None) -> int:
    """Return the bytes that a user allows for decoded weights; by default half of the memory that is free."""
    return memory_budget() if gibibytes is None else int(gibibytes * (1 << 30))
