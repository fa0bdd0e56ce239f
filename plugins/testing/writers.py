"""The contract of a writer, as tests: the layout is exact, and what was written is read back bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ...formats.base import Format, Layout, Model, OpenContext, OutputTensor, WriteOptions
from ...formats.positional import PositionalFile
from ..manager import load_plugins

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...quantizers.base import Encoding

__all__ = ["WriterContract", "write_layout"]


def write_layout(layout: Layout, rows: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write the files of ``layout``; ``rows`` are uint8 (rows, row bytes) by tensor name.

    It is what a conversion comes to, without threads, resumption and temporary names: for tests only.
    """
    digests = {name: hashlib.sha256(np.ascontiguousarray(data).data).hexdigest() for name, data in rows.items()}
    for part in layout.parts:
        part.path.parent.mkdir(parents=True, exist_ok=True)
        with part.path.open("wb") as file:
            file.truncate(part.size)
            for placement in part.placements:
                file.seek(placement.offset)
                file.write(np.ascontiguousarray(rows[placement.tensor.name]).data)
            for offset, record in ((0, part.header(digests)), *part.records):
                file.seek(offset)
                file.write(record)
        if part.finish is not None:
            with closing(PositionalFile(part.path)) as written:
                finishing = part.finish(written.read)
            with part.path.open("r+b") as file:
                for offset, record in finishing:
                    file.seek(offset)
                    file.write(record)
        assert part.path.stat().st_size == part.size, f"{part.path.name} is not as large as its layout says"


class WriterContract:
    """Tests that every writer passes.

    Fixtures to override:
        writer: the :class:`~qconv.formats.base.Format`.
        source: a small open :class:`~qconv.formats.base.Model` that the format can hold.
        name: a file or folder name that an output of the format may have.
        context: what readers get beside the path; qconv's own registries with installed plugins if not overridden.
    """

    @pytest.fixture
    def writer(self) -> Format:
        """The format to be tested; override it."""
        raise NotImplementedError("override the fixture `writer`")

    @pytest.fixture
    def source(self) -> Model:
        """A small open model that the format can hold; override it."""
        raise NotImplementedError("override the fixture `source`")

    @pytest.fixture
    def name(self, writer: Format) -> str:
        """A name for the output."""
        return "output" + (writer.suffixes[0] if writer.suffixes else "")

    @pytest.fixture
    def context(self) -> OpenContext:
        """Every registered encoding and architecture."""
        return load_plugins().registries().open_context()

    @pytest.fixture
    def prepared(self, writer: Format, source: Model, context: OpenContext) -> Model:
        """The source as the format holds it."""
        return source if writer.prepare is None else writer.prepare(source, context)

    @pytest.fixture
    def targets(self, writer: Format, prepared: Model, context: OpenContext) -> list[OutputTensor]:
        """Every tensor in its own encoding, or in the format's first."""
        return [
            OutputTensor(it.name, it.shape, _target(writer, it.encoding, context)) for it in prepared.tensors.values()
        ]

    @pytest.fixture
    def layout(self, writer: Format, prepared: Model, targets: list[OutputTensor], tmp_path: Path, name: str) -> Layout:
        """Where everything goes."""
        return _lay_out(writer, tmp_path / name, prepared, targets)

    def test_nothing_is_written_by_a_layout(self, layout: Layout) -> None:
        assert not any(part.path.exists() for part in layout.parts)
        assert layout.folder is None or not layout.folder.exists()

    def test_every_tensor_has_a_place_of_its_own(self, layout: Layout, targets: list[OutputTensor]) -> None:
        placed = [placement.tensor.name for part in layout.parts for placement in part.placements]
        assert sorted(placed) == sorted(it.name for it in targets)
        for part in layout.parts:
            header = part.header({name: "0" * 64 for name in placed})
            taken = [(0, len(header))]
            taken += [(offset, offset + len(record)) for offset, record in part.records]
            taken += [(it.offset, it.offset + it.tensor.nbytes) for it in part.placements]
            taken = sorted(span for span in taken if span[0] < span[1])
            for (_, stop), (start, _) in pairwise(taken):
                assert stop <= start, f"{part.path.name}: two things at byte {start}"
            assert not taken or taken[-1][1] <= part.size

    def test_headers_do_not_depend_on_digests_in_length(self, layout: Layout) -> None:
        names = [placement.tensor.name for part in layout.parts for placement in part.placements]
        for part in layout.parts:
            lengths = {len(part.header(dict.fromkeys(names, digit * 64))) for digit in "0af"}
            assert len(lengths) == 1

    def test_a_layout_is_a_function_of_its_arguments(
        self, writer: Format, prepared: Model, targets: list[OutputTensor], layout: Layout
    ) -> None:
        again = _lay_out(writer, layout.path, prepared, targets)
        names = [placement.tensor.name for part in layout.parts for placement in part.placements]
        blank = dict.fromkeys(names, "0" * 64)
        assert [(part.path, part.size, part.placements, part.records) for part in again.parts] == [
            (part.path, part.size, part.placements, part.records) for part in layout.parts
        ]
        assert [part.header(blank) for part in again.parts] == [part.header(blank) for part in layout.parts]

    def test_what_was_written_is_read_back(
        self, writer: Format, prepared: Model, source: Model, layout: Layout, context: OpenContext
    ) -> None:
        rows = {}
        for part in layout.parts:
            for placement in part.placements:
                tensor, encoding = prepared.tensors[placement.tensor.name], placement.tensor.encoding
                data = tensor.read(0, tensor.row_count)
                same = tensor.encoding.name == encoding.name
                rows[tensor.name] = data if same else encoding.encode(tensor.encoding.decode(data))
        write_layout(layout, rows)
        if writer.open is None:
            return
        assert writer.detect(layout.path)
        with writer.open(layout.path, context) as found:
            assert found.architecture == source.architecture
            compared = 0
            for name, tensor in source.tensors.items():
                assert name in found.tensors
                if found.tensors[name].shape != tensor.shape:  # a format may have to repeat what it cannot share
                    continue
                expected, rows_found = (it.rows(0, tensor.row_count) for it in (tensor, found.tensors[name]))
                assert np.array_equal(rows_found, expected), name
                compared += 1
            assert compared


def _target(writer: Format, encoding: Encoding, context: OpenContext) -> Encoding:
    if not writer.encodings or encoding.name in writer.encodings:
        return encoding
    return context.encodings[writer.encodings[0]]


def _lay_out(writer: Format, path: Path, model: Model, targets: list[OutputTensor]) -> Layout:
    assert writer.lay_out is not None, f"{writer.name} has no writer"
    return writer.lay_out(path, model.metadata, targets, WriteOptions(documents=model.documents))
