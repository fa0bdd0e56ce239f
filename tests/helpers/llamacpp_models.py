"""Real llama.cpp as an oracle for whole models: the logits that it computes from a GGUF file.

Needs the package xllamacpp, whose extension module exports llama.cpp's C API. Large structs travel through memory on x86-64 and arm64,
so the parameters are held as blocks larger than the real structs; only the first fields, stable for years, are set.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Parameters(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("embeddings", ctypes.c_void_p),
        ("positions", ctypes.POINTER(ctypes.c_int32)),
        ("sequence_counts", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


class _Tensor(ctypes.Structure):
    """ggml's tensor, as far as its inputs go; :func:`_look` makes sure that the fields are where they are said to be."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
        ("operation", ctypes.c_int),
        ("parameters", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("inputs", ctypes.c_void_p * 10),
        ("view", ctypes.c_void_p),
        ("view_offset", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


_EVAL_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
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
        ("llama_context_default_params", _Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Parameters]),
        ("llama_init_from_model", pointer, [pointer, _Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_batch_init", _Batch, [i32, i32, i32]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", i32, [pointer, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_set_embeddings", None, [pointer, ctypes.c_bool]),
        ("llama_get_embeddings_ith", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_get_embeddings_seq", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_model_n_embd", i32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_synchronize", None, [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [_LOG_CALLBACK, pointer]),
        ("llama_backend_init", None, []),
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_op_desc", ctypes.c_char_p, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_quiet, None)
    library.llama_backend_init()
    return library


@contextmanager
def _opened(library: ctypes.CDLL, path: Path, length: int, watch: Any = None) -> Iterator[tuple[int, int]]:
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    if not model:
        raise OSError(f"llama.cpp refuses {path}")
    try:
        parameters = library.llama_context_default_params()
        parameters.words[0] = parameters.words[1] = parameters.words[2] = length  # n_ctx, n_batch, n_ubatch
        parameters.words[13] = 0  # no flash attention
        if list(parameters.words[26:28]) != [1, 1]:
            raise OSError("this llama.cpp has its cache's types elsewhere")
        parameters.words[26] = parameters.words[27] = 0  # keys and values in F32 instead of F16
        if watch is not None:  # called before and after every operation
            address = ctypes.cast(watch, ctypes.c_void_p).value or 0
            parameters.words[22], parameters.words[23] = address & 0xFFFFFFFF, address >> 32
        context = library.llama_init_from_model(model, parameters)
        if not context:
            raise OSError(f"llama.cpp cannot make a context for {path}")
        yield model, context
        library.llama_free(context)
    finally:
        library.llama_model_free(model)


def logits(path: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return float32 (tokens, vocabulary), the logits after each token; OSError where llama.cpp refuses the file."""
    library = _library()
    with _opened(library, path, max(64, len(tokens))) as (model, context):
        _decode(library, context, tokens)
        size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        rows = [np.ctypeslib.as_array(library.llama_get_logits_ith(context, i), (size,)) for i in range(len(tokens))]
        return np.array(rows, np.float32)


def embeddings(path: Path, tokens: Sequence[int], pooled: bool = False) -> NDArray[np.float32]:
    """Return what an embedding model makes of a text: float32 (tokens, hidden), or (hidden,) where the file says how to pool."""
    library = _library()
    with _opened(library, path, max(64, len(tokens))) as (model, context):
        library.llama_set_embeddings(context, True)
        _decode(library, context, tokens)
        size = (library.llama_model_n_embd(model),)
        if pooled:
            return np.array(np.ctypeslib.as_array(library.llama_get_embeddings_seq(context, 0), size))
        rows = [np.ctypeslib.as_array(library.llama_get_embeddings_ith(context, i), size) for i in range(len(tokens))]
        return np.array(rows, np.float32)


def _decode(library: ctypes.CDLL, context: int, tokens: Sequence[int]) -> None:
    """Run one sequence, with logits wanted everywhere."""
    batch = library.llama_batch_init(len(tokens), 0, 1)
    batch.count = len(tokens)
    for i, token in enumerate(tokens):
        batch.tokens[i], batch.positions[i], batch.sequence_counts[i], batch.wanted[i] = token, i, 1, 1
        batch.sequences[i][0] = 0
    status = library.llama_decode(context, batch)
    library.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status}")


def product_inputs(
    path: Path, sequences: Sequence[Sequence[int]]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.int32] | None]]:
    """Yield what llama.cpp multiplies weights by when it runs each sequence: the weights' name, the rows, and the rows' experts.

    Rows are float32 (tokens, columns), with experts (tokens, 1 or their number, columns); experts int32 (tokens, their number).
    """
    library = _library()
    seen: list[tuple[str, NDArray[np.float32], NDArray[np.int32] | None]] = []

    def watch(tensor: int, asked: bool, data: int) -> bool:
        kind = library.ggml_op_desc(tensor)
        if kind in (b"MUL_MAT", b"MUL_MAT_ID") and not asked:
            weights, rows, experts = (_look(library, it) for it in _look(library, tensor).inputs[:3])
            name = weights.name.decode()
            if name.endswith(".weight"):
                chosen = None if kind == b"MUL_MAT" else _array(experts, np.int32)[0, 0]
                found = _array(rows, np.float32)[0]
                seen.append((name, found[0] if chosen is None else found, chosen))
        return kind in (b"MUL_MAT", b"MUL_MAT_ID")

    callback = _EVAL_CALLBACK(watch)
    for tokens in sequences:
        with _opened(library, path, max(64, len(tokens)), callback) as (_, context):
            _decode(library, context, tokens)
        yield from seen
        seen.clear()


def _look(library: ctypes.CDLL, address: int | None) -> _Tensor:
    if not address:
        return _Tensor()
    found = _Tensor.from_address(address)
    if found.name != library.ggml_get_name(address):
        raise OSError("this llama.cpp has the fields of its tensors elsewhere")
    return found


def _array(tensor: _Tensor, dtype: type[Any]) -> NDArray[Any]:
    """Return a copy of a tensor's elements in NumPy's order."""
    shape, strides = tuple(tensor.sizes)[::-1], tuple(tensor.strides)[::-1]
    size = sum((count - 1) * step for count, step in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    raw = (ctypes.c_char * size).from_address(tensor.data or 0)
    return np.ndarray(shape, dtype, raw, 0, strides).copy()


@contextmanager
def prompt_timer(path: Path, count: int, length: int, threads: int) -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds in which ``count`` sequences of ``length`` tokens pass together.

    Settings are llama.cpp's own (a cache in F16, flash attention as it likes), with logits after each sequence's last token.
    """
    library = _library()
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    if not model:
        raise OSError(f"llama.cpp refuses {path}")
    parameters = library.llama_context_default_params()
    parameters.words[0] = parameters.words[1] = count * length  # n_ctx, n_batch
    parameters.words[3] = count  # n_seq_max
    parameters.words[7] = parameters.words[8] = threads
    context = library.llama_init_from_model(model, parameters)
    if not context:
        raise OSError(f"llama.cpp cannot make a context for {path}")
    batch = library.llama_batch_init(count * length, 0, 1)
    batch.count = count * length
    for i in range(count * length):
        batch.tokens[i], batch.positions[i], batch.sequence_counts[i] = 3 + i % 1000, i % length, 1
        batch.sequences[i][0], batch.wanted[i] = i // length, int(i % length == length - 1)

    def pass_once() -> float:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        started = time.perf_counter()
        if library.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        library.llama_synchronize(context)
        return time.perf_counter() - started

    try:
        yield pass_once
    finally:
        library.llama_batch_free(batch)
        library.llama_free(context)
        library.llama_model_free(model)
