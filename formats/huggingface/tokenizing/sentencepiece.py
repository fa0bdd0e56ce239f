"""``tokenizer.model`` as a GGUF vocabulary: sentencepiece's BPE becomes ``llama``, its unigram model ``t5``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import TokenizerError
from ...metadata import Field, ValueType, boolean, numbers, string
from .protobuf import ModelType, SentencePieceModel
from .vocabulary import TokenType, Vocabulary

__all__ = ["NO_BYTES_NOTE", "NO_FALLBACK_NOTE", "charsmap_field", "sentencepiece_vocabulary"]

_MODELS = {ModelType.BPE: "llama", ModelType.UNIGRAM: "t5"}

NO_BYTES_NOTE = "the vocabulary has no byte tokens: llama.cpp fails on text with characters outside the vocabulary"
NO_FALLBACK_NOTE = "llama.cpp's unigram tokenizer does not spell unknown characters in bytes"


def sentencepiece_vocabulary(model: SentencePieceModel, path: Path) -> Vocabulary:
    """Return the vocabulary of ``model``, read from ``path``.

    Scores and types come over unchanged, so llama.cpp merges as sentencepiece does. Raises TokenizerError for word and character
    models and for spaces kept as suffixes, which GGUF runtimes know nothing of.
    """
    kind = _MODELS.get(model.model_type)
    if kind is None:
        raise TokenizerError(
            f"sentencepiece models of type {model.model_type.name} have no counterpart in GGUF (BPE and UNIGRAM have)",
            path=path,
        )
    if model.treat_whitespace_as_suffix:
        raise TokenizerError("the model keeps spaces as suffixes of words, which no GGUF runtime does", path=path)
    types = tuple(piece.type for piece in model.pieces)
    metadata: dict[str, Field] = {"tokenizer.ggml.pre": string("default")}
    notes = []
    if kind == "t5":
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = boolean(model.remove_extra_whitespaces)
        if model.charsmap:
            metadata["tokenizer.ggml.precompiled_charsmap"] = charsmap_field(model.charsmap)
        if TokenType.BYTE in types:
            notes.append(NO_FALLBACK_NOTE)
    else:
        if model.charsmap:
            rule = model.normalizer or "a compiled one"
            notes.append(
                f"the tokenizer normalizes text ({rule}); GGUF runtimes do not, so such text gives other tokens"
            )
        if model.remove_extra_whitespaces:
            notes.append("the tokenizer drops repeated spaces; llama.cpp keeps them, so such text gives other tokens")
        if TokenType.BYTE not in types:
            notes.append(NO_BYTES_NOTE)
    return Vocabulary(
        model=kind,
        source=path,
        # user-defined pieces are matched in the text before spaces are written as ▁
        tokens=tuple(
            piece.text.replace("▁", " ") if piece.type is TokenType.USER_DEFINED else piece.text
            for piece in model.pieces
        ),
        types=types,
        scores=tuple(piece.score for piece in model.pieces),
        metadata=metadata,
        adds_space=model.add_dummy_prefix,
        special={
            role: token
            for role, token in (
                ("bos", model.bos_id),
                ("eos", model.eos_id),
                ("unk", model.unk_id),
                ("pad", model.pad_id),
            )
            if 0 <= token < len(model.pieces)
        },
        notes=tuple(notes),
    )


def charsmap_field(charsmap: bytes) -> Field:
    """Return sentencepiece's compiled normalization rule as GGUF stores it: an array of bytes."""
    return numbers(np.frombuffer(charsmap, np.uint8), ValueType.UINT8)
