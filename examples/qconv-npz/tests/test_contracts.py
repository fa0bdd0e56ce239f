"""The plugin keeps to qconv's contracts, and NumPy reads what it writes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qconv_npz import NPZ, SIX

import qconv
from qconv.formats.base import Format, Model, OutputTensor, Tensor, WriteOptions
from qconv.formats.metadata import ValueType, numbers, string, strings, uint32
from qconv.plugins import load_plugins
from qconv.plugins.testing import EncodingContract, ReaderContract, WriterContract, write_layout
from qconv.quantizers.base import Encoding


@pytest.fixture
def small(tmp_path: Path) -> Model:
    """A model of three tensors in three encodings."""
    random = np.random.default_rng(0)
    encodings = load_plugins().registries().encodings

    def tensor(name: str, encoding: Encoding, *shape: int) -> Tensor:
        data = encoding.encode(random.standard_normal((int(np.prod(shape[:-1])), shape[-1]), np.float32))
        return Tensor(name, shape, encoding, lambda start, stop: data[start:stop])

    tensors = (
        tensor("token_embd.weight", encodings["F16"], 8, 64),
        tensor("output_norm.weight", encodings["F32"], 64),
        tensor("blk.0.ffn_up_exps.weight", SIX, 3, 4, 64),
    )
    metadata = {
        "general.architecture": string("llama"),
        "llama.block_count": uint32(1),
        "tokenizer.ggml.tokens": strings(["<unk>", "ä", "\n"]),
        "tokenizer.ggml.scores": numbers([0, -1, -2], ValueType.FLOAT32),
    }
    return Model(tmp_path, "memory", metadata, {it.name: it for it in tensors})


@pytest.fixture
def archive(small: Model, tmp_path: Path) -> Path:
    """The model as an archive."""
    path = tmp_path / "archive" / "model.npz"
    targets = [OutputTensor(it.name, it.shape, it.encoding) for it in small.tensors.values()]
    layout = NPZ.lay_out(path, small.metadata, targets, WriteOptions())
    write_layout(layout, {it.name: it.read(0, it.row_count) for it in small.tensors.values()})
    return path


class TestSix(EncodingContract):
    @pytest.fixture
    def encoding(self) -> Encoding:
        return SIX

    @pytest.fixture
    def largest_error(self) -> float:
        return 0.04


class TestReader(ReaderContract):
    @pytest.fixture
    def reader(self) -> Format:
        return NPZ

    @pytest.fixture
    def sample(self, archive: Path) -> Path:
        return archive


class TestWriter(WriterContract):
    @pytest.fixture
    def writer(self) -> Format:
        return NPZ

    @pytest.fixture
    def source(self, small: Model) -> Model:
        return small


def test_numpy_reads_it(archive: Path, small: Model) -> None:
    with np.load(archive) as arrays:
        for name in ("token_embd.weight", "output_norm.weight"):
            tensor = small.tensors[name]
            assert np.array_equal(arrays[name].astype(np.float32).reshape(-1, 64), tensor.rows(0, tensor.row_count))


def test_metadata_come_back(archive: Path, small: Model) -> None:
    with qconv.open(archive) as model:
        assert list(model.metadata) == list(small.metadata)
        assert list(model.metadata["tokenizer.ggml.tokens"].value) == ["<unk>", "ä", "\n"]
        assert model.metadata["tokenizer.ggml.scores"].value.dtype == np.float32


@pytest.fixture
def converted(example: Path, tmp_path: Path) -> Iterator[Model]:
    """The example model through the archive, in six bits."""
    qconv.convert_model(example, tmp_path / "small.npz", "s6")
    with qconv.open(tmp_path / "small.npz") as model:
        yield model


@pytest.fixture
def example() -> Path:
    """The model that lies beside this plugin."""
    return Path(__file__).parents[2] / "prose-llama-7m"


def test_conversion_to_and_fro(example: Path, converted: Model, tmp_path: Path) -> None:
    with qconv.open(example) as source:
        assert set(converted.tensors) == set(source.tensors)
        for name, tensor in source.tensors.items():
            expected = tensor.rows(0, tensor.row_count)
            error = converted.tensors[name].rows(0, tensor.row_count) - expected
            assert np.linalg.norm(error) < 0.04 * np.linalg.norm(expected)
    assert converted.tensors["blk.0.ffn_up.weight"].encoding == SIX
    qconv.convert_model(converted.path, tmp_path / "back.gguf", "f32")
    with qconv.open(tmp_path / "back.gguf") as back:
        for name, tensor in converted.tensors.items():
            assert np.array_equal(back.tensors[name].rows(0, tensor.row_count), tensor.rows(0, tensor.row_count))
