"""The tokenizer of a Hugging Face folder as GGUF metadata.

The vocabulary comes from the first of these that is there: ``tokenizer.model`` (sentencepiece), ``tokenizer.json``, ``vocab.json`` with
``merges.txt``, ``vocab.txt`` (word pieces). Added tokens, special ids and chat templates are merged from all files. Neither transformers nor a tokenizer library
is imported, and no code of the model is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ....errors import FormatError, TokenizerError
from ...base import OpenContext
from ...metadata import Field, Scalar, ValueType, boolean, numbers, string, strings, uint32
from .affixes import Affixes, read_affixes
from .files import TokenizerFiles, find_tokenizer_files
from .json_form import read_tokenizer_json, read_vocab_and_merges
from .protobuf import read_sentencepiece
from .ranked import RANKED
from .sentencepiece import sentencepiece_vocabulary
from .special import added_tokens, special_token_key, special_tokens
from .template import read_chat_templates
from .vocabulary import AddedToken, TokenType, Vocabulary, add_tokens, check_tokens, fit_rows, set_types
from .wordpiece import read_vocab_txt

__all__ = ["TokenizerResult", "read_tokenizer"]

_NO_HINTS: Mapping[str, Scalar] = MappingProxyType({})


@dataclass(frozen=True)
class TokenizerResult:
    """What a folder's tokenizer is in GGUF.

    Attributes:
        metadata: ``tokenizer.ggml.*`` and ``tokenizer.chat_template*`` keys, in the order to write them.
        notes: what the user should know: conflicts between files, dropped or padded tokens, what GGUF runtimes do otherwise.
        files: the tokenizer's files by name, for writers that want them back.
        found: the same files, read.
    """

    metadata: Mapping[str, Field]
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    found: TokenizerFiles | None = None


def read_tokenizer(
    folder: Path,
    config: Mapping[str, Any],
    context: OpenContext,
    *,
    vocab_rows: int,
    hints: Mapping[str, Scalar] = _NO_HINTS,
    vocabulary: Vocabulary | None = None,
) -> TokenizerResult:
    """Return the tokenizer of ``folder`` as GGUF metadata.

    Args:
        folder: the model's folder.
        config: its ``config.json``.
        context: ``context.pre_tokenizer`` names the pre-tokenizer where the structure does not tell.
        vocab_rows: rows of the embedding matrix, which the token list is padded or trimmed to.
        hints: what the architecture prescribes where the files are silent: ``add_bos_token``, ``add_eos_token``,
            ``add_space_prefix``; ``model``, GGUF's kind (``gemma4``), and ``shown``, texts of control tokens, divided by spaces, that are shown to
            who reads the model's answer; and ``token_types``, the number of kinds of text that an embedding tells apart.
        vocabulary: the vocabulary, where the caller has read it from a file that is not Hugging Face's.

    Raises TokenizerError where there is no tokenizer, or none that GGUF can hold; FormatError where a file is malformed.
    """
    if vocab_rows < 1:
        raise TokenizerError(f"the embedding matrix has {vocab_rows} rows", path=folder)
    found = find_tokenizer_files(folder)
    templates = read_chat_templates(found)
    given = vocabulary is not None
    if vocabulary is None:
        vocabulary = _read_vocabulary(found, context.pre_tokenizer, ranked=hints.get("model") == RANKED)
    vocabulary = add_tokens(vocabulary, _shown(added_tokens(found), str(hints.get("shown", ""))))
    special = special_tokens(vocabulary, found, config, vocab_rows, templates.default)
    affixes = read_affixes(vocabulary, found, special.ids, hints)
    ids = {**affixes.ids, **special.ids}
    needed = {token: f"its {role} token" for role, token in ids.items() if role in ("bos", "eos", "eot", "eom", "unk")}
    if templates.default is not None:
        needed |= {
            i: "part of its chat template"
            for i in range(vocab_rows, len(vocabulary.tokens))
            if vocabulary.tokens[i] in templates.default
        }
    vocabulary = check_tokens(fit_rows(vocabulary, vocab_rows, needed))
    lost = [role for role, token in ids.items() if token >= vocab_rows]
    notes = [f"the {role} token has no embedding; {role} is not written" for role in lost]
    ids = {role: token for role, token in ids.items() if role not in lost}
    if vocabulary.model == "gpt2" and "eos" not in ids:
        notes.append("no file names a token that ends text, so llama.cpp takes token 11")
    if context.pre_tokenizer not in (None, "default") and vocabulary.model != "gpt2":
        notes.append(f"--pre-tokenizer {context.pre_tokenizer} changes nothing: this is no byte-level BPE")
    if not given and vocabulary.source.name != "tokenizer.model" and "tokenizer.model" in found.paths:
        notes.append(f"tokenizer.model is no sentencepiece model; {vocabulary.source.name} is used")
    ends = {ids[role] for role in ("bos", "eos", "eot", "eom") if role in ids}
    vocabulary = set_types(vocabulary, dict.fromkeys(ends, TokenType.CONTROL))
    metadata = _metadata(vocabulary, ids, affixes)
    if "token_types" in hints:
        metadata["tokenizer.ggml.token_type_count"] = uint32(int(hints["token_types"]))
    return TokenizerResult(
        metadata=MappingProxyType(metadata | templates.metadata()),
        notes=(*vocabulary.notes, *special.notes, *affixes.notes, *notes, *templates.notes),
        files=found.paths,
        found=found,
    )


def _shown(added: Iterable[AddedToken], texts: str) -> Iterator[AddedToken]:
    """Yield added tokens, those of ``texts`` (divided by spaces) as ones whose text is shown although they are markup."""
    shown = frozenset(texts.split())
    return (replace(token, special=False) if token.text in shown else token for token in added)


def _read_vocabulary(found: TokenizerFiles, pre_tokenizer: str | None, *, ranked: bool) -> Vocabulary:
    paths = found.paths
    refusal: FormatError | None = None
    if "tokenizer.model" in paths and not (ranked and found.tokenizer is not None):
        try:
            return sentencepiece_vocabulary(read_sentencepiece(paths["tokenizer.model"]), paths["tokenizer.model"])
        except FormatError as error:  # some models ship another format under this name, next to a tokenizer.json
            refusal = error
    if found.tokenizer is not None:
        clean_spaces = found.tokenizer_config.get("clean_up_tokenization_spaces")
        return read_tokenizer_json(
            found.tokenizer,
            paths["tokenizer.json"],
            pre_tokenizer=pre_tokenizer,
            clean_spaces=clean_spaces if isinstance(clean_spaces, bool) else None,
            ranked=ranked,
        )
    if "vocab.json" in paths and "merges.txt" in paths:
        return read_vocab_and_merges(found, pre_tokenizer=pre_tokenizer)
    if "vocab.txt" in paths:
        return read_vocab_txt(found)
    if refusal is not None:
        raise refusal
    raise TokenizerError(
        "there is no tokenizer: neither tokenizer.model, nor tokenizer.json, nor vocab.json with merges.txt, nor vocab.txt",
        path=found.folder,
        remedy="Copy the tokenizer's files of the original model into the folder.",
    )


def _metadata(vocabulary: Vocabulary, ids: Mapping[str, int], affixes: Affixes) -> dict[str, Field]:
    fields = {
        "tokenizer.ggml.model": string(vocabulary.model),
        "tokenizer.ggml.pre": vocabulary.metadata["tokenizer.ggml.pre"],
        "tokenizer.ggml.tokens": strings(vocabulary.tokens),
    }
    if vocabulary.scores is not None:
        fields["tokenizer.ggml.scores"] = numbers(vocabulary.scores, ValueType.FLOAT32)
    fields["tokenizer.ggml.token_type"] = numbers(vocabulary.types, ValueType.INT32)
    fields |= vocabulary.metadata
    fields |= {special_token_key(role): uint32(token) for role, token in ids.items()}
    fields["tokenizer.ggml.add_bos_token"] = boolean(affixes.bos)
    fields["tokenizer.ggml.add_eos_token"] = boolean(affixes.eos)
    if affixes.space is not None:
        fields["tokenizer.ggml.add_space_prefix"] = boolean(affixes.space)
    return fields
