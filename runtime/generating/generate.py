"""Generation: a prompt in, tokens out one by one, with the keys and values of what was read kept in a cache.

::

    with Reader(network, make_cache(network.configuration, (512,))) as reader:
        for token in generate(reader, prompt, Sampling(), np.random.default_rng(0), tokenizer.is_end_of_generation, 100):
            print(stream.feed(token), end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ...errors import UsageError
from ..building.network import Network
from ..cache import Cache
from ..forward import forward
from ..workers import Workers
from .sampling import Sampling, sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Reader", "common_length", "generate"]

_BATCH = 512  # tokens of a prompt that are run together: less memory, and Ctrl-C is heard between batches


class Reader:
    """A network that reads one text token by token, and remembers it.

    Args:
        network: what reads.
        cache: empty, of one sequence; its capacity is the context.
        threads: how many work side by side; None for the number of processors.
    """

    def __init__(self, network: Network, cache: Cache, threads: int | None = None) -> None:
        self.network = network
        self.context = cache.places.capacities[0]
        self._cache = cache
        self._workers = Workers(threads)
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """What has been read."""
        return tuple(self._tokens)

    def read(self, text: Sequence[int]) -> Floats:
        """Return the logits of the token after ``text``, float32 (vocabulary,); what the cache holds of its beginning is not run again.

        Raises UsageError where ``text`` is empty or longer than the context, and as :func:`~.forward.forward`. After an error or an
        interruption the reader remembers what it had read until then.
        """
        if not len(text):
            raise UsageError("there is no token to begin with", remedy="Use a prompt that is not empty.")
        if len(text) > self.context:
            raise UsageError(
                f"the text has {len(text)} tokens, but the context holds {self.context}",
                remedy="Make it longer with --context, or the text shorter.",
            )
        known = self._cache.places.truncate(0, min(common_length(self._tokens, text), len(text) - 1))
        del self._tokens[known:]
        logits: Floats = np.empty(0, np.float32)
        for start in range(known, len(text), _BATCH):
            part = [int(token) for token in text[start : start + _BATCH]]
            last = start + len(part) == len(text)
            wanted = slice(-1, None) if last else slice(0)
            for found in forward(self.network, [part], wanted=wanted, cache=self._cache, workers=self._workers):
                logits = found.logits[0]
            self._tokens += part
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()


def generate(
    reader: Reader,
    prompt: Sequence[int],
    sampling: Sampling,
    random: np.random.Generator,
    is_end: Callable[[int], bool],
    limit: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow ``prompt``: up to one for which ``is_end`` holds, which is yielded too, or ``limit``, or the context's end.

    Raises as :meth:`Reader.read`.
    """
    text = [int(token) for token in prompt]
    logits = reader.read(text)
    while limit is None or len(text) < len(prompt) + limit:
        token = sample(logits, sampling, random)
        text.append(token)
        yield token
        if is_end(token) or len(text) > reader.context:
            return
        if limit is None or len(text) < len(prompt) + limit:
            logits = reader.read(text)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
