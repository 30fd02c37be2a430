"""Attention as fused TPU kernels (Pallas, lowered by Mosaic), with T5's bias and its gradient.

The same function as attention_gpu.py, cut for a TPU: a grid's last axis runs in order, what it adds
up stays in VMEM, and no two programs add to one place, so that results repeat bit for bit. The
forward pass keeps the logarithm of each softmax's normaliser, from which the backward pass takes
the weights again. No array has the size (B, H, T, S), nor even (H, T, S): each program spreads its
part of the bias by distance over its block, and the gradient's program sums diagonals.

Positions lie along the 128 lanes of a register, of which heads of 64 would fill half: q, k and v
are (B, H, D, T), blocks of scores are (keys, queries), and what belongs to a query is a row (1, T).

Compiled for TPU v5e and v4 and tested as array operations; not yet run or timed on a TPU.

Axes in array names: B batch, T query position, S key position, H head, D head dimension, C = T+S-1
distances: column c is that of key - query = c - (T-1).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5scaling.model.layers import PRODUCT, custom_vjp

LANES = 128  # blocks are multiples of it
OUTSIDE = -1  # segment of the keys that fill the last block: no query ever attends to them
HIDDEN = -(2.0**33)  # score of a key that is not visible
LOWEST = -(2.0**32)  # below every score of a visible key; exp(HIDDEN - LOWEST) is 0

# A block in the memory that a kernel works on: read by [...], written by [...] = values.
Ref = Any
# q, k, v (B, H, D, positions); bias (H, 1, T+S) or None; segments of queries and keys, as rows.
_Given = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


class Tile(NamedTuple):
    """Query and key positions of a block, at most; multiples of LANES."""

    queries: int = 512
    keys: int = 512


class _Settings(NamedTuple):
    packed: bool
    causal: bool
    tile: Tile
    interpret: bool


def attend(
    q_BxTxHxD: jax.Array, k_BxSxHxD: jax.Array, v_BxSxHxD: jax.Array, bias_HxC: jax.Array | None,
    query_segments_BxT: jax.Array, key_segments_BxS: jax.Array, *,
    causal: bool, packed: bool = True, interpret: bool = False, tiles: Tile | None = None,
) -> jax.Array:  # fmt: skip
    """softmax(q k + bias) v over the keys that each query sees; see `attention_gpu.attend`.

    The bias stays float32. D is 64 or 128. `tiles` cuts all kernels; None is `Tile()`.
    """
    length, keys, tiles = q_BxTxHxD.shape[1], k_BxSxHxD.shape[1], tiles or Tile()
    tile = Tile(_even(length, tiles.queries), _even(keys, tiles.keys))
    more_queries, more_keys = -length % tile.queries, -keys % tile.keys

    def by_lanes(x_BxTxHxD: jax.Array, more: int) -> jax.Array:  # -> (B, H, D, T)
        return jnp.pad(x_BxTxHxD.transpose(0, 2, 3, 1), [(0, 0)] * 3 + [(0, more)])

    def as_row(segments_BxT: jax.Array, more: int, value: int) -> jax.Array:  # -> (B, 1, T)
        padded = jnp.pad(segments_BxT, [(0, 0), (0, more)], constant_values=value)
        return padded.astype(jnp.int32)[:, None]

    q = by_lanes(q_BxTxHxD, more_queries)
    k, v = by_lanes(k_BxSxHxD, more_keys), by_lanes(v_BxSxHxD, more_keys)
    if bias_HxC is not None:  # -> (H, 1, T+S) of padded lengths: column c is of query - key = c - S
        bias_HxC = jnp.pad(bias_HxC[:, ::-1], [(0, 0), (1 + more_keys, more_queries)])[:, None]
    q_segments = as_row(query_segments_BxT, more_queries, 0)
    k_segments = as_row(key_segments_BxS, more_keys, OUTSIDE)
    settings = _Settings(packed, causal, tile, interpret)
    o = _attend((q, k, v, bias_HxC, q_segments, k_segments), settings)
    return o[..., :length].transpose(0, 3, 1, 2)


def _even(length: int, most: int) -> int:
    """The block that cuts an axis into as few parts as blocks of `most` do, with less to fill."""
    return pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), LANES) * LANES


# --- the kernels' calls ---------------------------------------------------------------------------


@custom_vjp(1)
def _attend(given: _Given, settings: _Settings) -> jax.Array:
    return _attend_fwd(given, settings)[0]


def _attend_fwd(given: _Given, settings: _Settings) -> tuple[jax.Array, Any]:
    o, log_z = _call(_output_kernel, "bhij", given, (), "", "q row", "row row q", settings)
    # The policy "minimal" keeps what has this name, as it keeps other matrix products.
    o, log_z = checkpoint_name(o, PRODUCT), checkpoint_name(log_z, PRODUCT)
    return o, (given, o, log_z)


def _attend_bwd(settings: _Settings, residuals: Any, do: jax.Array) -> tuple[Any]:
    given, o, log_z = residuals
    more, names = (do, log_z, o), "q row q"
    dq, delta = _call(_dq_kernel, "bhij", given, more, names, "q row", "q", settings)
    more, names = (do, log_z, delta), "q row row"
    dk, dv = _call(_dkv_kernel, "bhji", given, more, names, "k k", "k k", settings)
    dbias = [None]
    if given[3] is not None:
        dbias = _call(_dbias_kernel, "hijb", given, more, names, "bias", "scores", settings)
    return ((dq, dk, dv, *dbias, None, None),)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(
    kernel: Callable[..., None],
    grid: str,
    given: _Given,
    more: tuple[jax.Array, ...],
    names: str,
    results: str,
    sums: str,
    settings: _Settings,
) -> list[jax.Array]:
    """Calls a kernel for each point of a grid over h (heads), b (rows of the batch), i (blocks of
    queries), j (blocks of keys), the last axis innermost.

    `names` says what the operands `more` are, `results` and `sums` what the results are and the
    float32 sums that live in VMEM through the innermost axis, where they begin as 0.
    """
    (batch, heads, dim, length), keys, tile = given[0].shape, given[1].shape[3], settings.tile
    counts = {"h": heads, "b": batch, "i": length // tile.queries, "j": keys // tile.keys}
    kinds = {  # an array's shape; a block's, with None where it is one place; axes of its place
        "q": ((batch, heads, dim, length), (None, None, dim, tile.queries), "bh-i"),
        "k": ((batch, heads, dim, keys), (None, None, dim, tile.keys), "bh-j"),
        "row": ((batch, heads, 1, length), (None, None, 1, tile.queries), "bh-i"),
        "bias": ((heads, 1, length + keys), (None, 1, length + keys), "h--"),
        "q_segments": ((batch, 1, length), (None, 1, tile.queries), "b-i"),
        "k_segments": ((batch, 1, keys), (None, 1, tile.keys), "b-j"),
        "scores": (None, (tile.keys, tile.queries), None),  # only as a sum
    }
    dtypes = {"q": given[0].dtype, "k": given[0].dtype, "row": jnp.float32, "bias": jnp.float32}
    kept = sums.split()

    def spec(name: str) -> pl.BlockSpec:
        _, shape, axes = kinds[name]
        place = lambda ids: (0 if axis == "-" else ids[grid.index(axis)] for axis in axes)
        return pl.BlockSpec(shape, lambda *ids: tuple(place(ids)))

    def program(*refs: Ref) -> None:
        block = _Block(grid, settings, *refs[:6])

        @pl.when(block.is_first)
        def _() -> None:
            for ref in refs[-len(kept) :]:
                ref[...] = jnp.zeros_like(ref)

        kernel(block, *refs[6:])

    specs: list[pl.BlockSpec | None] = [
        spec(name) for name in f"q k k bias q_segments k_segments {names}".split()
    ]
    specs[3] = None if given[3] is None else specs[3]
    # A head's bias is one block, to which all programs of the head add in order.
    apart = 1 if results == "bias" else 3
    semantics: tuple[Literal["parallel", "arbitrary"], ...]
    semantics = ("parallel",) * apart + ("arbitrary",) * (4 - apart)
    return pl.pallas_call(
        program,
        grid=tuple(counts[axis] for axis in grid),
        in_specs=specs,
        out_specs=[spec(name) for name in results.split()],
        out_shape=[jax.ShapeDtypeStruct(kinds[name][0], dtypes[name]) for name in results.split()],
        scratch_shapes=[pltpu.VMEM([n for n in kinds[x][1] if n], jnp.float32) for x in kept],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=settings.interpret,
        name=f"t5_attention{kernel.__name__}",
    )(*given, *more)


# --- the kernels ----------------------------------------------------------------------------------
# Blocks: q, do, o (D, queries); k, v (D, keys); scores and weights (keys, queries) float32.


class _Block:
    """A block of scores in a kernel: its place, and what every kernel computes of it."""

    def __init__(
        self,
        grid: str,
        settings: _Settings,
        q: Ref,
        k: Ref,
        v: Ref,
        bias: Ref | None,
        q_segments: Ref,
        k_segments: Ref,
    ) -> None:
        self.settings, self.segments = settings, (q_segments, k_segments)
        self.q, self.k, self.v, self.bias = q, k, v, bias
        i, j = pl.program_id(grid.index("i")), pl.program_id(grid.index("j"))
        queries, keys = settings.tile
        self.distance = i * queries - j * keys  # of its first query from its first key
        self.is_seen = self.distance > -queries if settings.causal else True
        self.is_first = pl.program_id(3) == 0  # of those whose sums are one
        self.is_last = pl.program_id(3) == pl.num_programs(3) - 1
        self.is_heads_first = self.is_first & (i == 0) & (j == 0)
        first = self.distance + (pl.num_programs(grid.index("j")) - 1) * keys
        self.window = pl.ds(pl.multiple_of(first, LANES), queries + keys)  # of the bias

    def scores(self) -> jax.Array:
        """HIDDEN, or about that, where a key is not visible."""
        scores = _dot(self.k[...], self.q[...], 0, 0)
        if self.bias is not None:
            scores += _spread(self.bias[:, self.window], self.settings.tile)
        q_segments, k_segments = (ref[...] for ref in self.segments)
        packed, causal = self.settings.packed, self.settings.causal
        if not packed and not causal:
            return scores + jnp.where(k_segments == 1, 0.0, HIDDEN).T
        visible = q_segments == k_segments.T if packed else True
        if causal:
            key, query = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, a) for a in (0, 1))
            visible &= key - query <= self.distance
        return jnp.where(visible, scores, HIDDEN)

    def again(self, do: Ref, log_z: Ref, delta: Ref) -> tuple[jax.Array, jax.Array]:
        """The softmax's weights, and the gradient by the scores."""
        p = jnp.exp(self.scores() - log_z[...])
        return p, p * (_dot(self.v[...], do[...], 0, 0) - delta[...])


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over an axis of each, summed in float32; float32 operands are not rounded."""
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    )  # fmt: skip


def _spread(rows: jax.Array, tile: Tile) -> jax.Array:
    """(1, queries + keys) -> (keys, queries): element [s, t] is that of column keys + t - s."""
    while (count := len(rows)) < LANES:  # each row is the one before it, one to the right
        rows = jnp.concatenate([rows, pltpu.roll(rows, count, 1)])
    starts = range(tile.keys, 0, -LANES)
    return jnp.concatenate([rows[:, start : start + tile.queries] for start in starts])


def _gather(scores: jax.Array) -> jax.Array:
    """(keys, queries) -> (1, queries + keys): sums of diagonals, the transpose of `_spread`."""
    keys, columns = len(scores), sum(scores.shape)
    parts = (
        jnp.pad(scores[first : first + LANES], [(0, 0), (keys - first, first)])
        for first in range(0, keys, LANES)
    )
    rows = cast(jax.Array, sum(parts))  # there is one part at least
    while (half := len(rows) // 2) > 0:
        rows = rows[:half] + pltpu.roll(rows[half:], columns - half, 1)
    return rows


def _output_kernel(
    block: _Block, o_ref: Ref, log_z_ref: Ref, highest_ref: Ref, z_ref: Ref, sum_ref: Ref
) -> None:
    @pl.when(block.is_first)
    def _() -> None:
        highest_ref[...] = jnp.full_like(highest_ref, LOWEST)

    @pl.when(block.is_seen)
    def _() -> None:
        s, v, highest = block.scores(), block.v[...], highest_ref[...]
        new_highest = jnp.maximum(highest, jnp.max(s, axis=0, keepdims=True))
        shrink, p = jnp.exp(highest - new_highest), jnp.exp(s - new_highest)
        highest_ref[...] = new_highest
        z_ref[...] = z_ref[...] * shrink + jnp.sum(p, axis=0, keepdims=True)
        sum_ref[...] = sum_ref[...] * shrink + _dot(v, p.astype(v.dtype), 1, 0)

    @pl.when(block.is_last)
    def _() -> None:
        z = z_ref[...]
        o_ref[...] = (sum_ref[...] * jnp.where(z > 0, 1 / z, 0.0)).astype(o_ref.dtype)
        # Of a query that sees no key: all its weights are 0.
        log_z_ref[...] = jnp.where(z > 0, highest_ref[...] + jnp.log(z), -LOWEST)


def _dq_kernel(
    block: _Block,
    do_ref: Ref,
    log_z_ref: Ref,
    o_ref: Ref,
    dq_ref: Ref,
    delta_ref: Ref,
    sum_ref: Ref,
) -> None:
    @pl.when(block.is_first)
    def _() -> None:  # sums over D of do * o, for the other kernels too
        products = do_ref[...].astype(jnp.float32) * o_ref[...].astype(jnp.float32)
        delta_ref[...] = jnp.sum(products, axis=0, keepdims=True)

    @pl.when(block.is_seen)
    def _() -> None:
        _, ds = block.again(do_ref, log_z_ref, delta_ref)
        sum_ref[...] += _dot(block.k[...], ds.astype(do_ref.dtype), 1, 0)

    @pl.when(block.is_last)
    def _() -> None:
        dq_ref[...] = sum_ref[...].astype(dq_ref.dtype)


def _dkv_kernel(
    block: _Block,
    do_ref: Ref,
    log_z_ref: Ref,
    delta_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    dk_sum_ref: Ref,
    dv_sum_ref: Ref,
) -> None:
    @pl.when(block.is_seen)
    def _() -> None:
        p, ds = block.again(do_ref, log_z_ref, delta_ref)
        dk_sum_ref[...] += _dot(block.q[...], ds.astype(do_ref.dtype), 1, 1)
        dv_sum_ref[...] += _dot(do_ref[...], p.astype(do_ref.dtype), 1, 1)

    @pl.when(block.is_last)
    def _() -> None:
        dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)


def _dbias_kernel(
    block: _Block, do_ref: Ref, log_z_ref: Ref, delta_ref: Ref, dbias_ref: Ref, sum_ref: Ref
) -> None:
    @pl.when(block.is_heads_first)
    def _() -> None:
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    @pl.when(block.is_seen)
    def _() -> None:
        sum_ref[...] += block.again(do_ref, log_z_ref, delta_ref)[1]

    @pl.when(block.is_last)
    def _() -> None:
        dbias_ref[:, block.window] += _gather(sum_ref[...])
