"""Each transform against NumPy on whole arrays, read in every slab, and undone by its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.errors import ModelError
from qconv.formats.architectures import TRANSFORMS
from qconv.formats.architectures.transforms import constant
from qconv.formats.base import Tensor

Array = NDArray[Any]


class Source:
    """A tensor in memory that remembers the largest number of rows asked for at once, and the total."""

    def __init__(self, shape: tuple[int, ...], encoding: str = "BF16", seed: int = 0) -> None:
        kind = {"BF16": np.uint16, "F32": np.float32, "F64": np.float64}[encoding]
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self.values = (values.view(np.uint32) >> 16).astype(np.uint16) if encoding == "BF16" else values.astype(kind)
        self.largest = self.total = 0
        rows = self.values.reshape(-1, shape[-1]).view(np.uint8)

        def read(start: int, stop: int) -> NDArray[np.uint8]:
            assert 0 <= start <= stop <= len(rows)
            self.largest = max(self.largest, stop - start)
            self.total += stop - start
            return rows[start:stop].copy()

        self.tensor = Tensor(f"t{seed}", shape, ENCODINGS[encoding], read, "memory")


def whole(tensor: Tensor, dtype: Any = np.uint16) -> Array:
    return np.asarray(tensor.read(0, tensor.row_count).view(dtype).reshape(tensor.shape))


def permuted(values: Array, heads: int) -> Array:
    """Halves to pairs, as the specification of the transform has it: (heads, 2, d/2) with the inner axes swapped."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def gathered(values: Array, heads: int, kv_heads: int) -> Array:
    """Groups (queries, key, value) to all queries, all keys, all values, as transformers splits Falcon's fused projection."""
    groups = values.reshape(kv_heads, heads // kv_heads + 2, -1, *values.shape[1:])
    parts = [groups[:, :-2], groups[:, -2], groups[:, -1]]
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def attention_parts(values: Array, heads: int, kv_heads: int) -> list[Array]:
    """Queries, keys and values of a fused projection of groups, the first two in pairs."""
    whole = gathered(values, heads, kv_heads)
    size = len(whole) // (heads + 2 * kv_heads)
    query, key, value = np.split(whole, [heads * size, (heads + kv_heads) * size])
    return [permuted(query, heads), permuted(key, kv_heads), value]


def latent_parts(values: Array, heads: int, key: int) -> list[Array]:
    """Keys, transposed, and values of every head, as DeepSeek's attention reads kv_b_proj."""
    stacked = values.reshape(heads, -1, values.shape[1])
    return [stacked[:, :key].swapaxes(1, 2), stacked[:, key:]]


def tiled(values: Array, first: int, groups: int, share: int) -> Array:
    """Heads of rows behind the first, from group by group to the first of each group, then the second, and so on."""
    heads = values[first:].reshape(groups, share, -1, *values.shape[1:]).swapaxes(0, 1)
    return np.concatenate([values[:first], heads.reshape(-1, *values.shape[1:])])


def key_groups(values: Array, groups: int, key: int, wide: int) -> list[Array]:
    """Queries, keys and values of all groups, and their gates, as transformers splits Qwen3-Next's fused projection."""
    query, keys, value, gate = np.split(
        values.reshape(groups, -1, values.shape[1]), np.cumsum([key, key, wide]), axis=1
    )
    mixed = [part.reshape(-1, values.shape[1]) for part in (query, keys, value)]
    return [np.concatenate(mixed), gate.reshape(-1, values.shape[1])]


@dataclass(frozen=True)
class Example:
    name: str
    shapes: Sequence[tuple[int, ...]]
    arguments: Mapping[str, int]
    reference: Callable[[Sequence[Array]], Sequence[Array]]


EXAMPLES = (
    Example("copy", [(5, 6)], {}, list),
    Example("permute_rotary", [(24, 5)], {"heads": 3}, lambda a: [permuted(a[0], 3)]),
    Example("permute_rotary", [(24,)], {"heads": 3}, lambda a: [permuted(a[0], 3)]),
    Example("permute_rotary", [(4, 3)], {"heads": 2}, lambda a: [permuted(a[0], 2)]),
    Example("transpose", [(5, 7)], {}, lambda a: [a[0].T]),
    Example("transpose", [(3, 5, 7)], {}, lambda a: [a[0].swapaxes(1, 2)]),
    Example("transpose", [(1, 7)], {}, lambda a: [a[0].T]),
    Example("stack", [(4, 3)] * 5, {}, lambda a: [np.stack(a)]),
    Example("split_rows", [(7, 3)], {"first": 4}, lambda a: [a[0][:4], a[0][4:]]),
    Example("split_rows", [(3, 7, 2)], {"first": 4}, lambda a: [a[0][:, :4], a[0][:, 4:]]),
    Example("fuse_rows", [(4, 3), (2, 3)], {"first": 4}, lambda a: [np.concatenate(a)]),
    Example("fuse_rows", [(3, 4, 2), (3, 5, 2)], {"first": 4}, lambda a: [np.concatenate(a, 1)]),
    Example("skip_rows", [(7, 3)], {"first": 2}, lambda a: [a[0][2:]]),
    Example("repeat_first_row", [(5, 3)], {"rows": 5, "total": 8}, lambda a: [a[0][[0, 1, 2, 3, 4, 0, 0, 0]]]),
    Example("squeeze", [(1, 7)], {}, lambda a: [a[0][0]]),
    Example("separate_rows", [(8, 3)], {}, lambda a: [a[0][::2], a[0][1::2]]),
    Example("separate_rows", [(3, 6, 2)], {}, lambda a: [a[0][:, ::2], a[0][:, 1::2]]),
    Example("separate_columns", [(3, 8)], {}, lambda a: [a[0][:, ::2], a[0][:, 1::2]]),
    Example("separate_columns", [(8,)], {}, lambda a: [a[0][::2], a[0][1::2]]),
    Example(
        "transpose_and_separate_rows",
        [(3, 5, 6)],
        {},
        lambda a: [a[0].swapaxes(1, 2)[:, ::2], a[0].swapaxes(1, 2)[:, 1::2]],
    ),
    Example(
        "transpose_and_split_rows",
        [(3, 5, 6)],
        {"first": 4},
        lambda a: [a[0].swapaxes(1, 2)[:, :4], a[0].swapaxes(1, 2)[:, 4:]],
    ),
    Example("gather_groups", [(24, 5)], {"heads": 4, "kv_heads": 2}, lambda a: [gathered(a[0], 4, 2)]),
    Example("gather_groups", [(18, 3)], {"heads": 3, "kv_heads": 3}, lambda a: [gathered(a[0], 3, 3)]),
    Example("gather_groups", [(14, 3)], {"heads": 5, "kv_heads": 1}, lambda a: [gathered(a[0], 5, 1)]),
    Example("gather_groups", [(24,)], {"heads": 4, "kv_heads": 2}, lambda a: [gathered(a[0], 4, 2)]),
    Example("split_attention", [(24, 5)], {"heads": 4, "kv_heads": 1}, lambda a: attention_parts(a[0], 4, 1)),
    Example("split_attention", [(32, 3)], {"heads": 4, "kv_heads": 2}, lambda a: attention_parts(a[0], 4, 2)),
    Example("split_latent", [(15, 4)], {"heads": 3, "key": 2, "value": 3}, lambda a: latent_parts(a[0], 3, 2)),
    Example("fold", [(12,)], {"rows": 3}, lambda a: [a[0].reshape(3, 4)]),
    Example("fold", [(5,)], {"rows": 5}, lambda a: [a[0][:, None]]),
    Example("squeeze_kernels", [(6, 1, 4)], {}, lambda a: [a[0][:, 0]]),
    Example("tile_heads", [(17, 3)], {"first": 5, "heads": 6, "groups": 2}, lambda a: [tiled(a[0], 5, 2, 3)]),
    Example("tile_heads", [(17,)], {"first": 5, "heads": 6, "groups": 2}, lambda a: [tiled(a[0], 5, 2, 3)]),
    Example("tile_heads", [(6, 3)], {"first": 0, "heads": 3, "groups": 3}, lambda a: [a[0]]),
    Example("tile_columns", [(5, 12)], {"heads": 6, "groups": 3}, lambda a: [tiled(a[0].T, 0, 3, 2).T]),
    Example("tile_kernels", [(9, 1, 4)], {"first": 3, "heads": 6, "groups": 2}, lambda a: [tiled(a[0][:, 0], 3, 2, 3)]),
    Example(
        "split_key_groups",
        [(44, 3)],
        {"heads": 4, "groups": 2, "key": 3, "value": 4},
        lambda a: key_groups(a[0], 2, 3, 8),
    ),
)
EACH = pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda item: f"{item.name}-{'x'.join(map(str, item.shapes[0]))}"
)


@EACH
@pytest.mark.parametrize("encoding", ["BF16", "F64"])
def test_bytes_are_those_of_the_reference(example: Example, encoding: str) -> None:
    sources = [Source(shape, encoding, seed) for seed, shape in enumerate(example.shapes)]
    found = TRANSFORMS[example.name].forward([source.tensor for source in sources], example.arguments)
    wanted = example.reference([source.values for source in sources])
    assert [tensor.shape for tensor in found] == [array.shape for array in wanted]
    for tensor, array in zip(found, wanted, strict=True):
        assert tensor.encoding.name == encoding
        assert np.array_equal(whole(tensor, array.dtype), array)


@EACH
def test_any_slab_is_the_same_rows(example: Example) -> None:
    sources = [Source(shape, "BF16", seed) for seed, shape in enumerate(example.shapes)]
    transform = TRANSFORMS[example.name]
    there = transform.forward([source.tensor for source in sources], example.arguments)
    for tensor in (*there, *transform.inverse(there, example.arguments)):
        rows = tensor.read(0, tensor.row_count)
        slabs = [(a, b) for a in range(tensor.row_count) for b in range(a + 1, tensor.row_count + 1)]
        slabs += [(0, 0), (tensor.row_count, tensor.row_count)]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(tensor.read, *zip(*slabs, strict=True))
            for (start, stop), slab in zip(slabs, found, strict=True):
                assert slab.dtype == np.uint8
                assert np.array_equal(slab, rows[start:stop])


@EACH
def test_the_inverse_restores_every_bit(example: Example) -> None:
    sources = [Source(shape, "BF16", seed) for seed, shape in enumerate(example.shapes)]
    transform = TRANSFORMS[example.name]
    there = transform.forward([source.tensor for source in sources], example.arguments)
    back = transform.inverse(there, example.arguments)
    assert len(back) == len(sources)
    for tensor, source in zip(back, sources, strict=True):
        assert tensor.shape == source.values.shape
        assert np.array_equal(whole(tensor), source.values)


def test_permutation_reads_whole_heads_and_no_more() -> None:
    source = Source((64, 3))
    (tensor,) = TRANSFORMS["permute_rotary"].forward([source.tensor], {"heads": 8})
    tensor.read(9, 17)
    assert source.total == 16


def test_transposition_reads_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconv.formats.architectures.matrices._CHUNK", 60)
    source = Source((11, 10))
    (tensor,) = TRANSFORMS["transpose"].forward([source.tensor], {})
    assert np.array_equal(whole(tensor), source.values.T)
    assert (source.largest, source.total) == (3, 11)


def test_add_one_is_float32_and_its_inverse_is_exact_for_ordinary_norms() -> None:
    source = Source((64,))
    (tensor,) = TRANSFORMS["add_one"].forward([source.tensor], {})
    exact = (source.values.astype(np.uint32) << 16).view(np.float32)
    assert tensor.encoding.name == "F32"
    assert np.array_equal(whole(tensor, np.float32), exact + np.float32(1))
    from_file = replace(tensor, read=lambda start, stop: tensor.read(start, stop))
    (back,) = TRANSFORMS["add_one"].inverse([from_file], {})
    nearest = (whole(back, np.float32).view(np.uint32) + 0x8000) >> 16
    assert np.array_equal(nearest, source.values)
    (taken_back,) = TRANSFORMS["add_one"].inverse([tensor], {})
    assert taken_back.encoding.name == "BF16"
    assert np.array_equal(whole(taken_back, np.uint16), source.values)


def test_rates_of_decay_are_negative_and_come_back() -> None:
    source = Source((6,), "F32")
    arguments = {"heads": 6, "groups": 2}
    (found,) = TRANSFORMS["tile_decay"].forward([source.tensor], arguments)
    assert found.encoding.name == "F32"
    wanted = tiled(-np.exp(source.values), 0, 2, 3)
    assert np.array_equal(whole(found, np.float32), wanted)
    (same,) = TRANSFORMS["tile_decay"].inverse([found], arguments)
    assert np.array_equal(whole(same, np.float32), source.values)
    (computed,) = TRANSFORMS["tile_decay"].inverse([constant("a", wanted, "memory")], arguments)
    assert np.allclose(whole(computed, np.float32), source.values, rtol=1e-5)
    (nothing,) = TRANSFORMS["tile_decay"].inverse([constant("a", np.ones(6, np.float32), "memory")], arguments)
    assert np.isnan(whole(nothing, np.float32)).all()


def test_folded_rates_come_back_to_the_bit_where_they_are_undone() -> None:
    source = Source((6,), "F32")
    (found,) = TRANSFORMS["fold_decay"].forward([source.tensor], {"rows": 6})
    assert found.shape == (6, 1)
    assert np.array_equal(whole(found, np.float32), -np.exp(source.values)[:, None])
    (same,) = TRANSFORMS["fold_decay"].inverse([found], {"rows": 6})
    assert np.array_equal(whole(same, np.float32), source.values)
    with pytest.raises(ModelError, match="no matrix of 5 rows"):
        TRANSFORMS["fold_decay"].inverse([found], {"rows": 5})


def test_blocks_within_heads_are_moved_whole() -> None:
    encoding = ENCODINGS["Q8_0"]
    rows = encoding.encode(np.random.default_rng(3).standard_normal((4, 192)).astype(np.float32))
    tensor = Tensor("t", (4, 192), encoding, lambda start, stop: rows[start:stop], "memory")
    (moved,) = TRANSFORMS["tile_columns"].forward([tensor], {"heads": 6, "groups": 2})
    assert moved.encoding.name == "Q8_0"
    (decoded,) = TRANSFORMS["tile_columns"].forward([tensor], {"heads": 12, "groups": 2})
    assert decoded.encoding.name == "F32"
    assert np.array_equal(moved.rows(0, 4), tiled(tensor.rows(0, 4).T, 0, 2, 3).T)
    assert np.array_equal(decoded.rows(0, 4), tiled(tensor.rows(0, 4).T, 0, 2, 6).T)


@pytest.mark.parametrize(("heads", "groups"), [(6, 4), (6, 0), (0, 1)])
def test_heads_that_no_groups_share(heads: int, groups: int) -> None:
    with pytest.raises(ModelError, match="cannot share"):
        TRANSFORMS["tile_heads"].forward([Source((6, 3)).tensor], {"first": 0, "heads": heads, "groups": groups})


def test_stacks_of_different_encodings_become_float32() -> None:
    one, other = Source((2, 4), "BF16", 1), Source((2, 4), "F32", 2)
    (tensor,) = TRANSFORMS["stack"].forward([one.tensor, other.tensor], {})
    assert tensor.encoding.name == "F32"
    wanted = np.stack([(one.values.astype(np.uint32) << 16).view(np.float32), other.values])
    assert np.array_equal(whole(tensor, np.float32), wanted)


def test_quantized_rows_are_moved_whole() -> None:
    rows = np.arange(8 * 34, dtype=np.uint8).reshape(8, 34)
    source = Tensor("q", (8, 32), ENCODINGS["Q8_0"], lambda start, stop: rows[start:stop], "memory")
    (tensor,) = TRANSFORMS["permute_rotary"].inverse([source], {"heads": 2})
    assert tensor.encoding.name == "Q8_0"
    assert np.array_equal(tensor.read(0, 8), rows[[0, 2, 1, 3, 4, 6, 5, 7]])


def test_quantized_rows_are_separated_whole() -> None:
    rows = np.arange(8 * 34, dtype=np.uint8).reshape(8, 34)
    source = Tensor("q", (2, 4, 32), ENCODINGS["Q8_0"], lambda start, stop: rows[start:stop], "memory")
    even, odd = TRANSFORMS["separate_rows"].forward([source], {})
    assert (even.encoding.name, even.shape) == ("Q8_0", (2, 2, 32))
    assert np.array_equal(odd.read(0, 4), rows[1::2])


def test_constants_are_read_only_rows() -> None:
    tensor = constant("rope_freqs.weight", np.arange(4, dtype=np.float32), "test")
    assert tensor.rows(0, 1).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="read-only"):
        tensor.read(0, 1)[0, 0] = 1


@pytest.mark.parametrize(
    ("name", "shapes", "arguments"),
    [
        ("permute_rotary", [(24, 2)], {"heads": 5}),
        ("permute_rotary", [(24, 2)], {"heads": 8}),
        ("permute_rotary", [(24, 2)], {"heads": 0}),
        ("permute_rotary", [(2, 24, 2)], {"heads": 2}),
        ("transpose", [(24,)], {}),
        ("stack", [(2, 3), (3, 2)], {}),
        ("stack", [(2,), (2,)], {}),
        ("split_rows", [(4, 2)], {"first": 4}),
        ("split_rows", [(4,)], {"first": 2}),
        ("fuse_rows", [(4, 2), (4, 3)], {"first": 4}),
        ("fuse_rows", [(4, 2), (4, 2)], {"first": 3}),
        ("squeeze", [(2, 2)], {}),
        ("squeeze", [(2,)], {}),
        ("separate_rows", [(5, 2)], {}),
        ("separate_rows", [(4,)], {}),
        ("separate_columns", [(2, 5)], {}),
        ("transpose_and_separate_rows", [(2, 4, 5)], {}),
        ("transpose_and_split_rows", [(2, 4, 5)], {"first": 5}),
        ("gather_groups", [(24, 2)], {"heads": 5, "kv_heads": 2}),
        ("gather_groups", [(24, 2)], {"heads": 4, "kv_heads": 0}),
        ("gather_groups", [(23, 2)], {"heads": 4, "kv_heads": 2}),
        ("gather_groups", [(2, 24, 2)], {"heads": 4, "kv_heads": 2}),
        ("split_attention", [(24, 2)], {"heads": 5, "kv_heads": 2}),
        ("split_attention", [(24,)], {"heads": 4, "kv_heads": 2}),
        ("split_latent", [(15, 4)], {"heads": 3, "key": 2, "value": 2}),
        ("split_latent", [(3, 5, 4)], {"heads": 3, "key": 2, "value": 3}),
        ("squeeze_kernels", [(6, 2, 4)], {}),
        ("fold", [(7,)], {"rows": 2}),
        ("fold", [(2, 6)], {"rows": 2}),
        ("fold_decay", [(7,)], {"rows": 6}),
        ("tile_heads", [(16, 3)], {"first": 5, "heads": 6, "groups": 2}),
        ("tile_heads", [(6, 1, 3)], {"first": 0, "heads": 6, "groups": 2}),
        ("tile_columns", [(5, 13)], {"heads": 6, "groups": 3}),
        ("tile_decay", [(7,)], {"heads": 6, "groups": 3}),
        ("split_key_groups", [(43, 3)], {"heads": 4, "groups": 2, "key": 3, "value": 4}),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    name: str, shapes: list[tuple[int, ...]], arguments: Mapping[str, int]
) -> None:
    tensors = [Source(shape).tensor for shape in shapes]
    with pytest.raises(ModelError, match="shape") as caught:
        TRANSFORMS[name].forward([replace(tensor, name="guilty") for tensor in tensors], arguments)
    assert caught.value.tensor == "guilty"


def test_consecutive_slabs_read_a_stack_once() -> None:
    sources = [Source((4, 3), "BF16", seed) for seed in range(3)]
    (tensor,) = TRANSFORMS["stack"].forward([source.tensor for source in sources], {})
    for start, stop in pairwise([0, 5, 7, 12]):
        tensor.read(start, stop)
    assert [source.total for source in sources] == [4, 4, 4]
