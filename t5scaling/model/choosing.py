"""Choosing among the logits of a vocabulary: the largest, the largest few, one at random.

On a CPU XLA finds a maximum with vector instructions, but an argmax, the largest few or a running
sum one number at a time: so these look at blocks of the vocabulary first.

Axes in array names: B examples, V vocabulary, N and M any number of candidates, W a block.
"""

from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 128  # of the vocabulary


def best(scores_BxN: jax.Array, count: int) -> jax.Array:
    """Indices (B, count) of the largest scores, worst of them first."""
    return jnp.flip(jax.lax.top_k(scores_BxN, count)[1], axis=1)


def take(tree: Any, indices_BxM: jax.Array) -> Any:
    """Row-wise selection along axis 1 of every array (B, N, ...) -> (B, M, ...)."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, indices: row[indices])(x, indices_BxM), tree)


def _blocks(x: jax.Array, fill: float) -> jax.Array:
    """(..., V) -> (..., V / BLOCK rounded up, BLOCK), filled up with `fill`."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)]
    return jnp.pad(x, padding, constant_values=fill).reshape(*x.shape[:-1], -1, BLOCK)


def argmax(x_BxV: jax.Array) -> jax.Array:
    """(B,) int32: the first largest of each row."""
    blocks_BxMxW = _blocks(x_BxV, -jnp.inf)
    best_B = jnp.argmax(jnp.max(blocks_BxMxW, axis=-1), axis=-1)
    inside_B = jnp.argmax(take(blocks_BxMxW, best_B[:, None])[:, 0], axis=-1)
    return (best_B * BLOCK + inside_B).astype(jnp.int32)


def top(x_BxN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Values (B, count) and int32 indices of the largest, best first, as `jax.lax.top_k`.

    They lie in the `count` blocks with the largest maxima.
    """
    blocks_BxMxW = _blocks(x_BxN, -jnp.inf)
    if blocks_BxMxW.shape[1] <= count:
        return jax.lax.top_k(x_BxN, count)
    chosen_BxC = jax.lax.top_k(jnp.max(blocks_BxMxW, axis=-1), count)[1]
    chosen_BxC = jnp.sort(chosen_BxC, axis=-1)  # of equal values the first come first
    rest = take(blocks_BxMxW, chosen_BxC).reshape(len(x_BxN), -1)
    values, inside = jax.lax.top_k(rest, count)
    return values, take(chosen_BxC, inside // BLOCK) * BLOCK + inside % BLOCK


def logsumexp(x: jax.Array) -> jax.Array:
    """(..., V) -> (...)."""
    blocks = _blocks(x, -jnp.inf)
    largest = jnp.max(blocks, axis=(-2, -1))
    sums = jnp.sum(jnp.exp(blocks - largest[..., None, None]), axis=-2)
    return largest + jnp.log(jnp.sum(sums, axis=-1))


def draw(uniform_B: jax.Array, logits_BxV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """(B,) int32: tokens by the inverse of the cumulative distribution at `uniform_B` in [0, 1)."""
    vocab = logits_BxV.shape[-1]
    tokens_BxN = None  # those that `logits` belong to, most probable first, once they are sorted
    if 0 < top_k < vocab:
        logits_BxV, tokens_BxN = top(logits_BxV, top_k)
    elif top_p < 1.0:
        logits_BxV, tokens_BxN = jax.lax.top_k(logits_BxV, vocab)
    probs_BxN = jnp.exp(logits_BxV - logsumexp(logits_BxV)[:, None])
    if top_p < 1.0:
        before_BxN = jnp.cumsum(probs_BxN, axis=-1) - probs_BxN
        # The first is kept whatever rounding does to the sums.
        kept_BxN = (before_BxN < top_p) | (jnp.arange(probs_BxN.shape[-1]) == 0)
        probs_BxN = jnp.where(kept_BxN, probs_BxN, 0.0)
    blocks_BxMxW = _blocks(probs_BxN, 0.0)
    sums_BxM = jnp.sum(blocks_BxMxW, axis=-1)
    target_B = uniform_B * jnp.sum(sums_BxM, axis=-1)
    block_B, target_B = _first_above(sums_BxM, target_B)
    inside_B, _ = _first_above(take(blocks_BxMxW, block_B[:, None])[:, 0], target_B)
    place_B = block_B * BLOCK + inside_B
    return place_B if tokens_BxN is None else take(tokens_BxN, place_B[:, None])[:, 0]


def _first_above(weights_BxN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the running sum of the weights first exceeds the target, (B,) int32, and the target's
    distance from the sum before. Always a place of positive weight, whatever rounding does."""
    sums_BxN = jnp.cumsum(weights_BxN, axis=-1)
    places_N = jnp.arange(weights_BxN.shape[-1], dtype=jnp.int32)
    last_B = jnp.max(jnp.where(weights_BxN > 0, places_N, 0), axis=-1)
    above_BxN = (sums_BxN > target_B[:, None]) & (weights_BxN > 0)
    place_B = jnp.where(jnp.any(above_BxN, axis=-1), _first_true(above_BxN), last_B)
    before_B = take(sums_BxN - weights_BxN, place_B[:, None])[:, 0]
    return place_B, target_B - before_B


def _first_true(x_BxN: jax.Array) -> jax.Array:
    return jnp.argmax(x_BxN, axis=-1).astype(jnp.int32)
