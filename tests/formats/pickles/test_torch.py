"""Against torch itself: what it saves, in both forms, and every file of the shared folder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest

from qconv.errors import FormatError
from qconv.formats.pickles import PickledCheckpoint, read_pickled_checkpoint
from qconv.formats.pickles.allowed import ITEM_BYTES
from qconv.formats.positional import PositionalFile
from qconv.formats.stored import read_rows

pytestmark = pytest.mark.oracles


def compare(path: Path, expected: Mapping[str, Any]) -> PickledCheckpoint:
    """Demand the same names, shapes, dtypes and bytes as torch has."""
    import torch

    file = PositionalFile(path)
    try:
        found = read_pickled_checkpoint(file)
        assert list(found.tensors) == list(expected)
        for name, tensor in expected.items():
            stored = found.tensors[name]
            plain = tensor.detach().contiguous()
            assert stored.shape == tuple(tensor.shape)
            assert stored.dtype == _dtype_name(tensor.dtype)
            rows = prod(stored.shape[:-1])
            want = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
            item = ITEM_BYTES[stored.dtype]
            cuts = sorted({0, rows // 3, rows // 2, rows})
            parts = [read_rows(stored, item, a, b).tobytes() for a, b in pairwise(cuts)]
            assert b"".join(parts) == want, name
    finally:
        file.close()
    return found


def _dtype_name(dtype: object) -> str:
    """Safetensors' name of torch's dtype."""
    import torch

    names = {
            torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.complex64: "C64",
            torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
            torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
            torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
        }  # fmt: skip
    return names[dtype]


@pytest.fixture
def tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    base = torch.randn(6, 10, dtype=torch.float32)
    stack = torch.randn(3, 4, 5)
    found = {
        "base": base,
        "shared rows": base[2:4],
        "shared columns": base[:, 3:7],
        "transposed": base.t(),
        "strided": base[::2, ::3],
        "permuted": stack.permute(2, 0, 1),
        "expanded": torch.randn(7, 1).expand(7, 9),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "empty rows": torch.zeros(4, 0),
        "parameter": torch.nn.Parameter(torch.randn(3, 4)),
        "large": torch.randn(300, 500).to(torch.bfloat16).t(),
    }
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ):
        found[str(dtype)] = torch.randint(0, 100, (4, 6)).to(dtype)
    found["flags"] = torch.tensor([True, False, True])
    found["complex"] = torch.randn(3, 2, dtype=torch.complex64)
    return found


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves(tmp_path: Path, tensors: dict[str, Any], modern: bool) -> None:
    import torch

    path = tmp_path / "m.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=modern)
    found = compare(path, tensors)
    assert found.container == ("zip" if modern else "legacy")
    shared = {found.tensors[name].offset for name in ("base", "transposed", "strided")}
    assert len(shared) == 1  # one storage serves all of them


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_dtypes_without_a_storage_class(tmp_path: Path, modern: bool) -> None:
    import torch

    path = tmp_path / "m.pth"
    whole = torch.arange(24).reshape(4, 6)
    kinds = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {str(kind): whole.to(kind) for kind in kinds} | {"view": whole.to(torch.uint16)[1:3, 2:]}
    torch.save(tensors, path, _use_new_zipfile_serialization=modern)
    compare(path, tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path: Path, tensors: dict[str, Any], protocol: int) -> None:
    import torch

    path = tmp_path / "m.pth"
    torch.save(tensors, path, pickle_protocol=protocol)
    compare(path, tensors)


def test_state_of_a_module_with_metadata(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    path = tmp_path / "m.bin"
    torch.save(model.state_dict(), path)
    compare(path, model.state_dict())
    torch.save({"state_dict": model.state_dict(), "config": {"size": torch.Size([1, 2]), "dtype": torch.float16}}, path)
    compare(path, model.state_dict())


def test_a_tensor_with_attributes(tmp_path: Path) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.randn(2, 3))
    plain = torch.randn(2, 3)
    plain.note = "an attribute"
    path = tmp_path / "m.bin"
    torch.save({"plain": plain, "parameter": parameter}, path)
    compare(path, {"plain": plain, "parameter": parameter})


def test_whole_modules_and_programs_are_refused(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Linear(3, 4)
    path = tmp_path / "m.pt"
    torch.save(model, path)
    file = PositionalFile(path)
    with pytest.raises(FormatError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_pickled_checkpoint(file)
    file.close()


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "fixtures/pth/consolidated.00.pth",
        "fixtures/pth/consolidated.01.pth",
        "fixtures/pth/legacy.00.pth",
        "fixtures/pth/odd.pth",
        "models/stories260K/meta/consolidated.00.pth",
        "models/babyllama-tok105/meta/consolidated.00.pth",
    ],
)
def test_real_files(shared: Path, name: str) -> None:
    import torch

    expected = torch.load(shared / name, map_location="cpu", weights_only=True)
    compare(shared / name, expected.get("model", expected))
