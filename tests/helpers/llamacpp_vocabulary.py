"""Real llama.cpp as an oracle for tokenizers: the tokens that it makes with the vocabulary of a GGUF file.

Only the vocabulary is loaded, so the file needs no tensors. Needs the package xllamacpp, whose extension module exports llama.cpp's C
API. Large structs travel through memory on x86-64 and arm64, so the parameters are held as a block larger than the real struct; the
offset of ``vocab_only`` in it is that of the builds of September 2026, and a build with another layout fails :meth:`open` loudly.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import gguf
import numpy as np

from qconv.formats.metadata import Field, ValueType

# the word that starts with the booleans vocab_only = 0, check_tensors = 0, use_extra_bufts = 1
_FLAGS_WORD, _FLAGS = 18, 0x00010000


class _Parameters(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 256),)


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_quiet = _LOG_CALLBACK(lambda level, text, data: None)


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("these tests need the package xllamacpp: pip install xllamacpp")
    library = ctypes.CDLL(str(next(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))))
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", _Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_vocab_bos", i32, [pointer]),
        ("llama_vocab_eos", i32, [pointer]),
        ("llama_vocab_eot", i32, [pointer]),
        ("llama_vocab_pad", i32, [pointer]),
        ("llama_vocab_get_add_bos", ctypes.c_bool, [pointer]),
        ("llama_vocab_is_eog", ctypes.c_bool, [pointer, i32]),
        ("llama_vocab_is_control", ctypes.c_bool, [pointer, i32]),
        ("llama_tokenize", i32, [pointer, ctypes.c_char_p, i32, pointer, i32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_token_to_piece", i32, [pointer, i32, ctypes.c_char_p, i32, i32, ctypes.c_bool]),
        ("llama_detokenize", i32, [pointer, pointer, i32, ctypes.c_char_p, i32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_log_set", None, [_LOG_CALLBACK, pointer]),
        ("llama_backend_init", None, []),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_quiet, None)
    library.llama_backend_init()
    return library


class LlamaVocabulary:
    """The vocabulary of a GGUF file as llama.cpp reads it; OSError where llama.cpp refuses it."""

    def __init__(self, path: Path) -> None:
        self._library = _library()
        parameters = self._library.llama_model_default_params()
        if parameters.words[_FLAGS_WORD] != _FLAGS:
            raise RuntimeError("llama_model_params has another layout in this build of xllamacpp: find vocab_only anew")
        parameters.words[_FLAGS_WORD] |= 1
        self._model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise OSError(f"llama.cpp refuses {path}")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)

    def __len__(self) -> int:
        return int(self._library.llama_vocab_n_tokens(self._vocabulary))

    def special(self, name: str) -> int:
        """The id of ``bos``, ``eos``, ``eot`` or ``pad``; -1 for none."""
        return int(getattr(self._library, f"llama_vocab_{name}")(self._vocabulary))

    @property
    def adds_bos(self) -> bool:
        """Whether texts start with the token ``bos``."""
        return bool(self._library.llama_vocab_get_add_bos(self._vocabulary))

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops generating at ``token``."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``; lone surrogates stand for bytes that are no UTF-8."""
        raw = text.encode(errors="surrogateescape")
        buffer = (ctypes.c_int32 * (3 * len(raw) + 16))()  # U+FFFD, which damaged bytes become, has three bytes
        count = self._library.llama_tokenize(
            self._vocabulary, raw, len(raw), buffer, len(buffer), add_special, parse_special
        )
        if count < 0:
            raise RuntimeError(f"llama_tokenize returned {count}")
        return list(buffer[:count])

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The bytes of one token; control tokens have some only with ``special``."""
        buffer = ctypes.create_string_buffer(1024)
        count = self._library.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, special)
        if count < 0:
            raise RuntimeError(f"token {token} has {-count} bytes")
        return buffer.raw[:count]

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ``tokens`` without control tokens."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        buffer = ctypes.create_string_buffer(64 * len(tokens) + 64)
        count = self._library.llama_detokenize(self._vocabulary, array, len(tokens), buffer, len(buffer), False, False)
        if count < 0:
            raise RuntimeError(f"the text has {-count} bytes")
        return buffer.raw[:count]

    def close(self) -> None:
        """Free the model."""
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_vocabulary(path: Path, metadata: Mapping[str, Field]) -> Path:
    """Write a GGUF file of ``metadata`` and no tensors with the gguf package, and return ``path``."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, number in (
        ("context_length", 512),
        ("embedding_length", 64),
        ("block_count", 1),
        ("feed_forward_length", 64),
        ("attention.head_count", 1),
        ("rope.dimension_count", 64),
    ):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, field in metadata.items():
        value = field.value.tolist() if isinstance(field.value, np.ndarray) else field.value
        element = None if field.element is None else gguf.GGUFValueType(int(field.element))
        if field.type is ValueType.ARRAY:
            value = list(value)  # type: ignore[arg-type] # an array's value is a sequence
        writer.add_key_value(key, value, gguf.GGUFValueType(int(field.type)), element)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
