"""Differences of models, measured by hand as well."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import memory_model
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

import qconv
from qconv.convert.diff import Difference, Verdict, diff_metadata, diff_tensors, first_difference
from qconv.formats.base import Model, Tensor
from qconv.formats.metadata import Field, ValueType, float32, numbers, string, strings, uint32


def model(tmp_path: Path, *tensors: Tensor, metadata: Mapping[str, Field] | None = None) -> Model:
    return memory_model.model(tmp_path / "made", list(tensors), metadata)


def rows(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_every_verdict_the_worst_first(tmp_path: Path) -> None:
    values = rows(4, 32)
    noisy = (values + 0.01 * rows(4, 32, seed=1)).astype(np.float32)
    exact = (np.round(values * 4) / 4).astype(np.float32)  # BF16 holds it
    first = model(
        tmp_path,
        memory_model.tensor("same", values),
        memory_model.tensor("equal", exact),
        memory_model.tensor("slightly", values),
        memory_model.tensor("badly", values),
        memory_model.tensor("shape", values),
        memory_model.tensor("first", values),
    )
    second = model(
        tmp_path,
        memory_model.tensor("badly", -values),
        memory_model.tensor("same", values),
        memory_model.tensor("equal", exact, "BF16"),
        memory_model.tensor("slightly", noisy),
        memory_model.tensor("shape", values.reshape(8, 16)),
        memory_model.tensor("second", values, "Q8_0"),
    )
    found = diff_tensors(first, second, threads=3)
    assert [(it.name, it.verdict) for it in found] == [
        ("first", Verdict.ONLY_FIRST),
        ("second", Verdict.ONLY_SECOND),
        ("shape", Verdict.SHAPE),
        ("badly", Verdict.DIFFERENT),
        ("slightly", Verdict.DIFFERENT),
        ("equal", Verdict.EQUAL),
        ("same", Verdict.SAME),
    ]
    by_name = {it.name: it for it in found}
    assert by_name["badly"].relative == pytest.approx(2)
    assert by_name["badly"].max_abs == pytest.approx(2 * float(np.abs(values).max()))
    error = (noisy.astype(np.float64) - values).ravel()
    assert by_name["slightly"].relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(values))
    assert by_name["same"].sha256 == (hashlib.sha256(values.tobytes()).hexdigest(),) * 2
    assert by_name["equal"].encodings == ("F32", "BF16")
    assert by_name["equal"].sha256 is None
    assert not Difference(found, ()).same
    assert Difference(tuple(it for it in found if it.name in ("same", "equal")), ()).same


def test_non_finite_weights(tmp_path: Path) -> None:
    values, other = rows(2, 32), rows(2, 32)
    values[0, :3] = other[0, :3] = np.nan, np.inf, -np.inf
    other[1, 0] = np.nan
    other[1, 1] = np.inf
    pair = [model(tmp_path, memory_model.tensor("t", it)) for it in (values, other)]
    (found,) = diff_tensors(*pair)
    assert (found.verdict, found.non_finite, found.max_abs) == (Verdict.DIFFERENT, 2, 0)
    (found,) = diff_tensors(pair[0], pair[0])
    assert found.verdict is Verdict.SAME


def test_a_tensor_of_zeros(tmp_path: Path) -> None:
    zeros, ones = (memory_model.tensor("t", np.full((2, 32), it, np.float32)) for it in (0, 1))
    (found,) = diff_tensors(model(tmp_path, zeros), model(tmp_path, ones))
    assert (found.relative, found.max_abs) == (float("inf"), 1)


def test_bytes_that_differ_for_the_same_values(tmp_path: Path) -> None:
    """Zero and minus zero: nothing to measure, but not the same."""
    one, other = (memory_model.tensor("t", np.full((2, 32), it, np.float32)) for it in (0.0, -0.0))
    (found,) = diff_tensors(model(tmp_path, one), model(tmp_path, other))
    assert (found.verdict, found.max_abs) == (Verdict.DIFFERENT, 0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.sampled_from([32, 64, 4096]), st.integers(0, 3))
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    one, other = rows(height, width, seed=seed), rows(height, width, seed=seed + 1)
    (found,) = diff_tensors(
        model(folder, memory_model.tensor("t", one)), model(folder, memory_model.tensor("t", other, "Q8_0"))
    )
    assert found.max_abs is not None
    expected = np.abs(one - other).max()
    assert abs(found.max_abs - expected) < 0.05


def test_metadata(tmp_path: Path) -> None:
    first = {
        "x.type": uint32(1),
        "x.value": string("a"),
        "only.first": uint32(1),
        "epsilon": float32(1e-5),
        "general.file_type": uint32(1),
    }
    second = {
        "x.type": Field(ValueType.INT32, 1),
        "x.value": string("b"),
        "only.second": strings(["x"]),
        "epsilon": float32(float(np.float32(1e-5))),
        "general.file_type": uint32(2),
        "qconv.version": string("x"),
    }
    pair = [model(tmp_path, metadata=it) for it in (first, second)]
    assert [it.key for it in diff_metadata(*pair)] == ["x.type", "x.value", "only.first", "only.second"]
    assert diff_metadata(pair[0], pair[0]) == ()


def test_tied_embeddings(tmp_path: Path) -> None:
    """The output of a model that has none is its embedding table."""
    table, other = (memory_model.tensor("token_embd.weight", rows(4, 32, seed=it)) for it in (0, 1))
    output = replace(table, name="output.weight")
    tied = model(tmp_path, table)
    found = {it.name: it.verdict for it in diff_tensors(tied, model(tmp_path, table, output))}
    assert found == {"token_embd.weight": Verdict.SAME, "output.weight": Verdict.SAME}
    found = {it.name: it.verdict for it in diff_tensors(model(tmp_path, other, output), tied)}
    assert found == {"token_embd.weight": Verdict.DIFFERENT, "output.weight": Verdict.SAME}
    assert [it.name for it in diff_tensors(tied, tied)] == ["token_embd.weight"]


def test_arrays() -> None:
    one = strings(["a", "b", "c"])
    assert first_difference(one, strings(["a", "x", "c", "d"])) == (2, 1)
    assert first_difference(one, strings(["a"])) == (2, 1)
    left, right = (numbers(it, ValueType.FLOAT32) for it in ([0.0, 1.0], [0.0, 2.0]))
    assert first_difference(left, right) == (1, 1)


def test_a_folder_and_a_file(example_model: Path, tmp_path: Path) -> None:
    """Against the errors that the safetensors and gguf packages give."""
    qconv.quantize(example_model, tmp_path / "m.gguf", "q4_k_m")
    with qconv.open(example_model) as one, qconv.open(tmp_path / "m.gguf") as other:
        found = {it.name: it for it in diff_tensors(one, other, threads=2)}
        assert diff_metadata(one, other) == ()
    stored = {it.name: it for it in GGUFReader(tmp_path / "m.gguf").tensors}
    assert found.keys() == stored.keys()
    source = load_bfloat16(example_model / "model.safetensors")
    for name, theirs in (
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
        ("output.weight", "lm_head.weight"),
    ):
        decoded = dequantize(stored[name].data, stored[name].tensor_type)
        error = (decoded - source[theirs]).astype(np.float64)
        assert found[name].max_abs == pytest.approx(np.abs(error).max(), rel=1e-6)
        assert found[name].relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(source[theirs]), rel=1e-5)
    assert found["output_norm.weight"].verdict is Verdict.EQUAL


def load_bfloat16(path: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """The float32 weights of a safetensors file of BF16, which NumPy has no type for."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, stop = about["data_offsets"]
            words = np.frombuffer(data[8 + length :][start:stop], "<u2").astype(np.uint32) << 16
            found[name] = words.view(np.float32).reshape(about["shape"])
    return found


def test_memory_does_not_grow_with_the_models(tmp_path: Path) -> None:
    values = rows(4096, 2048)  # 32 MiB
    pair = [model(tmp_path, memory_model.tensor("t", values, kind)) for kind in ("F32", "BF16")]
    tracemalloc.start()
    diff_tensors(*pair, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.shared
def test_formats_of_the_same_weights(shared: Path) -> None:
    """A Hugging Face folder, Meta's checkpoint and ggjt files of one model."""
    folder = shared / "models" / "babyllama-tok105"
    with qconv.open(folder / "hf") as one:
        with qconv.open(folder / "meta") as other:
            assert {it.verdict for it in diff_tensors(one, other)} <= {Verdict.EQUAL, Verdict.SAME}
        errors = {}
        for kind in ("f16", "q8_0", "q5_0", "q4_0"):
            with qconv.open(folder / "ggjt" / f"ggml-model-{kind}.bin") as other:
                found = diff_tensors(one, other)
            repeated = {it.name for it in found if it.verdict is Verdict.SHAPE}  # ggjt shares no heads
            assert all("attn_k" in name or "attn_v" in name for name in repeated)
            assert {it.verdict for it in found} <= {Verdict.EQUAL, Verdict.SAME, Verdict.DIFFERENT, Verdict.SHAPE}
            errors[kind] = max(it.relative or 0 for it in found)
        assert errors["f16"] < 1e-3 < errors["q8_0"] < 2e-2 < errors["q5_0"] < errors["q4_0"] < 0.2
