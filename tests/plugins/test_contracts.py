"""Every built-in passes the contracts that qconv.plugins.testing offers to plugins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from meta_files import write_meta_folder
from mistral_files import write_mistral_folder

from qconv.convert.api import convert_model
from qconv.formats.base import Format, Model, OpenContext
from qconv.plugins import load_plugins
from qconv.plugins.testing import EncodingContract, ReaderContract, WriterContract
from qconv.quantizers.base import Encoding

BUILT_IN = load_plugins("").registries()
WITH_KERNELS = [it.name for it in BUILT_IN.encodings.values() if it.load is not None and it.codec().encode is not None]
EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-llama-7m"
# relative errors of Gaussian rows; one to two bits per weight leave most of a weight's size unsaid
LARGEST_ERRORS = {"Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.05, "Q4_K": 0.09, "Q3_K": 0.2, "Q2_K": 0.35, "BF16": 0.003}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example model in every format that qconv reads."""
    made = {
        "huggingface": EXAMPLE,
        "meta": write_meta_folder(EXAMPLE, tmp_path_factory.mktemp("meta") / "sample"),
        "mistral": write_mistral_folder(EXAMPLE, tmp_path_factory.mktemp("mistral") / "sample"),
    }
    for writer in BUILT_IN.formats.values():
        if writer.lay_out is not None and writer.name not in made:
            suffix = writer.suffixes[0] if writer.suffixes else ""
            made[writer.name] = tmp_path_factory.mktemp(writer.name) / f"sample{suffix}"
            convert_model(EXAMPLE, made[writer.name], to=writer.name)
    return made


class TestEncodings(EncodingContract):
    @pytest.fixture(params=WITH_KERNELS)
    def encoding(self, request: pytest.FixtureRequest) -> Encoding:
        return BUILT_IN.encodings[request.param]

    @pytest.fixture
    def largest_error(self, encoding: Encoding) -> float:
        return LARGEST_ERRORS.get(encoding.name, 0.9)


class TestReaders(ReaderContract):
    @pytest.fixture(params=[it.name for it in BUILT_IN.formats.values() if it.open is not None])
    def reader(self, request: pytest.FixtureRequest) -> Format:
        return BUILT_IN.formats[request.param]

    @pytest.fixture
    def sample(self, reader: Format, samples: dict[str, Path]) -> Path:
        return samples[reader.name]


class TestWriters(WriterContract):
    @pytest.fixture(params=[it.name for it in BUILT_IN.formats.values() if it.lay_out is not None])
    def writer(self, request: pytest.FixtureRequest) -> Format:
        return BUILT_IN.formats[request.param]

    @pytest.fixture
    def source(self, context: OpenContext) -> Iterator[Model]:
        reader = BUILT_IN.formats["huggingface"]
        assert reader.open is not None
        with reader.open(EXAMPLE, context) as model:
            yield model
