"""Special tokens of a vocabulary: which role each has, what ends generation, and how texts are cut at them.

GGUF names ids by key. Where a key is absent, llama.cpp goes by the token's text, makes what it finds a control token, and holds a fixed
list of texts that end generation. Files in use depend on these rules, so they hold here as well; the tables are facts of its
``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ...formats.huggingface.tokenizing.vocabulary import TokenType

__all__ = ["SPECIAL_KEYS", "find_roles", "generation_ends", "partition", "space_strippers"]

SPECIAL_KEYS: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
"""Roles, and the key after ``tokenizer.ggml.`` that holds the id of each."""

_ROLE_TEXTS: Mapping[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

_ENDING_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
_ENDING_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# vocabularies in which <|end|> closes a part of an answer, not the answer
_END_CLOSES_A_PART = (("<|return|>", "<|call|>"), ("<|call|>", "<|flush|>"), ("<|calls|>", "<|flush|>"))
_C_SPACES = " \t\n\v\f\r"


def find_roles(named: Mapping[str, int], ids: Mapping[str, int], types: list[TokenType]) -> dict[str, int]:
    """Return the ids by role: those ``named`` by metadata, and others found by text, whose type becomes CONTROL.

    ``ids`` maps token texts to ids. ``types`` is changed in place.
    """
    roles = dict(named)
    for role, texts in _ROLE_TEXTS.items():
        found = next((ids[text] for text in texts if text in ids), None)
        if role not in roles and found is not None:
            roles[role] = found
            types[found] = TokenType.CONTROL
    return roles


def generation_ends(roles: Mapping[str, int], ids: Mapping[str, int], types: list[TokenType]) -> frozenset[int]:
    """Return the tokens after which generation stops; ``types`` is changed in place where a text decides a type."""
    found = {ids[text] for text in _ENDING_TEXTS if text in ids}
    for token in found:
        types[token] = TokenType.CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    found |= {roles[role] for role in _ENDING_ROLES if role in roles}
    if ids.get("<|end|>") in found and any(all(ids.get(text) in found for text in pair) for pair in _END_CLOSES_A_PART):
        found.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED
    if ids.get("<|tool_response>") in found and ids.get("</s>") in found:
        found.discard(ids["</s>"])
        types[ids["</s>"]] = TokenType.NORMAL
    return frozenset(found)


def space_strippers(name: str, tokens: Sequence[str], types: Sequence[TokenType]) -> frozenset[int]:
    """Return the special tokens that take the white space behind them with them; ``name`` is the model's.

    GGUF has no key for this. Phi-3's tokens do it, and llama.cpp knows them by ``general.name``.
    """
    if not any(family in name.lower() for family in ("phi-3", "phi3")):
        return frozenset()
    special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    keep = ("<unk>", "<s>", "<|endoftext|>")
    return frozenset(i for i, kind in enumerate(types) if kind in special and tokens[i] not in keep)


def partition(text: str, markers: Iterable[tuple[str, int]], strippers: Collection[int]) -> list[str | int]:
    """Return ``text`` cut at ``markers`` (texts and ids): ids where they were found, text in between, no empty text.

    Each marker is sought in all of the text that those before it left, so their order matters: longest first.
    """
    fragments: list[str | int] = [text] if text else []
    for marker, token in markers:
        if marker not in text:
            continue
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
                continue
            first, *others = fragment.split(marker)
            cut.append(first)
            for other in others:
                cut += [token, other]
        fragments = [fragment for fragment in cut if fragment != ""]
        if token in strippers:
            fragments = _strip_behind(token, fragments)
    return fragments


def _strip_behind(token: int, fragments: Iterable[str | int]) -> list[str | int]:
    result: list[str | int] = []
    for fragment in fragments:
        rest = fragment
        if isinstance(fragment, str) and result and result[-1] == token:
            rest = fragment.lstrip(_C_SPACES)
        if rest != "":
            result.append(rest)
    return result
