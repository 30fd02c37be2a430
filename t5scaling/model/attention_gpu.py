"""Attention as fused GPU kernels (Pallas, lowered by Triton), with T5's bias and its gradient.

The forward pass is that of Dao et al. 2022 (arXiv 2205.14135): softmax over the keys block by
block, of which only the normaliser's logarithm is kept. What T5 adds is a bias by head and
distance. The backward pass takes the weights again from the queries, the keys and that logarithm.
No array has the size (B, H, T, S), and no two programs add to one place, so that results repeat bit
for bit.

Four kernels: the output; the gradients by the queries; by the keys and values; by the bias, whose
programs hold one block of one head each and loop over the batch. In what limits them, arithmetic
for each score, every operation counts.

Axes in array names: B batch, T query position, S key position, H head, D head dimension, C = T+S-1
distances: column c is that of key - query = c - (T-1).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from t5scaling.model.layers import PRODUCT, diagonals_to_matrix, sums_of_diagonals

OUTSIDE = -1  # segment of the keys that fill the last block: no query ever attends to them
# Powers of 2: times log2(e) they are rounded as their sum with another is, see _exp.
HIDDEN = -(2.0**33)  # score of a key that is not visible
LOWEST = -(2.0**32)  # below every score of a visible key; exp(HIDDEN - LOWEST) is 0
LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """How one kernel is cut: query and key positions of a block, and Triton's settings for it."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the four kernels; the fastest of many on an H100 (benchmarks/accelerator.py)."""

    output: Tile = Tile(128, 64, 4, 2)
    by_queries: Tile = Tile(128, 64, 4, 3)
    by_keys: Tile = Tile(64, 64, 4, 3)
    by_bias: Tile = Tile(64, 64, 4, 3)


class _Settings(NamedTuple):
    packed: bool
    causal: bool
    tiles: Tiles
    interpret: bool


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
    settings = _Settings(packed, causal, tiles, interpret)
    return _attend(q, k, v, bias, q_segments, k_segments, settings)[:, :length]


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, bias, q_segments, k_segments, settings):
    return output(q, k, v, bias, q_segments, k_segments, settings)[0]


def _attend_fwd(q, k, v, bias, q_segments, k_segments, settings):
    o, log_z = output(q, k, v, bias, q_segments, k_segments, settings)
    # The policy "minimal" keeps what has this name, as it keeps other matrix products.
    o, log_z = checkpoint_name(o, PRODUCT), checkpoint_name(log_z, PRODUCT)
    return o, (q, k, v, bias, q_segments, k_segments, o, log_z)


def _attend_bwd(settings, residuals, do):
    *given, o, log_z = residuals
    dq, delta = by_queries(*given, do, log_z, o, settings)
    dk, dv = by_keys(*given, do, log_z, delta, settings)
    bias = given[3]
    dbias = None if bias is None else by_bias(*given, do, log_z, delta, settings)
    return dq, dk, dv, dbias, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


# --- the kernels' calls ---------------------------------------------------------------------------


def output(q, k, v, bias, q_segments, k_segments, settings):
    """-> o (B, T, H, D), and the logarithm of each softmax's normaliser (B, H, T) float32."""
    operands = (q, k, v, bias, q_segments, k_segments)
    return _call(_output_kernel, "hbi", operands, "", "q row", settings, settings.tiles.output)


def by_queries(q, k, v, bias, q_segments, k_segments, do, log_z, o, settings):
    """-> dq (B, T, H, D), and the sums over D of do * o, (B, H, T) float32, for the others."""
    operands = (q, k, v, bias, q_segments, k_segments, do, log_z, o)
    tile = settings.tiles.by_queries
    return _call(_dq_kernel, "hbi", operands, "q row q", "q row", settings, tile)


def by_keys(q, k, v, bias, q_segments, k_segments, do, log_z, delta, settings):
    """-> dk, dv (B, S, H, D)."""
    operands = (q, k, v, bias, q_segments, k_segments, do, log_z, delta)
    tile = settings.tiles.by_keys
    return _call(_dkv_kernel, "hbj", operands, "q row row", "k k", settings, tile)


def by_bias(q, k, v, bias, q_segments, k_segments, do, log_z, delta, settings):
    """-> dbias (H, C) float32, summed over the batch."""
    operands = (q, k, v, bias, q_segments, k_segments, do, log_z, delta)
    tile = settings.tiles.by_bias
    (scores,) = _call(_dbias_kernel, "hij", operands, "q row row", "scores", settings, tile)
    return sums_of_diagonals(scores)


def _call(kernel, grid, operands, more, results, settings, tile):
    """Calls a kernel once for each point of a grid over h (heads), b (rows of the batch), i (blocks
    of queries), j (blocks of keys); an axis that is not in the grid is whole in each program.

    `more` and `results` name what operands after the first six, and results, are.
    """
    q, k, v, bias, *rest = operands
    (batch, length, heads, dim), keys = q.shape, k.shape[1]
    by_key = kernel is _dkv_kernel
    if bias is not None:
        bias = diagonals_to_matrix(bias, length, keys).astype(q.dtype)
        bias = bias.swapaxes(1, 2) if by_key else bias
    tile = tile._replace(queries=_fitting(tile.queries, length), keys=_fitting(tile.keys, keys))
    counts = {"h": heads, "b": batch, "i": length // tile.queries, "j": keys // tile.keys}
    rows = tile.queries if "i" in grid else length
    cols = tile.keys if "j" in grid else keys
    one_or_all = None if "b" in grid else batch

    def block(*shape, at):  # None: an axis of which the program sees one place, and not the axis
        def index(*ids):
            place = dict(zip(grid, ids, strict=True))
            return tuple(place.get(axis, 0) for axis in at)

        return pl.BlockSpec(shape, index)

    blocks = {
        "q": block(one_or_all, rows, None, dim, at="bih-"),
        "k": block(one_or_all, cols, None, dim, at="bjh-"),
        "row": block(one_or_all, None, rows, at="bhi"),
        "q_segments": block(one_or_all, rows, at="bi"),
        "k_segments": block(one_or_all, cols, at="bj"),
        "scores": block(None, rows, cols, at="hij"),
        "bias": block(None, cols, rows, at="hji") if by_key else block(None, rows, cols, at="hij"),
    }
    arrays = {
        "q": (q.shape, q.dtype),
        "k": (k.shape, k.dtype),
        "row": ((batch, heads, length), jnp.float32),
        "scores": ((heads, length, keys), jnp.float32),
    }
    names = ("q", "k", "k", "bias", "q_segments", "k_segments", *more.split())
    blocks["bias"] = blocks["bias"] if bias is not None else None
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, settings=settings),
        grid=tuple(counts[axis] for axis in grid),
        in_specs=[blocks[name] for name in names],
        out_specs=[blocks[name] for name in results.split()],
        out_shape=[jax.ShapeDtypeStruct(*arrays[name]) for name in results.split()],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=settings.interpret,
        name=f"t5_attention{kernel.__name__}",
    )(q, k, v, bias, *rest)


# --- the kernels ----------------------------------------------------------------------------------
# Blocks: q, do, o (queries, D); k, v (keys, D); scores and weights (queries, keys) float32.


class _Block(NamedTuple):
    """A block of queries against a block of keys, in a kernel; `by_key` has keys along axis 0.

    Products then take the weights as the matrix units left them, without a transposition.
    """

    settings: _Settings
    first_query: jax.Array | int
    first_key: jax.Array | int
    by_key: bool = False

    def queries(self, x):
        """(queries,) -> along the axis of the queries."""
        return x[None, :] if self.by_key else x[:, None]

    def keys(self, x):
        return x[:, None] if self.by_key else x[None, :]

    def product(self, x_queries, x_keys):
        """(queries, D), (keys, D) -> the block of their products."""
        return _dot(x_keys, x_queries.T) if self.by_key else _dot(x_queries, x_keys.T)

    def scores(self, q, k, bias, q_segments, k_segments):
        """Scores of a block; HIDDEN, or about that, where a key is not visible."""
        scores = self.product(q, k)
        if bias is not None:
            scores += bias.astype(jnp.float32)
        packed, causal = self.settings.packed, self.settings.causal
        if not packed and not causal:  # adding is faster than choosing
            return scores + self.keys(jnp.where(k_segments == 1, 0.0, HIDDEN))
        visible = self.queries(q_segments) == self.keys(k_segments) if packed else True
        if causal:
            rows = self.queries(self.first_query + jnp.arange(q.shape[0]))
            visible &= rows >= self.keys(self.first_key + jnp.arange(k.shape[0]))
        return jnp.where(visible, scores, HIDDEN)

    def weights(self, q, k, bias, q_segments, k_segments, log_z):
        """The softmax's weights of a block, from the logarithm of its normaliser."""
        scores = self.scores(q, k, bias, q_segments, k_segments)
        return _exp(scores, self.queries(log_z), self.settings)


def _exp(x, shift, settings):
    """exp(x - shift) of float32: one multiply-add, and the hardware's exponential of base 2."""
    x, shift = jnp.broadcast_arrays(x, shift * LOG2_E)
    if settings.interpret:
        return jnp.exp2(x * LOG2_E - shift)
    (y,) = triton.elementwise_inline_asm(
        "{ .reg .f32 t; fma.rn.f32 t, $1, 0f3FB8AA3B, $2; ex2.approx.ftz.f32 $0, t; }",
        args=[x, -shift],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return y


def _dot(a, b):
    """Product summed in float32; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _key_blocks(k_ref, first_query, tile, causal):
    """How many blocks of keys a block of queries has to go through."""
    blocks = k_ref.shape[0] // tile.keys
    if not causal:
        return blocks
    return jnp.minimum(blocks, (first_query + tile.queries + tile.keys - 1) // tile.keys)


def _output_kernel(
    q_ref, k_ref, v_ref, bias_ref, q_segments_ref, k_segments_ref, o_ref, log_z_ref,
    *, tile, settings,
):  # fmt: skip
    first_query = pl.program_id(2) * tile.queries
    q, q_segments = q_ref[...], q_segments_ref[...]

    def body(j, carry):
        highest, z, o = carry
        at = pl.ds(j * tile.keys, tile.keys)
        block = _Block(settings, first_query, j * tile.keys)
        bias = None if bias_ref is None else bias_ref[:, at]
        s = block.scores(q, k_ref[at], bias, q_segments, k_segments_ref[at])
        new_highest = jnp.maximum(highest, jnp.max(s, axis=1))
        shrink = _exp(highest, new_highest, settings)
        p = _exp(s, new_highest[:, None], settings)
        v = v_ref[at]
        o = o * shrink[:, None] + _dot(p.astype(v.dtype), v)
        return new_highest, z * shrink + jnp.sum(p, axis=1), o

    lowest = jnp.full((tile.queries,), LOWEST, jnp.float32)
    start = (lowest, jnp.zeros_like(lowest), jnp.zeros(q.shape, jnp.float32))
    blocks = _key_blocks(k_ref, first_query, tile, settings.causal)
    highest, z, o = jax.lax.fori_loop(0, blocks, body, start)
    o_ref[...] = (o * jnp.where(z > 0, 1 / z, 0.0)[:, None]).astype(o_ref.dtype)
    log_z_ref[...] = jnp.where(z > 0, highest + jnp.log(z), -LOWEST)  # of no key: weights of 0


def _dq_kernel(
    q_ref, k_ref, v_ref, bias_ref, q_segments_ref, k_segments_ref, do_ref, log_z_ref, o_ref,
    dq_ref, delta_ref, *, tile, settings,
):  # fmt: skip
    first_query = pl.program_id(2) * tile.queries
    q, q_segments, do, log_z = q_ref[...], q_segments_ref[...], do_ref[...], log_z_ref[...]
    delta = jnp.sum(do.astype(jnp.float32) * o_ref[...].astype(jnp.float32), axis=1)
    delta_ref[...] = delta

    def body(j, dq):
        at = pl.ds(j * tile.keys, tile.keys)
        k, segments = k_ref[at], k_segments_ref[at]
        block = _Block(settings, first_query, j * tile.keys)
        bias = None if bias_ref is None else bias_ref[:, at]
        p = block.weights(q, k, bias, q_segments, segments, log_z)
        ds = p * (block.product(do, v_ref[at]) - delta[:, None])
        return dq + _dot(ds.astype(k.dtype), k)

    blocks = _key_blocks(k_ref, first_query, tile, settings.causal)
    dq = jax.lax.fori_loop(0, blocks, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref, k_ref, v_ref, bias_ref, q_segments_ref, k_segments_ref, do_ref, log_z_ref, delta_ref,
    dk_ref, dv_ref, *, tile, settings,
):  # fmt: skip
    first_key = pl.program_id(2) * tile.keys
    k, v, k_segments = k_ref[...], v_ref[...], k_segments_ref[...]

    def body(i, carry):
        dk, dv = carry
        at = pl.ds(i * tile.queries, tile.queries)
        q, do, segments, log_z = q_ref[at], do_ref[at], q_segments_ref[at], log_z_ref[at]
        block = _Block(settings, i * tile.queries, first_key, by_key=True)
        bias = None if bias_ref is None else bias_ref[:, at]
        p = block.weights(q, k, bias, segments, k_segments, log_z)
        ds = p * (block.product(do, v) - delta_ref[at][None, :])
        return dk + _dot(ds.astype(q.dtype), q), dv + _dot(p.astype(do.dtype), do)

    first = first_key // tile.queries if settings.causal else 0
    zero = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(first, q_ref.shape[0] // tile.queries, body, (zero, zero))
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _dbias_kernel(
    q_ref, k_ref, v_ref, bias_ref, q_segments_ref, k_segments_ref, do_ref, log_z_ref, delta_ref,
    dscores_ref, *, tile, settings,
):  # fmt: skip
    first_query, first_key = pl.program_id(1) * tile.queries, pl.program_id(2) * tile.keys

    block, bias = _Block(settings, first_query, first_key), bias_ref[...]

    def body(b, dscores):
        q_segments, k_segments = q_segments_ref[b], k_segments_ref[b]
        p = block.weights(q_ref[b], k_ref[b], bias, q_segments, k_segments, log_z_ref[b])
        return dscores + p * (block.product(do_ref[b], v_ref[b]) - delta_ref[b][:, None])

    rows = q_ref.shape[0]
    if settings.causal:  # above the diagonal no key is visible: the gradient is zero
        rows = rows * (first_query + tile.queries > first_key).astype(jnp.int32)
    zero = jnp.zeros((tile.queries, tile.keys), jnp.float32)
    dscores_ref[...] = jax.lax.fori_loop(0, rows, body, zero)
