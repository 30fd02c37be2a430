"""Greedy decoding, sampling and beam search over the Transformer's key/value cache.

Tokens are int32; the decoder starts from token 0. Shapes: B examples, K beams, S input length,
L = max_decode_len positions, V vocabulary, N = L*K cache slots.

The cache lives in the loop's carry and is written in place. It grows in stages, and when few rows
are left the others are dropped: the cost of a step follows from the length of the answers so far
and their number, not from `max_decode_len` and the batch. The encoder's keys and values are
computed once per example and shared by its beams. When beams change places the cache stays: a table
records which beam wrote each position of a hypothesis, and attention reads it there.

Inputs may be on one device or sharded over a mesh by rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from t5scaling import values
from t5scaling.errors import UserError
from t5scaling.model import choosing
from t5scaling.model.cache import DecoderCache, DecoderContext
from t5scaling.model.network import Transformer, exact_products
from t5scaling.model.stacking import unrolled

IMPOSSIBLE = -1e7  # log-probability of a beam that does not exist; finite: sums stay ordered
SHORTEST_STAGE = 16  # positions; see _stages
NARROWING = 4  # once no more than one row in so many is open, the others are left behind


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token at every position: see `greedy`."""

    @property
    def name(self) -> str:
        return "greedy"

    def __call__(
        self,
        model: Transformer,
        params: Any,
        encoder_input_tokens: jax.Array,
        *,
        max_decode_len: int,
        eos_id: int = 1,
        example_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """-> tokens (B, L) int32, and their log-probabilities (B,) float32 in nats."""
        del example_ids
        with exact_products(model.config):
            return greedy(
                model,
                params,
                encoder_input_tokens,
                max_decode_len=max_decode_len,
                eos_id=eos_id,
                shards=_shards(encoder_input_tokens),
            )


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """The best hypothesis of `beam_search`."""

    beam_size: Annotated[int, values.Bounds(1, 1024)] = 4
    alpha: float = 0.6

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise UserError(f"BeamSearch.beam_size is {self.beam_size}: it is 1 at least")

    @property
    def name(self) -> str:
        return f"beam{self.beam_size}_alpha{self.alpha:g}"

    def __call__(
        self,
        model: Transformer,
        params: Any,
        encoder_input_tokens: jax.Array,
        *,
        max_decode_len: int,
        eos_id: int = 1,
        example_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """-> tokens (B, L) int32, and scores (B,) float32: nats over the length penalty."""
        del example_ids
        with exact_products(model.config):
            tokens_BxKxL, scores_BxK = beam_search(
                model,
                params,
                encoder_input_tokens,
                max_decode_len=max_decode_len,
                beam_size=self.beam_size,
                alpha=self.alpha,
                eos_id=eos_id,
                shards=_shards(encoder_input_tokens),
            )
        return tokens_BxKxL[:, -1], scores_BxK[:, -1]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Tokens drawn at random: see `sample`. `top_k` 0 and `top_p` 1 leave nothing out."""

    temperature: values.PositiveNumber = 1.0
    top_k: values.NonNegative = 0
    top_p: Annotated[float, values.Bounds(0, 1, above=True)] = 1.0
    seed: values.Seed = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise UserError(
                f"Sampling.temperature is {self.temperature}: it must be positive "
                "(for the limit 0 use Greedy)"
            )
        if self.top_k < 0:
            raise UserError(f"Sampling.top_k is {self.top_k}: it is 0 (all tokens) or positive")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"Sampling.top_p is {self.top_p}: it lies in (0, 1]")

    @property
    def name(self) -> str:
        parts = ["sample"]
        if self.top_k:
            parts.append(f"top{self.top_k}")
        if self.top_p < 1.0:
            parts.append(f"p{self.top_p:g}")
        return "_".join([*parts, f"t{self.temperature:g}", f"seed{self.seed}"])

    def __call__(
        self,
        model: Transformer,
        params: Any,
        encoder_input_tokens: jax.Array,
        *,
        max_decode_len: int,
        example_ids: jax.Array,
        eos_id: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """-> tokens (B, L) int32, and their log-probabilities (B,) float32 in nats."""
        with exact_products(model.config):
            return sample(
                model,
                params,
                encoder_input_tokens,
                example_ids,
                jnp.uint32(self.seed % 2**32),
                max_decode_len=max_decode_len,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                eos_id=eos_id,
                shards=_shards(encoder_input_tokens),
            )


def _shards(x: jax.Array) -> int:
    """Into how many parts the devices' mesh divides the rows."""
    return len(x) // x.sharding.shard_shape(x.shape)[0] if isinstance(x, jax.Array) else 1


@functools.partial(jax.jit, static_argnames=("model", "max_decode_len", "eos_id", "shards"))
def greedy(
    model: Transformer,
    params: Any,
    encoder_input_tokens: jax.Array,
    *,
    max_decode_len: int,
    eos_id: int = 1,
    shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Takes the most probable token at every position.

    Args:
      params: the tree of `init_params`.
      encoder_input_tokens: (B, S) int32, 0 is padding. Not packed.
      max_decode_len: positions to decode at most, the end token included.
      shards: into how many parts a mesh divides the rows; it changes no result.

    Returns:
      tokens (B, L) int32, those up to and including the end token, then 0; and their
      log-probability (B,) float32 in nats. Stops as soon as every row has ended; a row of padding
      counts as ended from the start and stays 0.
    """

    def choose(logits_BxV: jax.Array, index: jax.Array, ids_B: jax.Array) -> jax.Array:
        del index, ids_B
        return choosing.argmax(logits_BxV)

    ids_B = jnp.zeros(len(encoder_input_tokens), jnp.int32)
    return _one_by_one(
        model, params, encoder_input_tokens, ids_B, choose, max_decode_len, eos_id, shards
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "max_decode_len",
        "temperature",
        "top_k",
        "top_p",
        "eos_id",
        "shards",
    ),
)
def sample(
    model: Transformer,
    params: Any,
    encoder_input_tokens: jax.Array,
    example_ids: jax.Array,
    seed: jax.Array,
    *,
    max_decode_len: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int = 1,
    shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Draws each token from the model's distribution, or from what is left of it.

    Logits are divided by `temperature`; then only the `top_k` most probable tokens are kept (0:
    all); of these, renormalised, the fewest most probable ones whose probabilities sum to `top_p`
    or more (Holtzman et al. 2020, arXiv 1904.09751). `top_p` without `top_k` sorts the vocabulary.

    Args:
      params, encoder_input_tokens, max_decode_len, shards: as `greedy`.
      example_ids: (B,) int32. What is drawn at a position depends on the seed, the example's id
        and the position, and neither on the other rows nor on the devices.
      seed: () uint32.

    Returns as `greedy`; log-probabilities are the model's, before temperature and truncation.
    """
    key = jax.random.key(seed, impl="threefry2x32")

    def uniform(example_id: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, example_id), index))

    def choose(logits_BxV: jax.Array, index: jax.Array, ids_B: jax.Array) -> jax.Array:
        uniform_B = jax.vmap(uniform, (0, None))(ids_B, index)
        return choosing.draw(uniform_B, logits_BxV / temperature, top_k, top_p)

    return _one_by_one(
        model, params, encoder_input_tokens, example_ids, choose, max_decode_len, eos_id, shards
    )


class _Rows(NamedTuple):
    """One hypothesis per example."""

    ids: jax.Array  # (B,) int32: numbers of the examples
    last: jax.Array  # (B,) int32: the token before
    tokens: jax.Array  # (B, L) int32
    log_probs: jax.Array  # (B,) float32
    ended: jax.Array  # (B,) bool


def _one_by_one(
    model: Transformer,
    params: Any,
    encoder_input_tokens: jax.Array,
    ids_B: jax.Array,
    choose: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    max_decode_len: int,
    eos_id: int,
    shards: int,
) -> tuple[jax.Array, jax.Array]:
    """The loop of `greedy` and `sample`; `choose(logits_BxV, index, ids_B)` gives (B,) int32."""
    model, params = unrolled(model, params)
    params = _cast_once(model, params)
    variables = {"params": params}

    def advance(
        index: jax.Array, rows: _Rows, cache: DecoderCache, context: DecoderContext
    ) -> tuple[_Rows, DecoderCache]:
        visible_N = jnp.arange(cache.slots) <= index
        stepped: Any = model.apply(
            variables,
            rows.last[:, None],
            cache,
            index,
            visible_N[None, None],
            context,
            method="decode_step",
        )
        logits_Bx1xV, cache = stepped
        logits_BxV = logits_Bx1xV[:, 0]
        token_B = choose(logits_BxV, index, rows.ids)
        logit_B = choosing.take(logits_BxV, token_B[:, None])[:, 0]
        log_prob_B = logit_B - choosing.logsumexp(logits_BxV)
        token_B = jnp.where(rows.ended, 0, token_B)
        rows = _Rows(
            rows.ids,
            token_B,
            jax.lax.dynamic_update_slice(rows.tokens, token_B[:, None], (0, index)),
            rows.log_probs + jnp.where(rows.ended, 0.0, log_prob_B),
            rows.ended | (token_B == eos_id),
        )
        return rows, cache

    context, cache = _start(model, params, encoder_input_tokens, max_decode_len)
    batch = len(encoder_input_tokens)
    nothing = jnp.zeros((batch, max_decode_len), jnp.int32)
    rows = _Rows(
        ids=ids_B,
        last=nothing[:, 0],
        tokens=nothing,
        log_probs=jnp.zeros(batch, jnp.float32),
        ended=~jnp.any(encoder_input_tokens > 0, axis=-1),
    )
    rows = _decode(lambda rows: ~rows.ended, advance, rows, cache, context, max_decode_len, shards)
    return rows.tokens, rows.log_probs


def _start(
    model: Transformer, params: Any, encoder_input_tokens: jax.Array, max_decode_len: int
) -> tuple[DecoderContext, DecoderCache]:
    started: Any = model.apply(
        {"params": params}, encoder_input_tokens, max_decode_len, method="start_decoding"
    )
    return started


def _cast_once(model: Transformer, params: Any) -> Any:
    """Kernels and embeddings in the activation dtype, which the model would give them at each step.

    The numbers are the same. A barrier for each array keeps the compiler from moving its cast back
    into the loop, and lets it leave out an array that nothing uses. What the model uses in float32,
    the norms' scales and the relative position embeddings, stays as it is.
    """
    dtype = jnp.dtype(model.config.dtype)

    def cast(path: Any, param: jax.Array) -> jax.Array:
        if path[-1].key not in ("kernel", "embedding") or param.dtype == dtype:
            return param
        return jax.lax.optimization_barrier(param.astype(dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


def _stages(max_decode_len: int) -> list[int]:
    """The lengths of the cache in turn: each is a quarter of the next, the last is all positions,
    three stages at most."""
    lengths = [max_decode_len // 16, max_decode_len // 4, max_decode_len]
    return [length for length in lengths[:2] if length >= SHORTEST_STAGE] + lengths[2:]


def _decode(
    open_rows: Callable,
    advance: Callable,
    rows: Any,
    cache: DecoderCache,
    context: DecoderContext,
    max_decode_len: int,
    shards: int,
    beams: int = 1,
) -> Any:
    """The loop: `rows, cache = advance(index, rows, cache, context)` while a row is open.

    Returns `rows` in the end. At most six loops are compiled: one for each stage, and for each of
    them one for what is left of its rows.

    Args:
      open_rows: of `rows` gives (B,) bool. Rows that are not open may be advanced or not.
      rows: tree of arrays (B, ...), the state of the search.
    """

    def loop(
        length: int,
        few: int,
        index: jax.Array,
        rows: Any,
        cache: DecoderCache,
        context: DecoderContext,
    ) -> tuple[jax.Array, Any, DecoderCache]:
        """While there is room for `length` positions and in some shard more than `few` are open."""

        def going(carry: Any) -> jax.Array:
            index, rows, _ = carry
            return (index < length) & (_most_open(open_rows(rows), shards) > few)

        def step(carry: Any) -> Any:
            index, rows, cache = carry
            rows, cache = advance(index, rows, cache, context)
            return index + 1, rows, cache

        return jax.lax.while_loop(going, step, (index, rows, cache.grown(length * beams)))

    def left_over(index: jax.Array, rows: Any, cache: DecoderCache, context: DecoderContext) -> Any:
        pick, put_back = _narrowing(open_rows(rows), shards)
        new, cache = jax.tree.map(pick, (rows, cache))
        _, new, _ = loop(max_decode_len, 0, index, new, cache, context.rows(pick))
        return jax.tree.map(put_back, rows, new)

    def run(
        lengths: list[int],
        index: jax.Array,
        rows: Any,
        cache: DecoderCache,
        context: DecoderContext,
    ) -> Any:
        few = len(open_rows(rows)) // shards // NARROWING
        index, rows, cache = loop(lengths[0], few, index, rows, cache, context)
        most = _most_open(open_rows(rows), shards)
        branches = [lambda index, rows, cache, context: rows]
        if few:
            branches.append(left_over)
        if len(lengths) > 1:
            branches.append(functools.partial(run, lengths[1:]))
        choice = (most > 0).astype(jnp.int32) + (most > few) * bool(few)
        choice = jnp.where(index < max_decode_len, choice, 0)
        return jax.lax.switch(choice, branches, index, rows, cache, context)

    return run(_stages(max_decode_len), jnp.int32(0), rows, cache, context)


def _most_open(open_B: jax.Array, shards: int) -> jax.Array:
    """How many rows are open in the shard with most of them."""
    return jnp.max(jnp.sum(open_B.reshape(shards, -1), axis=1))


def _narrowing(open_B: jax.Array, shards: int) -> tuple[Callable, Callable]:
    """Two functions: one takes one row in NARROWING of each shard, open ones first, out of an array
    (B, ...); the other puts them back, of (array, its rows)."""
    open_GxB = open_B.reshape(shards, -1)
    few = open_GxB.shape[1] // NARROWING
    chosen_GxF = jnp.argsort(~open_GxB, axis=1)[:, :few]

    def by_shard(x: jax.Array) -> jax.Array:
        return x.reshape(shards, -1, *x.shape[1:])

    def pick(x: jax.Array) -> jax.Array:
        return choosing.take(by_shard(x), chosen_GxF).reshape(-1, *x.shape[1:])

    def put_back(x: jax.Array, new: jax.Array) -> jax.Array:
        put = jax.vmap(lambda shard, places, new: shard.at[places].set(new))
        return put(by_shard(x), chosen_GxF, by_shard(new)).reshape(x.shape)

    return pick, put_back


class _Beams(NamedTuple):
    """Live beams are open hypotheses, finished ones have ended; both sorted worst to best."""

    live_log_probs: jax.Array  # (B, K) float32
    live_tokens: jax.Array  # (B, K, L) int32
    writers: jax.Array  # (B, K, L) int32: the beam that wrote this position of the hypothesis
    finished_scores: jax.Array  # (B, K) float32
    finished_tokens: jax.Array  # (B, K, L) int32
    finished: jax.Array  # (B, K) bool: slot holds a hypothesis


def length_penalty(length: jax.Array | float, alpha: float) -> jax.Array | float:
    """((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14); length in tokens, end token included."""
    return ((5.0 + length) / 6.0) ** alpha


@functools.partial(
    jax.jit, static_argnames=("model", "max_decode_len", "beam_size", "alpha", "eos_id", "shards")
)
def beam_search(
    model: Transformer,
    params: Any,
    encoder_input_tokens: jax.Array,
    *,
    max_decode_len: int,
    beam_size: int = 4,
    alpha: float = 0.6,
    eos_id: int = 1,
    shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Beam search with T5X's length normalisation, bookkeeping and output order.

    Args:
      params, encoder_input_tokens, max_decode_len, shards: as `greedy`.
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
    params = _cast_once(model, params)
    variables = {"params": params}
    K = beam_size

    def open_rows(beams: _Beams) -> jax.Array:
        # T5X bounds a live beam's future by the penalty of L+1 tokens (it counts the start token).
        hope_B = beams.live_log_probs[:, -1] / length_penalty(max_decode_len + 1.0, alpha)
        return ~(jnp.all(beams.finished, axis=1) & (beams.finished_scores[:, 0] > hope_B))

    def advance(
        index: jax.Array, beams: _Beams, cache: DecoderCache, context: DecoderContext
    ) -> tuple[_Beams, DecoderCache]:
        batch = len(beams.finished)
        previous = jax.lax.dynamic_index_in_dim(
            beams.live_tokens, jnp.maximum(index - 1, 0), axis=2, keepdims=False
        )
        tokens_BxK = jnp.where(index == 0, 0, previous)
        # Every beam writes its slot of this position, which its own hypothesis then goes through.
        here_BxKx1 = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[:, None], (batch, K, 1))
        writers_BxKxL = jax.lax.dynamic_update_slice(beams.writers, here_BxKx1, (0, 0, index))
        length = cache.slots // K
        visible_BxKxLxK = writers_BxKxL[:, :, :length, None] == jnp.arange(K)
        stepped: Any = model.apply(
            variables,
            tokens_BxK,
            cache,
            index,
            visible_BxKxLxK.reshape(batch, K, -1),
            context,
            method="decode_step",
        )
        logits_BxKxV, cache = stepped
        # Of 2K candidates at most K end here (one per beam), so K remain to go on.
        log_probs_BxKxV = (
            logits_BxKxV + (beams.live_log_probs - choosing.logsumexp(logits_BxKxV))[..., None]
        )
        vocab = logits_BxKxV.shape[-1]
        log_probs_Bx2K, flat_Bx2K = choosing.top(log_probs_BxKxV.reshape(batch, -1), 2 * K)
        parent_Bx2K, token_Bx2K = flat_Bx2K // vocab, flat_Bx2K % vocab
        tokens_Bx2KxL = jax.lax.dynamic_update_slice(
            choosing.take(beams.live_tokens, parent_Bx2K), token_Bx2K[..., None], (0, 0, index)
        )
        ended_Bx2K = token_Bx2K == eos_id

        live_log_probs = log_probs_Bx2K + ended_Bx2K * IMPOSSIBLE
        survivors_BxK = choosing.best(live_log_probs, K)
        live_log_probs, live_tokens, parent_BxK = choosing.take(
            (live_log_probs, tokens_Bx2KxL, parent_Bx2K), survivors_BxK
        )

        scores_Bx2K = log_probs_Bx2K / length_penalty(index + 1.0, alpha)
        pool = (
            jnp.concatenate([beams.finished_scores, scores_Bx2K + ~ended_Bx2K * IMPOSSIBLE], 1),
            jnp.concatenate([beams.finished_tokens, tokens_Bx2KxL], 1),
            jnp.concatenate([beams.finished, ended_Bx2K], 1),
        )
        finished_scores, finished_tokens, finished = choosing.take(pool, choosing.best(pool[0], K))
        beams = _Beams(
            live_log_probs,
            live_tokens,
            choosing.take(writers_BxKxL, parent_BxK),
            finished_scores,
            finished_tokens,
            finished,
        )
        return beams, cache

    context, cache = _start(model, params, encoder_input_tokens, max_decode_len)
    batch = len(encoder_input_tokens)
    nothing = jnp.zeros((batch, K, max_decode_len), jnp.int32)
    unlikely = jnp.full((batch, K), IMPOSSIBLE)
    # A row of padding has K finished hypotheses of no tokens, which nothing displaces.
    padding_B = ~jnp.any(encoder_input_tokens > 0, axis=-1)
    beams = _Beams(
        # All beams start equal: only the first may branch, or the K candidates would be copies.
        live_log_probs=unlikely.at[:, 0].set(jnp.where(padding_B, IMPOSSIBLE, 0.0)),
        live_tokens=nothing,
        writers=nothing - 1,
        finished_scores=jnp.where(padding_B[:, None], 0.0, unlikely),
        finished_tokens=nothing,
        finished=jnp.broadcast_to(padding_B[:, None], (batch, K)),
    )
    beams = _decode(open_rows, advance, beams, cache, context, max_decode_len, shards, K)
    any_B = jnp.any(beams.finished, axis=1)
    tokens = jnp.where(any_B[:, None, None], beams.finished_tokens, beams.live_tokens)
    scores = jnp.where(any_B[:, None], beams.finished_scores, beams.live_log_probs)
    # Slots without an ended hypothesis hold the open one that came closest: not an answer.
    empty_BxK = any_B[:, None] & ~beams.finished
    return jnp.where(empty_BxK[..., None], 0, tokens), scores
