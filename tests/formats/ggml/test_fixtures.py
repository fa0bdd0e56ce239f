"""Files that the programs of 2023 wrote, and the programs themselves as judges of what qconv writes."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ctransformers_models import greedy_ids
from gguf_files import CONTEXT, write_layout
from llamacpp_models import logits
from run_cli import Cli

from qconv.errors import FormatError, MissingFileError
from qconv.formats.base import Layout, Model, OutputTensor, WriteOptions
from qconv.formats.getters import get_strings
from qconv.formats.ggml import lay_out_ggjt, open_ggml, prepare_for_ggjt
from qconv.formats.ggml.names import find_by_gguf_name
from qconv.formats.gguf import lay_out_gguf
from qconv.quantizers.base import Encoding

pytestmark = pytest.mark.shared

FILES = [
    "ggjt1-f16",
    "ggmf-q4_1",
    "ggml-q4_0",
    "v1-q4_0",
    "v1-q4_2",
    "v1-q5_1",
    "v2-q4_1",
    "v2-q8_0",
    "v3-gqa-q4_0",
    "v3-mixed-q4_K_M",
    "v3-q4_0",
    "v3-q5_0",
    "v3-q8_0",
    "v3-qk64-q4_K_M",
    "v3-v512-q2_K",
    "v3-v512-q4_K_M",
    "v3-v512-q6_K",
]
# Tensors that no encoding of GGUF holds, by the marks of old generations in a file's name.
EXPANDED = ("ggmf-q4", "ggml-q4", "v1-q4", "v2-q4", "v2-q8", "qk64")
PROMPT = (1, 290, 310, 263, 293)


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "fixtures/ggml-legacy/manifest.json").read_text())
    return found


def old_name(name: str) -> str:
    found = find_by_gguf_name(name)
    assert found is not None
    return found[0].ggml


def digest(values: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    return sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_decodes_to_its_digest(shared: Path, manifest: dict[str, Any], name: str) -> None:
    entry = manifest[f"{name}.bin"]
    with open_ggml(shared / f"fixtures/ggml-legacy/{name}.bin", CONTEXT) as model:
        found = {old_name(t.name): digest(t.rows(0, t.row_count)) for t in model.tensors.values()}
        shapes = {old_name(t.name): list(reversed(t.shape)) for t in model.tensors.values()}
        kinds = {t.encoding.name for t in model.tensors.values() if len(t.shape) == 2}
        assert model.container["container"] == entry["container"]
        assert model.container.get("version", 0) == entry["version"]
        assert model.metadata["general.file_type"].value == entry["hparams"]["ftype"]
    assert found == {tensor: facts["f32_sha256"] for tensor, facts in entry["tensors"].items()}
    assert shapes == {tensor: facts["ne"] for tensor, facts in entry["tensors"].items()}
    assert ("F32" in kinds) == any(mark in name for mark in EXPANDED)


def test_two_parts(shared: Path, manifest: dict[str, Any], tmp_path: Path) -> None:
    """The manifest tells the first part's slices; joined, the weights are near those that were quantized."""
    folder = shared / "fixtures/ggml-legacy"
    original = np.load(folder / "weights-v320.npz")
    with open_ggml(folder / "ggmf2-q4_0.bin", CONTEXT) as model:
        for tensor in model.tensors.values():
            named = find_by_gguf_name(tensor.name)
            assert named is not None
            rows = tensor.rows(0, tensor.row_count)
            first = rows if named[0].split is None else np.split(rows, 2, axis=named[0].split)[0]
            assert digest(first) == manifest["ggmf2-q4_0.bin"]["tensors"][named[0].ggml]["f32_sha256"]
            wanted = original[named[0].ggml].reshape(rows.shape)
            assert abs(rows - wanted).max() <= 0.08 * abs(wanted).max()
    with pytest.raises(FormatError, match=r"part 2 of a model in 2 parts\. Open ggmf2-q4_0\.bin"):
        open_ggml(folder / "ggmf2-q4_0.bin.1", CONTEXT)
    for alone, other in (("ggmf2-q4_0.bin", r"ggmf2-q4_0\.bin\.1"), ("ggmf2-q4_0.bin.1", r"ggmf2-q4_0\.bin\.")):
        shutil.copy(folder / alone, tmp_path)
        with pytest.raises(MissingFileError, match=f"missing: {other}"):
            open_ggml(tmp_path / alone, CONTEXT)
        (tmp_path / alone).unlink()


def write(model: Model, layout: Layout) -> Path:
    (path,) = write_layout(layout, {t.name: t.read(0, t.row_count).tobytes() for t in model.tensors.values()})
    return path


def outputs(model: Model, encoding: Encoding | None = None) -> list[OutputTensor]:
    return [OutputTensor(t.name, t.shape, encoding or t.encoding) for t in model.tensors.values()]


def to_ggjt(source: Path, target: Path) -> Path:
    with open_ggml(source, CONTEXT) as opened:
        model = prepare_for_ggjt(opened)
        return write(model, lay_out_ggjt(target, model.metadata, outputs(model), WriteOptions()))


def to_gguf(source: Path, target: Path) -> Path:
    with open_ggml(source, CONTEXT) as model:
        return write(model, lay_out_gguf(target, model.metadata, outputs(model), WriteOptions()))


@pytest.mark.parametrize("name", [name for name in FILES if name[:3] == "v3-" and "qk64" not in name])
def test_version_3_comes_back_with_the_same_tensors(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / f"fixtures/ggml-legacy/{name}.bin"
    path = to_ggjt(source, tmp_path / "m.bin")
    if "gqa" not in name:  # the multiple of the feed-forward length is free; everything else is the historical file
        assert path.read_bytes()[20:] == source.read_bytes()[20:]
    with open_ggml(source, CONTEXT) as old, open_ggml(path, CONTEXT) as new:
        for tensor in new.tensors.values():
            rows = old.tensors[tensor.name].rows(0, old.tensors[tensor.name].row_count)
            if rows.shape[0] < tensor.row_count:  # two key and value heads of 32 rows for eight
                rows = np.repeat(rows.reshape(2, 32, -1), 4, axis=0).reshape(256, -1)
            assert np.array_equal(tensor.rows(0, tensor.row_count), rows)


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("v3-q4_0", [77, 296, 58, 299, 274, 36, 35, 130]),
        ("v3-q5_0", [96, 150, 97, 289, 36, 126, 184, 316]),
        ("v1-q5_1", [96, 48, 138, 289, 176, 273, 120, 54]),
        ("v3-q8_0", [96, 48, 138, 59, 23, 73, 23, 22]),
        ("v2-q8_0", [96, 48, 138, 59, 23, 73, 23, 22]),
        ("ggjt1-f16", [96, 48, 138, 59, 23, 73, 23, 22]),
    ],
)
def test_the_runtime_of_the_time_generates_the_known_ids(
    shared: Path, tmp_path: Path, name: str, ids: list[int]
) -> None:
    """Old blocks, exact, in a version 3 file give what the historical program gave for its own files."""
    path = to_ggjt(shared / f"fixtures/ggml-legacy/{name}.bin", tmp_path / "m.bin")
    assert greedy_ids(path, PROMPT, len(ids)) == ids


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["v3-mixed-q4_K_M", "v3-v512-q2_K", "v3-v512-q4_K_M", "v3-v512-q6_K"])
def test_the_runtime_of_the_time_runs_k_quants(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / f"fixtures/ggml-legacy/{name}.bin"
    assert greedy_ids(to_ggjt(source, tmp_path / "m.bin"), PROMPT, 8) == greedy_ids(source, PROMPT, 8)


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("v2-q8_0", [96, 48, 138, 59, 23, 73, 23, 22]),
        ("ggjt1-f16", [96, 48, 138, 59, 23, 73, 23, 22]),
    ],
)
def test_llama_cpp_of_today_generates_them_from_gguf(shared: Path, tmp_path: Path, name: str, ids: list[int]) -> None:
    path = to_gguf(shared / f"fixtures/ggml-legacy/{name}.bin", tmp_path / "m.gguf")
    tokens = [*PROMPT, *ids]
    found = logits(path, tokens)[len(PROMPT) - 1 : -1].argmax(axis=1)
    assert found.tolist() == ids


@pytest.mark.oracles
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_stories(shared: Path, tmp_path: Path, kind: str) -> None:
    """The trained model tells its story, in GGUF by llama.cpp of today and in ggjt version 3 by the runtime of the time."""
    source = shared / f"models/stories260K/ggjt/ggml-model-{kind}.bin"
    with open_ggml(source, CONTEXT) as model:
        tokens = get_strings(model.metadata, "tokenizer.ggml.tokens")
        assert tokens is not None
        prompt = [1, *(tokens.index(piece) for piece in ("▁O", "n", "ce", "▁upon", "▁a", "▁time"))]
    path = to_gguf(source, tmp_path / "m.gguf")
    ids = list(prompt)
    for _ in range(30):
        ids.append(int(logits(path, ids)[-1].argmax()))
    text = "".join(tokens[i] for i in ids[1:]).replace("▁", " ")
    assert text.startswith(
        " Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert greedy_ids(to_ggjt(source, tmp_path / "m.bin"), prompt, 30) == ids[len(prompt) :]


@pytest.mark.parametrize(("kind", "known"), [("f16", 2.3277), ("q4_0", 2.5556)])
def test_babyllama(shared: Path, cli: Cli, kind: str, known: float) -> None:
    """Perplexity of windows of 128 tokens; the historical program rounded activations to 8 bits beside quantized weights."""
    folder = shared / "models/babyllama-tok105"
    arguments = ("--text", folder / "ppl_text_105chars.txt", "--context", "128", "--threads", "1", "--json")
    found = json.loads(cli("perplexity", folder / f"ggjt/ggml-model-{kind}.bin", *arguments).out)
    assert found["perplexity"]["value"] == pytest.approx(known, rel=0.0015)
