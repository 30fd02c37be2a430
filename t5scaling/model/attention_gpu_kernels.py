"""The kernels of attention_gpu.py: what one program computes.

Blocks in a kernel: q, do, o (queries, D); k, v (keys, D); scores and weights (queries, keys)
float32, or (keys, queries) in the kernel of the keys. In what limits them, arithmetic for each
score, every operation counts.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Powers of 2: times log2(e) they are rounded as their sum with another is, see _exp.
HIDDEN = -(2.0**33)  # score of a key that is not visible
LOWEST = -(2.0**32)  # below every score of a visible key; exp(HIDDEN - LOWEST) is 0
LOG2_E = math.log2(math.e)

# A block in the memory that a kernel works on: read by [...], written by [...] = values.
Ref = Any


class Tile(NamedTuple):
    """How one kernel is cut: query and key positions of a block, and Triton's settings for it."""

    queries: int
    keys: int
    warps: int
    stages: int


class Settings(NamedTuple):
    """What the kernels have to know of the attention; see attention_gpu.attend."""

    packed: bool
    causal: bool
    interpret: bool


class _Block(NamedTuple):
    """A block of queries against a block of keys, in a kernel; `by_key` has keys along axis 0.

    Products then take the weights as the matrix units left them, without a transposition.
    """

    settings: Settings
    first_query: jax.Array | int
    first_key: jax.Array | int
    by_key: bool = False

    def queries(self, x: jax.Array) -> jax.Array:
        """(queries,) -> along the axis of the queries."""
        return x[None, :] if self.by_key else x[:, None]

    def keys(self, x: jax.Array) -> jax.Array:
        return x[:, None] if self.by_key else x[None, :]

    def product(self, x_queries: jax.Array, x_keys: jax.Array) -> jax.Array:
        """(queries, D), (keys, D) -> the block of their products."""
        return _dot(x_keys, x_queries.T) if self.by_key else _dot(x_queries, x_keys.T)

    def scores(
        self,
        q: jax.Array,
        k: jax.Array,
        bias: jax.Array | None,
        q_segments: jax.Array,
        k_segments: jax.Array,
    ) -> jax.Array:
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

    def weights(
        self,
        q: jax.Array,
        k: jax.Array,
        bias: jax.Array | None,
        q_segments: jax.Array,
        k_segments: jax.Array,
        log_z: jax.Array,
    ) -> jax.Array:
        """The softmax's weights of a block, from the logarithm of its normaliser."""
        scores = self.scores(q, k, bias, q_segments, k_segments)
        return _exp(scores, self.queries(log_z), self.settings)


def _exp(x: jax.Array, shift: jax.Array, settings: Settings) -> jax.Array:
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


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Product summed in float32; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _columns(ref: Ref | None, at: slice | pl.Slice) -> jax.Array | None:
    return None if ref is None else ref[:, at]


def _key_blocks(k_ref: Ref, first_query: jax.Array, tile: Tile, causal: bool) -> jax.Array | int:
    """How many blocks of keys a block of queries has to go through."""
    blocks = k_ref.shape[0] // tile.keys
    if not causal:
        return blocks
    return jnp.minimum(blocks, (first_query + tile.queries + tile.keys - 1) // tile.keys)


def output_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    bias_ref: Ref,
    q_seg_ref: Ref,
    k_seg_ref: Ref,
    o_ref: Ref,
    log_z_ref: Ref,
    *,
    tile: Tile,
    settings: Settings,
) -> None:
    first_query = pl.program_id(2) * tile.queries
    q, q_segments = q_ref[...], q_seg_ref[...]

    def body(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest, z, o = carry
        at = pl.ds(j * tile.keys, tile.keys)
        block = _Block(settings, first_query, j * tile.keys)
        s = block.scores(q, k_ref[at], _columns(bias_ref, at), q_segments, k_seg_ref[at])
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


def by_queries_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    bias_ref: Ref,
    q_seg_ref: Ref,
    k_seg_ref: Ref,
    do_ref: Ref,
    log_z_ref: Ref,
    o_ref: Ref,
    dq_ref: Ref,
    delta_ref: Ref,
    *,
    tile: Tile,
    settings: Settings,
) -> None:
    first_query = pl.program_id(2) * tile.queries
    q, q_segments, do, log_z = q_ref[...], q_seg_ref[...], do_ref[...], log_z_ref[...]
    delta = jnp.sum(do.astype(jnp.float32) * o_ref[...].astype(jnp.float32), axis=1)
    delta_ref[...] = delta

    def body(j: jax.Array, dq: jax.Array) -> jax.Array:
        at = pl.ds(j * tile.keys, tile.keys)
        k, segments = k_ref[at], k_seg_ref[at]
        block = _Block(settings, first_query, j * tile.keys)
        p = block.weights(q, k, _columns(bias_ref, at), q_segments, segments, log_z)
        ds = p * (block.product(do, v_ref[at]) - delta[:, None])
        return dq + _dot(ds.astype(k.dtype), k)

    blocks = _key_blocks(k_ref, first_query, tile, settings.causal)
    dq = jax.lax.fori_loop(0, blocks, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)


def by_keys_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    bias_ref: Ref,
    q_seg_ref: Ref,
    k_seg_ref: Ref,
    do_ref: Ref,
    log_z_ref: Ref,
    delta_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    *,
    tile: Tile,
    settings: Settings,
) -> None:
    first_key = pl.program_id(2) * tile.keys
    k, v, k_segments = k_ref[...], v_ref[...], k_seg_ref[...]

    def body(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dk, dv = carry
        at = pl.ds(i * tile.queries, tile.queries)
        q, do, segments, log_z = q_ref[at], do_ref[at], q_seg_ref[at], log_z_ref[at]
        block = _Block(settings, i * tile.queries, first_key, by_key=True)
        p = block.weights(q, k, _columns(bias_ref, at), segments, k_segments, log_z)
        ds = p * (block.product(do, v) - delta_ref[at][None, :])
        return dk + _dot(ds.astype(q.dtype), q), dv + _dot(p.astype(do.dtype), do)

    first = first_key // tile.queries if settings.causal else 0
    zero = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(first, q_ref.shape[0] // tile.queries, body, (zero, zero))
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def by_bias_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    bias_ref: Ref,
    q_seg_ref: Ref,
    k_seg_ref: Ref,
    do_ref: Ref,
    log_z_ref: Ref,
    delta_ref: Ref,
    dscores_ref: Ref,
    *,
    tile: Tile,
    settings: Settings,
) -> None:
    first_query, first_key = pl.program_id(1) * tile.queries, pl.program_id(2) * tile.keys
    block, bias = _Block(settings, first_query, first_key), bias_ref[...].astype(jnp.float32)

    def body(b: jax.Array, dscores: jax.Array) -> jax.Array:
        q_segments, k_segments = q_seg_ref[b], k_seg_ref[b]
        p = block.weights(q_ref[b], k_ref[b], bias, q_segments, k_segments, log_z_ref[b])
        return dscores + p * (block.product(do_ref[b], v_ref[b]) - delta_ref[b][:, None])

    rows = q_ref.shape[0]
    if settings.causal:  # above the diagonal no key is visible: the gradient is zero
        rows = rows * (first_query + tile.queries > first_key).astype(jnp.int32)
    zero = jnp.zeros((tile.queries, tile.keys), jnp.float32)
    dscores_ref[...] = jax.lax.fori_loop(0, rows, body, zero)
