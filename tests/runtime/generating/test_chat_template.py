"""Chat templates: what transformers makes of them, and what they cannot do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, CONVERSATIONS, GEMMA, LLAMA3, MISTRAL, TEMPLATES
from jinja2 import TemplateError
from runtime_tokenizers import llama_metadata, model_of, tokenizer_of

from qconv.errors import ModelError
from qconv.formats.base import Model
from qconv.formats.metadata import string
from qconv.runtime.generating.chat_sandbox import render
from qconv.runtime.generating.chat_template import OUTPUT, ChatTemplate, Message, read_chat_template, read_conversation
from qconv.runtime.tokenizing.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
USER: list[Message] = [{"role": "user", "content": "Hi"}]


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, NAMES, Path("m.gguf"))


def variables(messages: list[dict[str, str]], prompt: bool = True) -> dict[str, Any]:
    return {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt, **NAMES}


def test_families() -> None:
    talk: list[Message] = [*USER, {"role": "assistant", "content": "Ho "}, {"role": "user", "content": "So?"}]
    assert template(LLAMA3).render(USER) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert template(CHATML).render(USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template(GEMMA).render(talk, add_generation_prompt=False) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n<start_of_turn>user\nSo?<end_of_turn>\n"
    )
    assert template(MISTRAL).render(talk) == "<s>[INST] Hi [/INST] Ho</s>[INST] So? [/INST]"


@pytest.mark.oracles
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, example_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(example_model / "tokenizer.json"), **NAMES)
    compared = 0
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (True, False):
            settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt}
            try:
                wanted = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], **settings)
            except TemplateError as error:
                with pytest.raises(TemplateError, match=str(error)):
                    render(TEMPLATES[name], variables(messages, prompt), OUTPUT)
                continue
            assert render(TEMPLATES[name], variables(messages, prompt), OUTPUT) == wanted
            compared += 1
    assert compared >= 4


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))(1) ~ missing.x }}",
    "{{ namespace(__html__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ or m.__call__.__func__ }}",
)


@pytest.mark.parametrize("text", ESCAPES)
def test_there_is_no_way_out(text: str) -> None:
    """What the sandbox hides is undefined: it prints as nothing, and whatever is asked of it raises."""
    messages = [{"role": "user", "content": "Hi"}]
    try:
        found = render(text, variables(messages), OUTPUT)
    except TypeError as error:
        assert "no loader" in str(error)
    except TemplateError:
        pass
    else:
        assert found == ""
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ ''.__class__.x }}", "the sandbox refuses it: access to attribute '__class__'"),
        ("{{ raise_exception('no \x1b[31mred') }}", r"it says: no  \[31mred\. Pass a template of your own"),
        ("{% if %}", "line 1: Expected an expression"),
        ("\n\n{% endfor %}", "line 3: "),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{% for i in range(100001) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "longer than 4,000,000 characters"),
        ("{{ 'a' * 5000000 }}", "longer than 4,000,000 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it calls itself too often"),
    ],
)
def test_failures_are_sentences(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"m\.gguf: the chat template cannot be rendered: .*{reason}"):
        template(text).render(USER)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_endless_work_is_stopped(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"takes longer than 1 s"):
        template(text).render(USER, seconds=1)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "text",
    [
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{{ messages[0].content.center(10 ** 12) }}",
        "{{ '%9999999999d' % 1 }}",
    ],
)
def test_gigabytes_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"too much memory|takes longer than|OverflowError|ValueError|longer than"):
        template(text).render(USER)


def test_a_text_that_is_no_unicode() -> None:
    assert template("{{ messages[0].content }}é").render([{"role": "user", "content": "a\udcff🙂"}]) == "a\udcff🙂é"


def chat_tokenizer(**keys: Any) -> Tokenizer:
    """A vocabulary of bytes, letters and three control tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|im_start|>", "<|im_end|>", *"abc"]
    types = [2, 3, 3, *[6] * 256, 3, 3, 1, 1, 1]
    return tokenizer_of(llama_metadata(tokens, None, types, **{"add_space_prefix": False, **keys}))


def test_control_tokens_are_found_and_bos_comes_once() -> None:
    messages: list[Message] = [{"role": "user", "content": "ab"}]
    tokenizer = chat_tokenizer()
    found = read_chat_template(with_template("<|im_start|>{{ messages[0].content }}<|im_end|>"), tokenizer)
    assert found.names == NAMES
    assert read_conversation(tokenizer, found, messages).tokens == (1, 259, 261, 262, 260)
    written = read_chat_template(with_template("{{ bos_token }}{{ messages[0].content }}"), tokenizer)
    assert read_conversation(tokenizer, written, messages).tokens == (1, 261, 262)


def test_what_was_said_keeps_its_tokens() -> None:
    messages: list[Message] = [{"role": "user", "content": "a"}]
    tokenizer, b = chat_tokenizer(), 3 + ord("b")
    text = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    found = read_chat_template(with_template(text), tokenizer)
    asked = read_conversation(tokenizer, found, messages)
    assert asked.tokens == (1, 259, 261, 260, 259)
    # the model spelled b as a byte, which is not how the tokenizer would
    said = asked.answered("bc", (b, 263))
    messages += [{"role": "assistant", "content": "bc"}, {"role": "user", "content": "c"}]
    then = read_conversation(tokenizer, found, messages, said)
    assert then.tokens == (*asked.tokens, b, 263, 260, 259, 263, 260, 259)
    assert then.text == found.render(messages)
    # another history: all is read anew
    messages[1] = {"role": "assistant", "content": "b"}
    assert read_conversation(tokenizer, found, messages, said).tokens == (*asked.tokens, 262, 260, 259, 263, 260, 259)


def test_the_middle_of_a_conversation_gets_no_space() -> None:
    messages: list[Message] = [{"role": "user", "content": "a"}]
    tokenizer = chat_tokenizer(add_space_prefix=True)
    found = read_chat_template(with_template("{% for m in messages %}{{ m.content }}{% endfor %}"), tokenizer)
    asked = read_conversation(tokenizer, found, messages)
    messages += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    then = read_conversation(tokenizer, found, messages, asked.answered("b", (262,)))
    assert then.tokens == (*asked.tokens, 262, 263)


def with_template(text: str | None) -> Model:
    return model_of({} if text is None else {"tokenizer.chat_template": string(text)})


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    tokenizer, own = chat_tokenizer(), tmp_path / "own.jinja"
    own.write_text("{{ 'ö' }}", encoding="utf-8")
    assert read_chat_template(with_template("x"), tokenizer).text == "x"
    assert read_chat_template(with_template("x"), tokenizer, own).render([]) == "ö"
    with pytest.raises(ModelError, match=r"no chat template .*Use qconv generate, or pass .*--chat-template"):
        read_chat_template(with_template(None), tokenizer)
    own.write_bytes(b"\xff")
    with pytest.raises(ModelError, match="must be UTF-8"):
        read_chat_template(with_template("x"), tokenizer, own)
