"""Four-bit floats keep every bit on their way into GGUF's blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_floats import E2M1, E4M3

from qconv.formats.packed.four_bit_floats import mxfp4_blocks, nvfp4_blocks


def codes_of(packed: np.ndarray) -> np.ndarray:
    """Return the codes in order: of each byte the lower half, then the upper."""
    return np.array([[half for byte in row for half in (byte & 15, byte >> 4)] for row in packed.tolist()])


def decoded(blocks: np.ndarray, name: str) -> np.ndarray:
    found: np.ndarray = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    return found


@given(st.integers(0, 1 << 32), st.integers(1, 3), st.integers(1, 4))
def test_mxfp4_decodes_to_the_sources_values(seed: int, rows: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, groups * 16), np.uint8)
    scales = rng.integers(3, 252, (rows, groups), np.uint8)  # below, products are subnormal, and above they overflow
    blocks = mxfp4_blocks(packed, scales)
    assert blocks.shape == (rows, groups * 17)
    expected = np.array(E2M1)[codes_of(packed)] * np.repeat(2.0 ** (scales.astype(float) - 127), 32, axis=1)
    np.testing.assert_array_equal(decoded(blocks, "MXFP4"), expected.astype(np.float32))


@given(st.integers(0, 1 << 32), st.integers(1, 3), st.integers(1, 3))
def test_nvfp4_decodes_to_the_sources_values(seed: int, rows: int, blocks_per_row: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, blocks_per_row * 32), np.uint8)
    scales = rng.integers(0, 127, (rows, blocks_per_row * 4), np.uint8) | rng.choice([0, 128], (rows, 1)).astype("u1")
    blocks = nvfp4_blocks(packed, scales)
    assert blocks.shape == (rows, blocks_per_row * 36)
    expected = np.array(E2M1)[codes_of(packed)] * np.repeat(np.array(E4M3)[scales], 16, axis=1)
    np.testing.assert_array_equal(decoded(blocks, "NVFP4"), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_no_bit_is_lost(name: str) -> None:
    rng = np.random.default_rng(4)
    groups = 8
    per_group = 16 if name == "MXFP4" else 8
    packed = rng.integers(0, 256, (3, groups * per_group), np.uint8)
    scales = rng.integers(0, 127, (3, groups), np.uint8)
    blocks = (mxfp4_blocks if name == "MXFP4" else nvfp4_blocks)(packed, scales)
    # undone by the layouts' definitions: codes below one another go back beside one another
    together = 1 if name == "MXFP4" else 4
    for row in range(3):
        size = together * (1 + per_group)
        for group in range(groups):
            block = blocks[row, group // together * size :][:size].tolist()
            place = group % together
            assert block[place] == scales[row, group]
            held = block[together + place * per_group :][:per_group]
            codes = [byte & 15 for byte in held] + [byte >> 4 for byte in held]
            again = [codes[k] + 16 * codes[k + 1] for k in range(0, 2 * per_group, 2)]
            assert again == packed[row, group * per_group :][:per_group].tolist()
