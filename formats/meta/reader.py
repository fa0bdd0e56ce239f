"""A Meta checkpoint to a :class:`Model`: ``params.json``, all shards, a tokenizer; weights stay on disk.

Meta's tensors rotate adjacent pairs of dimensions, as GGUF's do, so no rows are permuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import FormatError, MissingFileError, MissingTensorError, ModelError, ShapeError
from ..architectures import Architecture
from ..architectures.transforms import constant
from ..base import Model, OpenContext, Tensor
from ..huggingface.configuration import hyper_parameter_metadata, read_hyper_parameters
from ..huggingface.identity import general_metadata, model_name, size_label
from ..huggingface.rope import read_rope
from ..huggingface.tokenizing.tokenizer import TokenizerResult, read_tokenizer
from ..metadata import string
from ..stored import StoredTensor, lazy_tensor
from .checklist import NAME as CHECKLIST
from .checklist import check_small_files, read_checklist
from .merge import merge
from .names import check_names, expected_tensors
from .parameters import Parameters, read_parameters
from .shards import Shards, find_shards, missing_shards, open_shards
from .tiktoken import is_tiktoken, tiktoken_vocabulary

__all__ = ["open_meta"]

PARAMETERS = "params.json"
_LLAMA = "llama"
_EMBEDDING, _QUERY, _UP = (
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.0.feed_forward.w1.weight",
)
_LLAMA_3_THETA = 500000.0
_FORM_NAMES = ("original", "meta")  # folders called by what they hold, inside of one called by the model
_NO_TOKENIZER = (
    "there is no tokenizer.model, here or one folder up: the result runs on token ids only; copy it into the folder"
)


def open_meta(path: Path, context: OpenContext) -> Model:
    """Open a folder with ``params.json`` and ``consolidated.NN.pth``, or the checkpoint that one of these files belongs to.

    No weight is read; every name and shape is checked, and nothing in the files is run. Raises FormatError and its kin for files, ModelError
    and its kin for what they hold.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and (folder / "config.json").exists() and not (folder / PARAMETERS).exists():
        raise FormatError(
            "this is one of the files of a Hugging Face model",
            path=path,
            remedy=f"Name the folder instead: {folder}",
        )
    architecture = _architecture(context, path)
    paths = find_shards(path)
    shards = open_shards(paths)
    try:
        parameters = read_parameters(folder / PARAMETERS)
        return _model(path, folder, parameters, shards, architecture, context)
    except BaseException:
        shards.close()
        raise


def _architecture(context: OpenContext, path: Path) -> Architecture:
    if context.architecture not in (None, _LLAMA):
        raise ModelError(
            f"a checkpoint in Meta's form cannot be read as {context.architecture!r}",
            path=path,
            remedy="Leave --as-arch out: these are Llamas.",
        )
    return context.architectures[_LLAMA]


def _model(
    path: Path, folder: Path, parameters: Parameters, shards: Shards, architecture: Architecture, context: OpenContext
) -> Model:
    sizes = _sizes(parameters, shards, folder)
    wanted = expected_tensors(sizes)
    check_names(shards.parts[0].tensors.keys(), wanted, shards.paths[0])
    tokenizer_path = _tokenizer_path(folder)
    later = tokenizer_path is not None and is_tiktoken(tokenizer_path)
    config = parameters.configuration(sizes["vocabulary"], sizes["feed_forward"], *((_LLAMA_3_THETA,) if later else ()))
    values = read_hyper_parameters(architecture, config, folder / PARAMETERS)
    rope = read_rope(architecture, config, values, folder / PARAMETERS)
    tensors: dict[str, Tensor] = {
        name: constant(name, table, f"{PARAMETERS}: rotary scaling") for name, table in rope.tables.items()
    }
    for item in wanted:
        slices = [lazy_tensor(part.tensors[item.meta], context.encodings) for part in shards.parts]
        try:
            merged = merge(item, slices)
        except ShapeError as error:
            error.path = folder
            raise
        tensors[merged.name] = merged
    tokenizer = _tokenizer(tokenizer_path, parameters, sizes["vocabulary"], architecture, context)
    named = folder.resolve()
    named = named.parent if named.name in _FORM_NAMES else named
    checklist = (folder / CHECKLIST,) if (folder / CHECKLIST).is_file() else ()
    return Model(
        path=path,
        format="meta",
        metadata=MappingProxyType(
            {
                **general_metadata(
                    architecture.gguf, model_name(named, {}, {}), size_label(tensors.values(), None), {}, {}
                ),
                **hyper_parameter_metadata(architecture, values),
                **rope.metadata,
                **tokenizer.metadata,
            }
        ),
        tensors=MappingProxyType({} if context.vocabulary_only else tensors),
        files=(*shards.paths, folder / PARAMETERS, *checklist, *tokenizer.files.values()),
        side_files=tokenizer.files,
        notes=(
            *parameters.notes,
            *_size_notes(parameters, sizes),
            *(note for part in shards.parts for note in part.notes),
            *check_small_files(folder),
            *rope.notes,
            *tokenizer.notes,
        ),
        close=shards.close,
        container=MappingProxyType({"shards": len(shards.paths), "container": shards.parts[0].container}),
    )


# --- sizes ------------------------------------------------------------------------------------------------------------------------


def _sizes(parameters: Parameters, shards: Shards, folder: Path) -> dict[str, int]:
    """Return the sizes of the whole tensors; raises MissingFileError where shards are missing, by the shape of the slices."""
    tensors = shards.parts[0].tensors
    queries = parameters.heads * parameters.head_dim
    _check_count(parameters, queries, shards, folder)
    count = len(shards.parts)
    embedding, up = _matrix(tensors, _EMBEDDING, shards), _matrix(tensors, _UP, shards)
    by_rows = count > 1 and embedding.shape[1] == parameters.hidden
    return {
        "layers": parameters.layers,
        "hidden": parameters.hidden,
        "queries": queries,
        "keys": parameters.kv_heads * parameters.head_dim,
        "vocabulary": embedding.shape[0] * (count if by_rows else 1),
        "feed_forward": up.shape[0] * count,
    }


def _check_count(parameters: Parameters, queries: int, shards: Shards, folder: Path) -> None:
    """Compare the number of shards with the share of the queries that one of them holds."""
    found = len(shards.paths)
    rows = _matrix(shards.parts[0].tensors, _QUERY, shards).shape[0]
    count, rest = divmod(queries, rows) if rows else (0, 1)
    if not rest and count > found:
        missing_shards(shards.paths, count, f"{_QUERY} has {rows} of {queries} rows, so there are {count} shards")
    listed = [name for name in read_checklist(folder) if name.endswith(".pth") and not (folder / name).exists()]
    if listed:
        raise MissingFileError(
            f"{CHECKLIST} names shards that are missing: {', '.join(listed[:20])}",
            path=folder / listed[0],
            remedy="Download them into the folder.",
        )
    if rest or count != found:
        raise ShapeError(
            f"has {rows} rows in each of {found} shards, and params.json gives {queries} in all",
            path=shards.paths[0],
            tensor=_QUERY,
            remedy="The shards and params.json belong to different models; download them from one place.",
        )


def _matrix(tensors: Mapping[str, StoredTensor], name: str, shards: Shards) -> StoredTensor:
    found = tensors.get(name)
    if found is None:
        some: Sequence[str] = list(tensors)[:5]
        raise MissingTensorError(
            f"it is no Llama in Meta's form: {name} is missing, it has {', '.join(ascii(item)[1:-1][:100] for item in some)}",
            path=shards.paths[0],
            remedy="A pytorch_model.bin is read with the config.json of its folder; name the folder.",
        )
    if len(found.shape) != 2 or 0 in found.shape:
        raise ShapeError(f"has shape {found.shape}, which is no matrix", path=found.file.path, tensor=name)
    return found


def _size_notes(parameters: Parameters, sizes: Mapping[str, int]) -> tuple[str, ...]:
    notes = []
    if parameters.vocabulary not in (None, sizes["vocabulary"]):
        notes.append(
            f"vocab_size is {parameters.vocabulary} in params.json, {_EMBEDDING} has {sizes['vocabulary']} rows: the rows count"
        )
    if parameters.feed_forward != sizes["feed_forward"]:
        notes.append(
            f"by params.json the feed-forward layers are {parameters.feed_forward} wide, {_UP} has {sizes['feed_forward']} rows: the rows count"
        )
    return tuple(notes)


# --- tokenizer --------------------------------------------------------------------------------------------------------------------


def _tokenizer_path(folder: Path) -> Path | None:
    """Return ``tokenizer.model``, which Llama 1 and 2 have one folder up."""
    places = (folder, folder.resolve().parent)
    return next((place / "tokenizer.model" for place in places if (place / "tokenizer.model").is_file()), None)


def _tokenizer(
    path: Path | None, parameters: Parameters, rows: int, architecture: Architecture, context: OpenContext
) -> TokenizerResult:
    if path is None:
        return TokenizerResult({"tokenizer.ggml.model": string("none")}, (_NO_TOKENIZER,))
    if not is_tiktoken(path):
        return read_tokenizer(path.parent, {}, context, vocab_rows=rows, hints=architecture.tokenizer)
    vocabulary = tiktoken_vocabulary(path, later=parameters.scaling is not None)
    ends = [i for i, text in enumerate(vocabulary.tokens) if text in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    return read_tokenizer(
        path.parent,
        {"eos_token_id": ends},
        context,
        vocab_rows=rows,
        hints={**architecture.tokenizer, "add_bos_token": True},
        vocabulary=vocabulary,
    )
