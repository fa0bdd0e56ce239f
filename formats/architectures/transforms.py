"""Named, invertible transforms between Hugging Face's tensors and GGUF's.

A transform takes the lazy tensors of one side and returns those of the other; it moves bytes of rows and so keeps the encoding and every bit,
unless it says otherwise. Reading a slab of the result reads only the rows it needs, plus at most the rest of the heads at its ends. Nothing is
kept between reads, so any thread may read.

================================ ============================================================= ================= ======================
name                             Hugging Face → GGUF                                           arguments         inverse
================================ ============================================================= ================= ======================
``copy``                         the same rows                                                 —                 the same rows
``permute_rotary``               rows of each head from (half, pair) to (pair, half) order     heads             (pair, half) back
``transpose``                    every matrix to its transpose; a slab reads its whole matrix  —                 the same again
``add_one``                      adds 1 in float32; the result is F32                          —                 subtracts 1
``stack``                        n tensors to one with a new first axis, in order              —                 n tensors
``squeeze``                      a matrix of one row to a vector                               —                 a matrix again
``fold``                         a vector to a matrix of so many rows                          rows              a vector again
``fold_decay``                   ``fold``, then -exp in float32; F32                           rows              the two undone
``split_rows``                   one tensor cut along the axis before the last: ``first``      first             joined
                                 rows, then the rest, in each matrix of a stack
``fuse_rows``                    two tensors joined along that axis: ``first`` rows, then more first             cut
``skip_rows``                    a matrix without its ``first`` rows                            first             zeros, or the rows
``repeat_first_row``             a matrix of ``rows`` rows, then its first one again, ``total``   rows, total       the first rows
                                 in all
``separate_rows``                rows with even numbers, and those with odd ones, in each      —                 one by one
                                 matrix of a stack
``separate_columns``             the same of the elements of rows                              —                 one by one
``transpose_and_separate_rows``  ``transpose``, then ``separate_rows``                         —                 one by one, transposed
``transpose_and_split_rows``     ``transpose``, then ``split_rows``                            first             joined, transposed
``gather_groups``                rows of a fused projection from one group per key head        heads, kv_heads   groups
                                 (queries, key, value) to all queries, all keys, all values
``split_attention``              ``gather_groups``, then queries, keys and values apart, rows  heads, kv_heads   groups
                                 of queries and keys as by ``permute_rotary``
``split_latent``                 (heads * (key + value), rank) to (heads, rank, key) and       heads, key, value joined
                                 (heads, value, rank)
``squeeze_kernels``              (channels, 1, length) to (channels, length)                   —                 (channels, 1, length)
``wrap_kernels``                 (channels, 1, length) to (1, channels, 1, length)             —                 (channels, 1, length)
``tile_heads``                   value heads, rows behind the ``first``, from one group per    first, heads,     groups
                                 key head to groups in turn                                    groups
``tile_columns``                 the same of columns                                           heads, groups     groups
``tile_kernels``                 ``squeeze_kernels``, then ``tile_heads``                      first, heads,     the two undone
                                                                                               groups
``tile_decay``                   -exp in float32, heads as by ``tile_heads``; F32              heads, groups     log(-x)
``decay_column``                 -exp in float32 of (1, 1, heads, 1); F32                      heads             log(-x)
``split_key_groups``             one group per key head (queries, keys, values, gates) to all  heads, groups,    groups
                                 queries, keys, values; and all gates                          key, value
================================ ============================================================= ================= ======================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..base import Tensor
from .elementwise import Decay, Shift, computed, decay_column, undecay_column
from .fused import join_attention, split_attention
from .lazy import Apply, constant, each, same_encoding
from .matrices import interleave_columns, join_latent, separate_columns, split_latent, transpose
from .rows import (
    cut,
    fold,
    forget_repeated,
    gather_groups,
    interleave,
    join,
    permute_rotary,
    repeat_first,
    scatter_groups,
    separate,
    skip,
    squeeze,
    stack,
    unfold,
    unpermute_rotary,
    unskip,
    unsqueeze,
    unstack,
)
from .value_heads import (
    join_key_groups,
    split_key_groups,
    squeeze_kernels,
    tile_columns,
    tile_heads,
    unsqueeze_kernels,
    untile_columns,
    untile_heads,
    unwrap_kernels,
    wrap_kernels,
)

__all__ = ["TRANSFORMS", "Transform", "constant", "permute_rotary", "same_encoding", "unpermute_rotary"]


@dataclass(frozen=True, slots=True)
class Transform:
    """A pair of inverse functions on lists of tensors.

    Attributes:
        forward: Hugging Face's tensors and the arguments to GGUF's tensors; raises ModelError for shapes that do not fit.
        inverse: GGUF's tensors and the arguments back to Hugging Face's.
        arguments: names of the arguments, all of them integers.
    """

    forward: Apply
    inverse: Apply
    arguments: tuple[str, ...] = ()


def _copy(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    return tuple(tensors)


def _one_after_another(first: Apply, second: Apply) -> Apply:
    return lambda tensors, arguments: second(first(tensors, arguments), arguments)


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        "copy": Transform(_copy, _copy),
        "permute_rotary": Transform(each(permute_rotary), each(unpermute_rotary), ("heads",)),
        "transpose": Transform(each(transpose), each(transpose)),
        "add_one": Transform(each(computed(lambda _: Shift(1.0))), each(computed(lambda _: Shift(-1.0)))),
        "stack": Transform(stack, unstack),
        "squeeze": Transform(each(squeeze), each(unsqueeze)),
        "fold": Transform(each(fold), each(unfold), ("rows",)),
        "fold_decay": Transform(
            _one_after_another(each(fold), each(computed(lambda _: Decay(1, 1)))),
            _one_after_another(each(computed(lambda _: Decay(1, 1, backwards=True))), each(unfold)),
            ("rows",),
        ),
        "split_rows": Transform(cut, join, ("first",)),
        "fuse_rows": Transform(join, cut, ("first",)),
        "skip_rows": Transform(each(skip), each(unskip), ("first",)),
        "repeat_first_row": Transform(each(repeat_first), each(forget_repeated), ("rows", "total")),
        "separate_rows": Transform(separate, interleave),
        "separate_columns": Transform(separate_columns, interleave_columns),
        "transpose_and_separate_rows": Transform(
            _one_after_another(each(transpose), separate), _one_after_another(interleave, each(transpose))
        ),
        "transpose_and_split_rows": Transform(
            _one_after_another(each(transpose), cut), _one_after_another(join, each(transpose)), ("first",)
        ),
        "gather_groups": Transform(each(gather_groups), each(scatter_groups), ("heads", "kv_heads")),
        "split_attention": Transform(split_attention, join_attention, ("heads", "kv_heads")),
        "split_latent": Transform(split_latent, join_latent, ("heads", "key", "value")),
        "squeeze_kernels": Transform(each(squeeze_kernels), each(unsqueeze_kernels)),
        "wrap_kernels": Transform(each(wrap_kernels), each(unwrap_kernels)),
        "tile_heads": Transform(each(tile_heads), each(untile_heads), ("first", "heads", "groups")),
        "tile_columns": Transform(each(tile_columns), each(untile_columns), ("heads", "groups")),
        "tile_kernels": Transform(
            _one_after_another(each(squeeze_kernels), each(tile_heads)),
            _one_after_another(each(untile_heads), each(unsqueeze_kernels)),
            ("first", "heads", "groups"),
        ),
        "tile_decay": Transform(
            each(computed(lambda sizes: Decay(sizes["heads"], sizes["groups"]))),
            each(computed(lambda sizes: Decay(sizes["heads"], sizes["groups"], backwards=True))),
            ("heads", "groups"),
        ),
        "decay_column": Transform(each(decay_column), each(undecay_column), ("heads",)),
        "split_key_groups": Transform(split_key_groups, join_key_groups, ("heads", "groups", "key", "value")),
    }
)
