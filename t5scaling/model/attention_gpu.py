"""Attention as fused GPU kernels (Pallas, lowered by Triton), with T5's bias and its gradient.

The forward pass is that of Dao et al. 2022 (arXiv 2205.14135): softmax over the keys block by
block, of which only the normaliser's logarithm is kept. What T5 adds is a bias by head and
distance. The backward pass takes the weights again from the queries, the keys and that logarithm.
No array has the size (B, H, T, S), and no two programs add to one place, so that results repeat bit
for bit.

Four kernels: the output; the gradients by the queries; by the keys and values; by the bias, whose
programs hold one block of one head each and loop over the batch.

Axes in array names: B batch, T query position, S key position, H head, D head dimension, C = T+S-1
distances: column c is that of key - query = c - (T-1).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from t5scaling.model import attention_gpu_kernels as kernels
from t5scaling.model.attention_gpu_kernels import Settings, Tile
from t5scaling.model.layers import PRODUCT, custom_vjp, diagonals_to_matrix, sums_of_diagonals

OUTSIDE = -1  # segment of the keys that fill the last block: no query ever attends to them


class Tiles(NamedTuple):
    """The tiles of the four kernels; the fastest of many on an H100 (benchmarks/accelerator.py)."""

    output: Tile = Tile(128, 64, 4, 3)
    by_queries: Tile = Tile(128, 32, 4, 3)
    by_keys: Tile = Tile(128, 64, 4, 2)
    by_bias: Tile = Tile(64, 64, 4, 3)


def attend(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    bias_HxC: jax.Array | None,
    query_segments_BxT: jax.Array,
    key_segments_BxS: jax.Array,
    *,
    causal: bool,
    packed: bool = True,
    interpret: bool = False,
    tiles: Tiles | None = None,
) -> jax.Array:
    """softmax(q k + bias) v over the keys of each query's segment: (B, T, H, D) in q's dtype.

    The output of a query that sees no key is 0. Differentiable by q, k, v and bias.

    Args:
      q_BxTxHxD, k_BxSxHxD, v_BxSxHxD: bfloat16 or float32, all of one dtype; D is a power of 2.
      bias_HxC: float32, by distance, or None. It is rounded to q's dtype, as T5X has it.
      query_segments_BxT, key_segments_BxS: int32 >= 0; a key is visible where the two are equal.
      causal: whether, besides, no key later than its query is visible; T = S then.
      packed: False if all queries are of segment 1, and if `causal` all keys too, which saves time.
      interpret: runs the kernels as array operations, on any device: slow, to test them.
      tiles: how the kernels are cut; None for `Tiles()`.
    """
    tiles = tiles or Tiles()
    length, keys = q_BxTxHxD.shape[1], k_BxSxHxD.shape[1]
    more_queries = _missing(length, [tile.queries for tile in tiles])
    more_keys = _missing(keys, [tile.keys for tile in tiles])
    q = _pad(q_BxTxHxD, 1, (0, more_queries))
    k, v = _pad(k_BxSxHxD, 1, (0, more_keys)), _pad(v_BxSxHxD, 1, (0, more_keys))
    bias = None if bias_HxC is None else _pad(bias_HxC, 1, (more_queries, more_keys))
    q_segments = _pad(query_segments_BxT.astype(jnp.int32), 1, (0, more_queries))
    k_segments = _pad(key_segments_BxS.astype(jnp.int32), 1, (0, more_keys), OUTSIDE)
    settings = Settings(packed, causal, interpret)
    return _attend(q, k, v, bias, q_segments, k_segments, settings, tiles)[:, :length]


def _fitting(block: int, length: int) -> int:
    """The block for an axis of few positions: a power of 2, 16 (a matrix unit's) at least."""
    return min(block, max(16, 1 << (length - 1).bit_length()))


def _missing(length: int, blocks: list[int]) -> int:
    """Positions to add so that each of `blocks` (powers of 2) divides the length."""
    return -length % max(_fitting(block, length) for block in blocks)


def _pad(x: jax.Array, axis: int, more: tuple[int, int], value: int = 0) -> jax.Array:
    if not any(more):
        return x
    widths = [more if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


@custom_vjp(6, 7)
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    q_segments: jax.Array,
    k_segments: jax.Array,
    settings: Settings,
    tiles: Tiles,
) -> jax.Array:
    return run("output", (q, k, v, bias, q_segments, k_segments), settings, tiles)[0]


def _attend_fwd(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    q_segments: jax.Array,
    k_segments: jax.Array,
    settings: Settings,
    tiles: Tiles,
) -> tuple[jax.Array, Any]:
    given = (q, k, v, bias, q_segments, k_segments)
    o, log_z = run("output", given, settings, tiles)
    # The policy "minimal" keeps what has this name, as it keeps other matrix products.
    return checkpoint_name(o, PRODUCT), (*given, o, checkpoint_name(log_z, PRODUCT))


def _attend_bwd(settings: Settings, tiles: Tiles, residuals: Any, do: jax.Array) -> tuple[Any, ...]:
    *given, o, log_z = residuals
    dq, delta = run("by_queries", (*given, do, log_z, o), settings, tiles)
    given = (*given, do, log_z, delta)
    dk, dv = run("by_keys", given, settings, tiles)
    dbias = None
    if given[3] is not None:
        (dscores,) = run("by_bias", given, settings, tiles)
        dbias = sums_of_diagonals(dscores)
    return dq, dk, dv, dbias, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def run(name: str, operands: Sequence[Any], settings: Settings, tiles: Tiles) -> list[jax.Array]:
    """Calls a kernel, once for each point of its grid.

    output: (q, k, v, bias, q_segments, k_segments) -> o (B, T, H, D), log_z (B, H, T): the
      logarithm of each softmax's normaliser.
    by_queries: (..., do, log_z, o) -> dq, delta (B, H, T): sums over D of do * o.
    by_keys: (..., do, log_z, delta) -> dk, dv.
    by_bias: (..., do, log_z, delta) -> the gradient by the scores, summed over B, (H, T, S).
    """
    kernel, grid, more, results = KERNELS[name]
    q, k, v, bias, *rest = operands
    (batch, length, heads, dim), keys = q.shape, k.shape[1]
    tile = getattr(tiles, name)
    tile = tile._replace(queries=_fitting(tile.queries, length), keys=_fitting(tile.keys, keys))
    counts = {"h": heads, "b": batch, "i": length // tile.queries, "j": keys // tile.keys}
    # An axis that is not in the grid is whole in each program.
    b = None if "b" in grid else batch  # None: one row, without the axis
    rows = tile.queries if "i" in grid else length
    cols = tile.keys if "j" in grid else keys

    def block(*shape: int | None, at: str) -> pl.BlockSpec:
        def index(*ids: Any) -> tuple[Any, ...]:
            place = {"b": 0, "h": 0, "i": 0, "j": 0, "-": 0} | dict(zip(grid, ids, strict=True))
            return tuple(place[axis] for axis in at)

        return pl.BlockSpec(shape, index)

    blocks = {
        "q": block(b, rows, None, dim, at="bih-"),
        "k": block(b, cols, None, dim, at="bjh-"),
        "row": block(b, None, rows, at="bhi"),
        "q_segments": block(b, rows, at="bi"),
        "k_segments": block(b, cols, at="bj"),
        "scores": block(None, rows, cols, at="hij"),
        "scores by key": block(None, cols, rows, at="hji"),
    }
    arrays = {
        "q": (q.shape, q.dtype),
        "k": (k.shape, k.dtype),
        "row": ((batch, heads, length), jnp.float32),
        "scores": ((heads, length, keys), jnp.float32),
    }
    bias_block = None
    if bias is not None:
        bias = diagonals_to_matrix(bias, length, keys).astype(q.dtype)
        bias = bias.swapaxes(1, 2) if name == "by_keys" else bias
        bias_block = blocks["scores by key" if name == "by_keys" else "scores"]
    segments = [blocks["q_segments"], blocks["k_segments"]]
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, settings=settings),
        grid=tuple(counts[axis] for axis in grid),
        in_specs=[blocks["q"], blocks["k"], blocks["k"], bias_block, *segments]
        + [blocks[name] for name in more],
        out_specs=[blocks[name] for name in results],
        out_shape=[jax.ShapeDtypeStruct(*arrays[name]) for name in results],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=settings.interpret,
        name=f"t5_attention_{name}",
    )(q, k, v, bias, *rest)


# name: kernel; its grid over h (heads), b (rows of the batch), i (blocks of queries) and j (blocks
# of keys); what its operands after the first six, and its results, are.
KERNELS = {
    "output": (kernels.output_kernel, "hbi", (), ("q", "row")),
    "by_queries": (kernels.by_queries_kernel, "hbi", ("q", "row", "q"), ("q", "row")),
    "by_keys": (kernels.by_keys_kernel, "hbj", ("q", "row", "row"), ("k", "k")),
    "by_bias": (kernels.by_bias_kernel, "hij", ("q", "row", "row"), ("scores",)),
}
