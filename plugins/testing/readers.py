"""The contract of a reader, as tests: lazy, exact, and never surprised by a damaged file."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ...errors import QconvError
from ...formats.base import Format, Model, OpenContext
from ...formats.metadata import Field
from ..manager import load_plugins

__all__ = ["ReaderContract"]

_FOREIGN = {
    "empty": b"",
    "text": b"once upon a time there was a file\n" * 100,
    "zeros": bytes(4096),
    "noise": random.Random(0).randbytes(4096),
}
_MUTATIONS = 60
_HEADER_BYTES = 4096  # where most of a file's structure is


class ReaderContract:
    """Tests that every reader passes.

    Fixtures to override:
        reader: the :class:`~qconv.formats.base.Format`.
        sample: a small file or folder in that format; it is copied before anything is done to it.
        context: what readers get beside the path; qconv's own registries with installed plugins if not overridden.
    """

    @pytest.fixture
    def reader(self) -> Format:
        """The format to be tested; override it."""
        raise NotImplementedError("override the fixture `reader`")

    @pytest.fixture
    def sample(self) -> Path:
        """A small model in that format; override it."""
        raise NotImplementedError("override the fixture `sample`")

    @pytest.fixture
    def context(self) -> OpenContext:
        """Every registered encoding and architecture."""
        return load_plugins().registries().open_context()

    def test_it_knows_its_own(self, reader: Format, sample: Path) -> None:
        assert reader.detect(sample)

    @pytest.mark.parametrize("kind", list(_FOREIGN))
    def test_it_leaves_others_alone(self, reader: Format, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "foreign"
        path.write_bytes(_FOREIGN[kind])
        assert not reader.detect(path)
        folder = tmp_path / "folder"
        folder.mkdir()
        assert not reader.detect(folder)

    def test_tensors_are_what_they_say(self, reader: Format, sample: Path, context: OpenContext) -> None:
        with _open(reader, sample, context) as model:
            assert model.format == reader.name
            assert model.files
            assert all(path.is_file() for path in model.files)
            assert all(isinstance(field, Field) for field in model.metadata.values())
            assert model.tensors
            for name, tensor in model.tensors.items():
                assert tensor.name == name
                assert context.encodings[tensor.encoding.name] == tensor.encoding
                rows = tensor.read(0, tensor.row_count)
                assert rows.dtype == np.uint8
                assert rows.shape == (tensor.row_count, tensor.encoding.row_bytes(tensor.columns))
                assert rows.nbytes == tensor.nbytes

    def test_any_rows_can_be_read(self, reader: Format, sample: Path, context: OpenContext) -> None:
        with _open(reader, sample, context) as model:
            for tensor in model.tensors.values():
                whole = tensor.read(0, tensor.row_count)
                middle = tensor.row_count // 2
                for start, stop in ((0, 0), (0, 1), (middle, tensor.row_count), (tensor.row_count, tensor.row_count)):
                    assert np.array_equal(tensor.read(start, stop), whole[start:stop]), (tensor.name, start, stop)

    def test_rows_that_are_not_there_are_refused(self, reader: Format, sample: Path, context: OpenContext) -> None:
        with _open(reader, sample, context) as model:
            for tensor in model.tensors.values():
                with pytest.raises((IndexError, QconvError)):
                    tensor.read(0, tensor.row_count + 1)

    def test_threads_read_the_same(self, reader: Format, sample: Path, context: OpenContext) -> None:
        with _open(reader, sample, context) as model:
            tensor = max(model.tensors.values(), key=lambda it: it.nbytes)
            expected = tensor.read(0, tensor.row_count)
            with ThreadPoolExecutor(4) as pool:
                for found in pool.map(lambda _: tensor.read(0, tensor.row_count), range(8)):
                    assert np.array_equal(found, expected)

    def test_closing_twice_is_harmless(self, reader: Format, sample: Path, context: OpenContext) -> None:
        model = _open(reader, sample, context)
        model.close()
        model.close()

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
    def test_a_file_that_ends_early_is_an_error(
        self, reader: Format, sample: Path, context: OpenContext, tmp_path: Path, share: float
    ) -> None:
        copy = _copy(sample, tmp_path)
        with _open(reader, copy, context) as model:
            largest = max(model.files, key=lambda path: path.stat().st_size)
        with largest.open("r+b") as file:
            file.truncate(int(largest.stat().st_size * share))
        with pytest.raises(QconvError):
            _read_all(reader, copy, context)

    def test_damage_is_an_error_or_a_value(
        self, reader: Format, sample: Path, context: OpenContext, tmp_path: Path
    ) -> None:
        copy = _copy(sample, tmp_path)
        with _open(reader, copy, context) as model:
            largest = max(model.files, key=lambda path: path.stat().st_size)
        whole = largest.read_bytes()
        dice = random.Random(0)
        for number in range(_MUTATIONS):
            place = dice.randrange(min(_HEADER_BYTES, len(whole)))
            length = dice.choice((1, 1, 2, 4, 8))
            data = bytearray(whole)
            data[place : place + length] = dice.choice((dice.randbytes(length), b"\xff" * length, bytes(length)))
            largest.write_bytes(data)
            try:
                _read_all(reader, copy, context)
            except QconvError:
                continue
            except Exception as error:  # whatever else it is, the plugin's author has to hear of it by name
                raise AssertionError(
                    f"mutation {number}, {length} bytes at {place}: {type(error).__name__} instead of a QconvError"
                ) from error


def _open(reader: Format, path: Path, context: OpenContext) -> Model:
    assert reader.open is not None, f"{reader.name} has no reader"
    return reader.open(path, context)


def _copy(sample: Path, folder: Path) -> Path:
    """Copy a sample; a file comes with its neighbours, since a model may have several parts."""
    target = folder / "sample"
    if sample.is_dir():
        shutil.copytree(sample, target)
        return target
    shutil.copytree(sample.parent, target)
    return target / sample.name


def _read_all(reader: Format, path: Path, context: OpenContext) -> None:
    """Open a model and read every row of it."""
    with _open(reader, path, context) as model:
        for tensor in model.tensors.values():
            tensor.read(0, tensor.row_count)
