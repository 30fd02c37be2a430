"""Greedy decoding and beam search over the Transformer's key/value cache.

Tokens are int32; the decoder starts from token 0. Shapes: B examples, K beams, S input length,
L = max_decode_len positions, V vocabulary. The cache lives in the loop's carry and is updated in
place; the encoder's keys and values are computed once per example and shared by its beams.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5scaling.model.network import DecoderCache, Transformer
from t5scaling.model.stacking import unrolled

IMPOSSIBLE = -1e7  # log-probability of a beam that does not exist; finite: sums stay ordered


@functools.partial(jax.jit, static_argnames=("model", "max_decode_len", "eos_id"))
def greedy(model: Transformer, params, encoder_input_tokens, *, max_decode_len, eos_id=1):
    """Takes the most probable token at every position.

    Args:
      params: the tree of `init_params`.
      encoder_input_tokens: (B, S) int32, 0 is padding. Not packed.
      max_decode_len: positions to decode at most, the end token included.

    Returns:
      (B, L) int32: the tokens up to and including the end token, then 0. Stops as soon as every
      row has ended; a row of padding counts as ended from the start and stays 0.
    """
    model, params = unrolled(model, params)
    variables = {"params": params}
    start = functools.partial(model.apply, method="start_decoding")
    context, cache = start(variables, encoder_input_tokens, max_decode_len)
    batch = encoder_input_tokens.shape[0]

    def running(state):
        index, _, _, ended_B, _ = state
        return (index < max_decode_len) & ~jnp.all(ended_B)

    def advance(state):
        index, token_B, tokens_BxL, ended_B, cache = state
        logits_Bx1xV, cache = model.apply(
            variables, token_B[:, None], cache, index, context, method="decode_step"
        )
        token_B = _argmax(logits_Bx1xV[:, 0])
        token_B = jnp.where(ended_B, 0, token_B)
        tokens_BxL = jax.lax.dynamic_update_slice(tokens_BxL, token_B[:, None], (0, index))
        return index + 1, token_B, tokens_BxL, ended_B | (token_B == eos_id), cache

    nothing = jnp.zeros((batch, max_decode_len), jnp.int32)
    padding_row = ~jnp.any(encoder_input_tokens > 0, axis=-1)
    state = (jnp.int32(0), nothing[:, 0], nothing, padding_row, cache)
    return jax.lax.while_loop(running, advance, state)[2]


def _argmax(x_BxV):
    """(B,) int32: the first largest of each row.

    In two levels, blocks and then inside the best block: on a CPU XLA finds a maximum with vector
    instructions but an argmax one number at a time.
    """
    batch, vocab = x_BxV.shape
    block = 128
    padded = jnp.pad(x_BxV, ((0, 0), (0, -vocab % block)), constant_values=-jnp.inf)
    blocks_BxNxW = padded.reshape(batch, -1, block)
    best_B = jnp.argmax(jnp.max(blocks_BxNxW, axis=-1), axis=-1)
    inside_B = jnp.argmax(blocks_BxNxW[jnp.arange(batch), best_B], axis=-1)
    return (best_B * block + inside_B).astype(jnp.int32)


class _Beams(NamedTuple):
    """Live beams are open hypotheses, finished ones have ended; both sorted worst to best."""

    index: jax.Array  # () int32: positions decoded
    live_log_probs: jax.Array  # (B, K) float32
    live_tokens: jax.Array  # (B, K, L) int32
    finished_scores: jax.Array  # (B, K) float32
    finished_tokens: jax.Array  # (B, K, L) int32
    finished: jax.Array  # (B, K) bool: slot holds a hypothesis
    cache: DecoderCache


def length_penalty(length, alpha):
    """((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14); length in tokens, end token included."""
    return ((5.0 + length) / 6.0) ** alpha


def _best(scores_BxN, count):
    """Indices (B, count) of the largest scores, worst of them first."""
    return jnp.flip(jax.lax.top_k(scores_BxN, count)[1], axis=1)


def _take(tree, indices_BxM):
    """Row-wise selection along axis 1 of every array (B, N, ...) -> (B, M, ...)."""
    rows = jnp.arange(indices_BxM.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows, indices_BxM], tree)


@functools.partial(
    jax.jit, static_argnames=("model", "max_decode_len", "beam_size", "alpha", "eos_id")
)
def beam_search(
    model: Transformer,
    params,
    encoder_input_tokens,
    *,
    max_decode_len,
    beam_size=4,
    alpha=0.6,
    eos_id=1,
):
    """Beam search with T5X's length normalisation, bookkeeping and output order.

    Args:
      params, encoder_input_tokens, max_decode_len: as `greedy`.
      beam_size: K, live hypotheses per example, and finished ones kept.
      alpha: exponent of `length_penalty`; 0 compares plain log-probabilities.

    Returns:
      tokens (B, K, L) int32, 0 after the end token, and scores (B, K) float32, each example's
      sorted worst to best: the answer is tokens[:, -1]. A score is log-probability (nats) over
      length penalty. If fewer than K hypotheses have ended, the first slots are empty (tokens 0,
      score about -1e7); if none has, the K live ones are given with plain log-probabilities.
      Stops once no live hypothesis of any example can displace a finished one.
    """
    model, params = unrolled(model, params)
    variables = {"params": params}
    start = functools.partial(model.apply, method="start_decoding")
    context, cache = start(variables, encoder_input_tokens, max_decode_len, beam_size)
    batch, K = encoder_input_tokens.shape[0], beam_size
    padding_row_B = ~jnp.any(encoder_input_tokens > 0, axis=-1)

    def running(beams):
        # T5X bounds a live beam's future by the penalty of L+1 tokens (it counts the start token).
        hope_B = beams.live_log_probs[:, -1] / length_penalty(max_decode_len + 1.0, alpha)
        settled_B = jnp.all(beams.finished, axis=1) & (beams.finished_scores[:, 0] > hope_B)
        return (beams.index < max_decode_len) & ~jnp.all(settled_B | padding_row_B)

    def advance(beams):
        previous = jax.lax.dynamic_index_in_dim(
            beams.live_tokens, jnp.maximum(beams.index - 1, 0), axis=2, keepdims=False
        )
        tokens_BxK = jnp.where(beams.index == 0, 0, previous)
        logits_BxKxV, cache = model.apply(
            variables, tokens_BxK, beams.cache, beams.index, context, method="decode_step"
        )
        log_probs_BxKxV = jax.nn.log_softmax(logits_BxKxV) + beams.live_log_probs[..., None]
        vocab = logits_BxKxV.shape[-1]

        # Of 2K candidates at most K end here (one per beam), so K remain to go on.
        log_probs_Bx2K, flat_Bx2K = jax.lax.top_k(log_probs_BxKxV.reshape(batch, -1), 2 * K)
        parent_Bx2K, token_Bx2K = flat_Bx2K // vocab, (flat_Bx2K % vocab).astype(jnp.int32)
        tokens_Bx2KxL = jax.lax.dynamic_update_slice(
            _take(beams.live_tokens, parent_Bx2K), token_Bx2K[..., None], (0, 0, beams.index)
        )
        ended_Bx2K = token_Bx2K == eos_id

        live_log_probs = log_probs_Bx2K + ended_Bx2K * IMPOSSIBLE
        survivors_BxK = _best(live_log_probs, K)
        live_log_probs, live_tokens, parent_BxK = _take(
            (live_log_probs, tokens_Bx2KxL, parent_Bx2K), survivors_BxK
        )

        scores_Bx2K = log_probs_Bx2K / length_penalty(beams.index + 1.0, alpha)
        pool = (
            jnp.concatenate([beams.finished_scores, scores_Bx2K + ~ended_Bx2K * IMPOSSIBLE], 1),
            jnp.concatenate([beams.finished_tokens, tokens_Bx2KxL], 1),
            jnp.concatenate([beams.finished, ended_Bx2K], 1),
        )
        finished_scores, finished_tokens, finished = _take(pool, _best(pool[0], K))
        return _Beams(
            beams.index + 1,
            live_log_probs,
            live_tokens,
            finished_scores,
            finished_tokens,
            finished,
            _take(cache, parent_BxK),
        )

    nothing = jnp.zeros((batch, K, max_decode_len), jnp.int32)
    unlikely = jnp.full((batch, K), IMPOSSIBLE)
    beams = _Beams(
        index=jnp.int32(0),
        # All beams start equal: only the first may branch, or the K candidates would be copies.
        live_log_probs=unlikely.at[:, 0].set(0.0),
        live_tokens=nothing,
        finished_scores=unlikely,
        finished_tokens=nothing,
        finished=jnp.zeros((batch, K), bool),
        cache=cache,
    )
    beams = jax.lax.while_loop(running, advance, beams)
    any_B = jnp.any(beams.finished, axis=1)
    tokens = jnp.where(any_B[:, None, None], beams.finished_tokens, beams.live_tokens)
    scores = jnp.where(any_B[:, None], beams.finished_scores, beams.live_log_probs)
    # Slots without an ended hypothesis hold the open one that came closest: not an answer.
    empty_BxK = (any_B[:, None] & ~beams.finished) | padding_row_B[:, None]
    return jnp.where(empty_BxK[..., None], 0, tokens), scores
