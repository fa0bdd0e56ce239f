"""What every measurement starts from: a model ready to run, its tokenizer, and texts cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import TokenizerError, UsageError
from ..formats.base import Model
from ..plugins.manager import Registries
from ..runtime.building.network import Network, load_network
from ..runtime.measuring.identity import ModelIdentity, Text, identify_model
from ..runtime.measuring.windows import Windows, cut_standard, cut_strided
from ..runtime.tokenizing.tokenizer import Tokenizer, load_tokenizer
from .opening import open_model

__all__ = ["Cut", "Subject", "cut_text", "describe_cut", "open_subject", "subject_of"]


@dataclass(frozen=True)
class Subject:
    """A model under measurement.

    Attributes:
        model: its file or folder, open.
        network: ready for a forward pass.
        tokenizer: of the model.
        known_identity: the model's, where it is known already.
    """

    model: Model
    network: Network
    tokenizer: Tokenizer
    known_identity: ModelIdentity | None = None

    @property
    def bos(self) -> int | None:
        """The token that begins every window, None where the vocabulary does not begin texts with one."""
        return self.tokenizer.bos if self.tokenizer.adds_bos else None

    @cached_property
    def identity(self) -> ModelIdentity:
        """Digests of the model; where they are not known, the first use reads every byte of its tensors."""
        return identify_model(self.model) if self.known_identity is None else self.known_identity


@contextmanager
def open_subject(
    path: Path, registries: Registries, architecture: str | None = None, pre_tokenizer: str | None = None
) -> Iterator[Subject]:
    """Open a model of any readable format for measuring; raises what readers, tokenizers and networks raise."""
    with open_model(path, registries, architecture, pre_tokenizer) as model:
        yield subject_of(model, registries)


def subject_of(model: Model, registries: Registries) -> Subject:
    """Return an open model as a subject; raises TokenizerError where the vocabulary has tokens that the network lacks."""
    network = load_network(model, registries.architectures.values())
    tokenizer = load_tokenizer(model)
    if tokenizer.size > network.vocabulary:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.size} tokens, but the model embeds only {network.vocabulary}",
            path=model.path,
            remedy="Convert the model again, with the tokenizer that belongs to it.",
        )
    return Subject(model, network, tokenizer)


@dataclass(frozen=True)
class Cut:
    """How texts are cut into windows: see :mod:`qconv.runtime.measuring.windows`.

    Attributes:
        context: tokens per window.
        stride: tokens between windows, or None for standard mode.
        limit: most windows per text, or None.
        parse_special: whether the text of a control token becomes that token.
    """

    context: int = 512
    stride: int | None = None
    limit: int | None = None
    parse_special: bool = False


def cut_text(subject: Subject, text: Text, cut: Cut) -> Windows:
    """Return the windows of a text; raises UsageError, with its name, where it is too short."""
    tokens = subject.tokenizer.encode(text.content, parse_special=cut.parse_special)
    if subject.tokenizer.adds_eos:
        tokens = tokens[:-1]  # the end of the text is no place to predict
    try:
        if cut.stride is None:
            return cut_standard(tokens, cut.context, subject.bos, cut.limit)
        return cut_strided(tokens, cut.context, cut.stride, subject.bos, cut.limit)
    except UsageError as error:
        error.path = Path(text.name)
        raise


def describe_cut(
    windows: Windows, subject: Subject, texts: Sequence[Text], cache_type: str = "F32"
) -> dict[str, object]:
    """Return what makes a perplexity comparable with another, as plain data with stable keys."""
    return {
        "texts": [text.to_dict() for text in texts],
        "tokenizer": subject.tokenizer.digest(),
        "mode": windows.mode,
        "context": windows.context,
        "stride": windows.stride,
        "windows": len(windows.tokens),
        "scored_per_window": windows.scored_per_window,
        "bos": windows.bos,
        "compute": "float32",
        "cache": cache_type,
    }
