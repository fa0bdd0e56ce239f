"""Conversations as a model was trained to see them: its chat template, rendered where it can do no harm.

The template is a program in jinja2's language that came with the model. It is rendered by :mod:`.chat_sandbox` in a process of its own, which is
stopped after :data:`SECONDS`, may take :data:`MEMORY` bytes (where the system can limit that) and write :data:`OUTPUT` characters.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ModelError
from ...formats.base import Model
from ...formats.getters import get_string
from ..tokenizing.tokenizer import Tokenizer

__all__ = [
    "MEMORY",
    "OUTPUT",
    "SECONDS",
    "ChatTemplate",
    "Conversation",
    "Message",
    "read_chat_template",
    "read_conversation",
]

Message = Mapping[str, str]
"""``role`` (``system``, ``user``, ``assistant``) and ``content``."""

SECONDS = 10.0
"""How long a template may take."""

MEMORY = 1 << 30
"""How many bytes of address space its process may take."""

OUTPUT = 4_000_000
"""How many characters it may write."""

_PROGRAM = Path(__file__).with_name("chat_sandbox.py")
_ROLES = ("bos", "eos", "unk", "pad")  # what transformers passes as bos_token and so on


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the texts of special tokens that it may use.

    Attributes:
        text: in jinja2's language.
        names: ``bos_token`` and so on, those that the vocabulary has.
        path: where it comes from, for messages.
    """

    text: str
    names: Mapping[str, str]
    path: Path

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, seconds: float = SECONDS
    ) -> str:
        """Return the conversation as text, as transformers' ``apply_chat_template`` does.

        Args:
            messages: the conversation.
            add_generation_prompt: whether the beginning of an answer follows.
            seconds: how long it may take.

        Raises ModelError where the template fails, refuses the messages, or oversteps a limit.
        """
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.names,
        }
        request = {
            "template": self.text,
            "variables": variables,
            "output": OUTPUT,
            "memory": MEMORY,
            "seconds": math.ceil(seconds) + 1,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(_PROGRAM)],
                input=json.dumps(request),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failure(f"it takes longer than {seconds:g} s") from None
        if done.returncode < 0:
            raise self._failure("the system ended its process, as it does where one takes too much memory or time")
        if done.returncode:
            raise self._failure(f"its process failed with code {done.returncode}")
        answer: dict[str, str] = json.loads(done.stdout)
        if "error" in answer:
            raise self._failure(answer["error"])
        return answer["text"]

    def _failure(self, what: str) -> ModelError:
        return ModelError(
            f"the chat template cannot be rendered: {what}",
            path=self.path,
            remedy="Pass a template of your own with --chat-template, or use qconv generate.",
        )


@dataclass(frozen=True)
class Conversation:
    """A conversation as text, and the tokens that stand for it."""

    text: str
    tokens: tuple[int, ...]

    def answered(self, text: str, tokens: Sequence[int]) -> Conversation:
        """Return the conversation with an answer, without the token that ended it."""
        return Conversation(self.text + text, (*self.tokens, *tokens))


def read_chat_template(model: Model, tokenizer: Tokenizer, path: Path | None = None) -> ChatTemplate:
    """Return the template in the file ``path``, or else the one of ``model``.

    Raises ModelError where the model has none or the file is no UTF-8; OSError where the file cannot be read.
    """
    vocabulary = tokenizer.vocabulary
    names = {f"{role}_token": vocabulary.tokens[vocabulary.roles[role]] for role in _ROLES if role in vocabulary.roles}
    if path is not None:
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), names, path)
        except UnicodeDecodeError:
            raise ModelError("a chat template must be UTF-8", path=path) from None
    text = get_string(model.metadata, "tokenizer.chat_template", model.path)
    if not text:
        raise ModelError(
            "the model has no chat template (tokenizer.chat_template), so it was hardly trained to chat",
            path=model.path,
            remedy="Use qconv generate, or pass a template with --chat-template.",
        )
    return ChatTemplate(text, names, model.path)


def read_conversation(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], before: Conversation | None = None
) -> Conversation:
    """Return a conversation up to where the answer begins.

    Texts of control tokens become those tokens. A vocabulary whose texts begin with BOS gets it where the template does not write it, as in
    llama.cpp.

    Args:
        tokenizer: of the model.
        template: what writes the messages.
        messages: the conversation.
        before: an earlier part of the conversation and its answer. Where the template repeats its text, its tokens stay as they were, even if
            the text would now become others: they are what the model said, and what its cache holds.

    Raises as :meth:`ChatTemplate.render`.
    """
    text = template.render(messages)
    if before is not None and text.startswith(before.text):
        new = _encode(tokenizer, text[len(before.text) :], before.tokens)
        return Conversation(text, (*before.tokens, *new))
    tokens = _encode(tokenizer, text)
    bos = tokenizer.bos if tokenizer.adds_bos else None
    return Conversation(text, tuple(tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]))


def _encode(tokenizer: Tokenizer, text: str, after: Sequence[int] = ()) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special=False, parse_special=True, after=after).tolist()
    return found
