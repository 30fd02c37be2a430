"""Decoding against oracles that run the whole decoder again for every token, without a cache."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.model import choosing, decoding
from t5scaling.model.decoding import (
    SHORTEST_STAGE,
    BeamSearch,
    Greedy,
    Sampling,
    beam_search,
    greedy,
    length_penalty,
)
from t5scaling.model.network import T5Config, Transformer, abstract_params, exact_products
from t5scaling.training import sharding

EOS = 1
LENGTH = 14
LONG = 4 * SHORTEST_STAGE  # the cache grows on the way
# A small vocabulary: a random model then ends many rows, at different positions.
CONFIG = T5Config(
    vocab_size=12,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=48,
)
MODEL = Transformer(CONFIG)
# Tests take these decoders, twelve rows and LENGTH where others would do as well: a program is then
# traced and compiled once for all of them. Of fewer than four rows none is left behind, which makes
# half of a program.
DECODERS = [Greedy(), BeamSearch(), Sampling(temperature=0.8, top_k=6, top_p=0.9)]
TIED = dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True)


class Uncached:
    """log P(next token | inputs, prefix) by the teacher-forced forward pass."""

    ROWS = 12  # in one call of the program

    def __init__(self, config, length=LENGTH):
        self.length = length
        apply = Transformer(config).apply
        self.apply = jax.jit(lambda *arguments: jax.nn.log_softmax(apply(*arguments)))

    def log_probs(self, inputs, prefixes, params=None):
        """(N, S) tokens, of each row a prefix (all of one length t) -> (N, V) float64."""
        params = _params(CONFIG) if params is None else params
        decoder_inputs = np.zeros((len(prefixes), self.length + 1), np.int32)
        for row, prefix in enumerate(prefixes):
            decoder_inputs[row, 1 : 1 + len(prefix)] = prefix
        found = []
        for first in range(0, len(prefixes), self.ROWS):
            rows = np.arange(first, first + self.ROWS) % len(prefixes)
            found.append(self.apply({"params": params}, inputs[rows], decoder_inputs[rows]))
        at = len(prefixes[0])
        return np.concatenate([np.asarray(x, np.float64)[:, at] for x in found])[: len(prefixes)]


def _inputs(rows=12, length=9):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 12, (rows, length)).astype(np.int32)
    for row in range(rows):
        tokens[row, length - row % 5 :] = 0
    return tokens


def _params(config, seed=5):
    """Random parameters from NumPy: cheaper than compiling `init_params`, and fixed for good.

    With this seed greedy decoding of `_inputs()` ends seven rows, after 4 to 10 tokens.
    """
    return _drawn(dataclasses.replace(config, dtype="float32"), seed)


@functools.cache
def _drawn(config, seed):
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1.0 + 0.1 * values
        return values if path[-1].key == "embedding" else values / math.sqrt(shape.shape[0])

    return jax.tree.map_with_path(draw, abstract_params(config))


@pytest.fixture(scope="module")
def oracle():
    return Uncached(CONFIG)


@pytest.fixture(scope="module")
def long_oracle():
    return Uncached(CONFIG, LONG)


def _beams(params, inputs, *, max_decode_len=LENGTH, beam_size=4, alpha=0.6):
    """All hypotheses, by the program of BeamSearch: tokens (B, K, L), scores (B, K)."""
    with exact_products(CONFIG):
        found = beam_search(
            MODEL, params, inputs, max_decode_len=max_decode_len, beam_size=beam_size, alpha=alpha,
            eos_id=EOS, shards=1,
        )  # fmt: skip
    return tuple(map(np.asarray, found))


def _greedy_by_hand(oracle, inputs):
    """Of each example the tokens and their log-probability."""
    prefixes, scores = [[] for _ in inputs], [0.0] * len(inputs)
    for _ in range(oracle.length):
        # Rows that have ended go along to the end: what follows is cut off.
        log_probs = oracle.log_probs(inputs, prefixes)
        for row, prefix in enumerate(prefixes):
            token = int(np.argmax(log_probs[row]))
            scores[row] += log_probs[row, token] * (EOS not in prefix)
            prefix.append(token)
    answers = [p[: p.index(EOS) + 1] if EOS in p else p for p in prefixes]
    return list(zip(answers, scores, strict=True))


def _padded(tokens, length):
    return tokens + [0] * (length - len(tokens))


def test_greedy_is_the_uncached_argmax_step_by_step(oracle):
    inputs = _inputs()
    outputs, scores = Greedy()(MODEL, _params(CONFIG), inputs, max_decode_len=LENGTH)
    assert outputs.dtype == np.int32 and scores.dtype == np.float32
    ended = 0
    by_hand = _greedy_by_hand(oracle, inputs)
    for (tokens, expected), output, score in zip(by_hand, np.asarray(outputs), scores, strict=True):
        ended += tokens[-1] == EOS
        np.testing.assert_array_equal(output, _padded(tokens, LENGTH))
        assert score == pytest.approx(expected, rel=1e-4)
    assert 0 < ended < len(inputs)


def test_greedy_goes_on_while_the_cache_grows_and_rows_are_left_behind(long_oracle):
    inputs, params = _inputs(), _params(CONFIG)
    outputs, scores = map(np.asarray, Greedy()(MODEL, params, inputs, max_decode_len=LONG))
    open_late = (outputs[:, SHORTEST_STAGE] > 0).sum()
    for row, (tokens, expected) in enumerate(_greedy_by_hand(long_oracle, inputs)):
        np.testing.assert_array_equal(outputs[row], _padded(tokens, LONG))
        assert scores[row] == pytest.approx(expected, rel=1e-4)
    assert open_late > len(inputs) // 4
    # No more than a quarter of the rows is open from early on: these go on alone.
    lengths = (outputs > 0).sum(axis=1)
    chosen = [*np.resize(np.argsort(lengths)[:6], 10), *np.argsort(lengths)[-2:]]
    assert (lengths[chosen] > SHORTEST_STAGE).sum() == 2
    again, again_scores = Greedy()(MODEL, params, inputs[chosen], max_decode_len=LONG)
    np.testing.assert_array_equal(again, outputs[chosen])
    np.testing.assert_allclose(again_scores, scores[chosen], rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["1.1", "1.0"])
def test_cached_logits_equal_teacher_forced_logits(config):
    model, variables = Transformer(config), {"params": _params(config)}
    inputs = _inputs(rows=4)
    targets = np.random.default_rng(1).integers(2, 12, (4, LENGTH)).astype(np.int32)
    decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    expected = jax.jit(model.apply)(variables, inputs, decoder_inputs)
    start = functools.partial(model.apply, method="start_decoding")
    context, cache = jax.jit(start, static_argnums=2)(variables, inputs, LENGTH)
    cache = cache.grown(LENGTH)
    step = jax.jit(functools.partial(model.apply, method="decode_step"))
    for index in range(LENGTH):
        visible = (np.arange(LENGTH) <= index)[None, None]
        tokens = decoder_inputs[:, index, None]
        logits, cache = step(variables, tokens, cache, index, visible, context)
        np.testing.assert_allclose(logits[:, 0], expected[:, index], rtol=0, atol=1e-5)


class CountingTransformer(Transformer):
    """Counts the decoder steps that really run."""

    def decode_step(self, tokens_BxK, cache, index, visible_BxKxN, context):
        jax.debug.callback(lambda i: STEPS.append(int(i)), index)
        return super().decode_step(tokens_BxK, cache, index, visible_BxKxN, context)


STEPS = []
# Their options, and how many rows they are given here.
SEARCHES = {Greedy(): 3, BeamSearch(beam_size=2): 2}
each_search = pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)


def _steps(search, inputs, **options):
    STEPS.clear()
    options = dict(max_decode_len=LENGTH) | options
    outputs = search(CountingTransformer(CONFIG), _params(CONFIG), inputs, **options)
    jax.block_until_ready(outputs)
    jax.effects_barrier()
    return outputs, sorted(STEPS)


def test_greedy_stops_when_every_row_has_ended():
    inputs = _inputs()
    outputs, _ = Greedy()(MODEL, _params(CONFIG), inputs, max_decode_len=LENGTH)
    outputs = np.asarray(outputs)
    lengths = np.where((outputs == EOS).any(1), (outputs == EOS).argmax(1) + 1, LENGTH + 1)
    chosen = np.argsort(lengths)[: SEARCHES[Greedy()]]
    longest = int(lengths[chosen].max())
    assert longest < LENGTH - 2
    (ended, _), steps = _steps(Greedy(), inputs[chosen])
    assert steps == list(range(longest))
    np.testing.assert_array_equal(ended, outputs[chosen])


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_rows_of_padding_stay_empty_and_change_nothing(decoder):
    params, inputs = _params(CONFIG), _inputs()
    options = dict(max_decode_len=LENGTH, example_ids=np.arange(12, dtype=np.int32))
    full, scores = map(np.asarray, decoder(MODEL, params, inputs, **options))
    inputs[-3:] = 0
    padded, padded_scores = decoder(MODEL, params, inputs, **options)
    np.testing.assert_array_equal(padded, np.pad(full[:-3], ((0, 3), (0, 0))))
    np.testing.assert_allclose(padded_scores, np.pad(scores[:-3], (0, 3)), rtol=1e-5)


@each_search
def test_a_batch_of_padding_takes_no_step(search):
    (tokens, _), steps = _steps(search, np.zeros((SEARCHES[search], 9), np.int32))
    assert steps == [] and not np.any(tokens)


@each_search
def test_without_an_end_token_every_position_is_decoded(search):
    """As benchmarks decode, to do the same work for any parameters."""
    (_, scores), steps = _steps(search, _inputs(SEARCHES[search]), eos_id=-1)
    assert steps == list(range(LENGTH)) and np.all(np.isfinite(scores))


def _beams_by_hand(oracle, inputs, beam_size, alpha):
    """Of each example, in Python lists: (score, tokens) worst to best, and the steps taken."""
    searches = [_search_by_hand(oracle.length, beam_size, alpha) for _ in inputs]
    wanted = [next(search) for search in searches]  # prefixes whose next tokens are asked for
    results = [None] * len(inputs)
    while open_rows := [row for row, result in enumerate(results) if result is None]:
        rows = np.repeat(open_rows, [len(wanted[row]) for row in open_rows])
        log_probs = oracle.log_probs(
            inputs[rows], [prefix for row in open_rows for prefix in wanted[row]]
        )
        for row in open_rows:
            try:
                wanted[row] = searches[row].send(log_probs[rows == row])
            except StopIteration as stopped:
                results[row] = stopped.value
    return results


def _search_by_hand(length, beam_size, alpha):
    """Of one example: yields prefixes and is sent log P of their next tokens."""
    live, finished = [(0.0, [])], []
    for step in range(length):
        hope = max(score for score, _ in live) / ((5 + length + 1) / 6) ** alpha
        if len(finished) == beam_size and finished[-1][0] > hope:
            return finished[::-1], step
        rows = yield [tokens for _, tokens in live]
        candidates = [
            (score + log_prob, [*tokens, token])
            for (score, tokens), row in zip(live, rows, strict=True)
            for token, log_prob in enumerate(row)
        ]
        best = sorted(candidates, key=lambda c: -c[0])[: 2 * beam_size]
        ended = [(s / ((5 + step + 1) / 6) ** alpha, t) for s, t in best if t[-1] == EOS]
        live = [c for c in best if c[1][-1] != EOS][:beam_size]
        finished = sorted(finished + ended, key=lambda c: -c[0])[:beam_size]
    return (finished or live)[::-1], length


def _assert_as_by_hand(by_hand, tokens, scores):
    """Returns how many rows' answers have ended."""
    finished_rows, (_, beam_size, length) = 0, tokens.shape
    for row, (hypotheses, _) in enumerate(by_hand):
        finished_rows += hypotheses[-1][1][-1] == EOS
        empty = beam_size - len(hypotheses)
        assert np.all(tokens[row, :empty] == 0) and np.all(scores[row, :empty] < -1e6)
        assert np.all(np.diff(scores[row]) >= 0)
        for slot, (score, expected) in enumerate(hypotheses, start=empty):
            np.testing.assert_array_equal(tokens[row, slot], _padded(expected, length))
            assert scores[row, slot] == pytest.approx(score, rel=1e-4)
    return finished_rows


@pytest.mark.parametrize(("beam_size", "alpha", "rows"), [(4, 0.6, 12), (3, 0.0, 3), (1, 1.0, 3)])
def test_beam_search_against_python_lists(oracle, beam_size, alpha, rows):
    inputs = _inputs()[-rows:]
    tokens, scores = _beams(_params(CONFIG), inputs, beam_size=beam_size, alpha=alpha)
    by_hand = _beams_by_hand(oracle, inputs, beam_size, alpha)
    assert _assert_as_by_hand(by_hand, tokens, scores) > 0


def test_beam_search_goes_on_while_the_cache_grows_and_rows_are_left_behind(long_oracle):
    inputs = _inputs()
    by_hand = _beams_by_hand(long_oracle, inputs, 2, 0.6)
    needed = np.array([steps for _, steps in by_hand])
    late, early = np.flatnonzero(needed > SHORTEST_STAGE), np.argmin(needed)
    assert len(late) >= 2 and needed[early] < SHORTEST_STAGE
    chosen = [*[early] * 6, *late[:2]]  # the last two are soon alone
    tokens, scores = _beams(_params(CONFIG), inputs[chosen], max_decode_len=LONG, beam_size=2)
    _assert_as_by_hand([by_hand[row] for row in chosen], tokens, scores)


def test_a_beam_as_wide_as_all_hypotheses_finds_the_best_one(oracle):
    inputs, vocabulary = _inputs(rows=3), range(CONFIG.vocab_size)
    tokens, scores = _beams(_params(CONFIG), inputs, max_decode_len=2, beam_size=CONFIG.vocab_size)
    firsts = oracle.log_probs(inputs, [[]] * 3)
    for row, first in enumerate(firsts):
        second = oracle.log_probs(
            inputs[[row] * len(vocabulary)], [[token] for token in vocabulary]
        )
        ended = {(EOS, 0): first[EOS]}
        for token in set(vocabulary) - {EOS}:
            ended[(token, EOS)] = (first[token] + second[token, EOS]) / (7 / 6) ** 0.6
        best = max(ended, key=ended.get)
        np.testing.assert_array_equal(tokens[row, -1], best)
        assert scores[row, -1] == pytest.approx(ended[best], rel=1e-4)


def test_beam_search_stops_when_nothing_can_improve(oracle):
    inputs, search = _inputs(), BeamSearch(beam_size=2)
    needed = np.array([steps for _, steps in _beams_by_hand(oracle, inputs, 2, 0.6)])
    chosen = np.argsort(needed)[: SEARCHES[search]]
    _, steps = _steps(search, inputs[chosen])
    longest = int(needed[chosen].max())
    assert steps == list(range(longest)) and longest < LENGTH


def test_bfloat16_decodes():
    params, options = _params(CONFIG), dict(max_decode_len=LENGTH)
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    outputs, scores = Greedy()(model, params, _inputs(), **options)
    exact, _ = Greedy()(MODEL, params, _inputs(), **options)
    assert outputs.dtype == np.int32 and scores.dtype == np.float32
    # The first token follows one forward pass: rounding rarely changes the winner.
    assert np.mean(outputs[:, 0] == exact[:, 0]) >= 0.75


def test_bfloat16_gives_the_same_answers_where_the_choice_is_clear(oracle):
    """Parameters that multiply the logits leave no two tokens close to each other."""
    params = _params(CONFIG)
    decoder = dict(params["decoder"])
    decoder["logits_dense"] = {"kernel": 8.0 * decoder["logits_dense"]["kernel"]}
    params = dict(params, decoder=decoder)
    inputs = _inputs()
    exact, _ = Greedy()(MODEL, params, inputs, max_decode_len=LENGTH)
    exact = np.asarray(exact)
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    rounded, _ = map(np.asarray, Greedy()(model, params, inputs, max_decode_len=LENGTH))
    clear, followed = 0, np.ones(len(inputs), bool)  # rows whose answers may not differ yet
    for index in range(LENGTH):
        log_probs = np.sort(oracle.log_probs(inputs, exact[:, :index].tolist(), params), axis=1)
        followed &= (exact[:, index] > 0) & (log_probs[:, -1] - log_probs[:, -2] >= 1.0)
        np.testing.assert_array_equal(rounded[followed, index], exact[followed, index])
        clear += followed.sum()
    assert clear >= 2 * len(inputs)
    best, scores = BeamSearch()(model, params, inputs, max_decode_len=LENGTH)
    assert best.shape == (len(inputs), LENGTH) and np.all(np.isfinite(scores))


class UncastTransformer(Transformer):
    """Another class, so that what is compiled for it is not what is compiled for Transformer."""


def _as_each_step_would_cast(model, params):
    """In place of `decoding._cast_once`: the parameters as they are."""
    return params


@pytest.mark.parametrize(
    ("decoder", "config", "rows"),
    [(Greedy(), CONFIG, 12), (Greedy(), TIED, 3), (BeamSearch(), CONFIG, 12)],
    ids=["greedy", "greedy-tied", "beam"],
)
def test_parameters_cast_once_give_the_same_numbers(decoder, config, rows, monkeypatch):
    config = dataclasses.replace(config, dtype="bfloat16")
    params, inputs = _params(config), _inputs(rows)
    options = dict(max_decode_len=LENGTH)
    tokens, scores = decoder(Transformer(config), params, inputs, **options)
    monkeypatch.setattr(decoding, "_cast_once", _as_each_step_would_cast)
    uncast_tokens, uncast_scores = decoder(UncastTransformer(config), params, inputs, **options)
    np.testing.assert_array_equal(tokens, uncast_tokens)
    np.testing.assert_array_equal(scores, uncast_scores)


def test_in_float32_nothing_is_cast():
    params = _params(CONFIG)
    same = jax.tree.map(
        lambda a, b: a is b, params, decoding._cast_once(Transformer(CONFIG), params)
    )
    assert jax.tree.all(same)


def test_scales_and_relative_positions_stay_float32():
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    cast = jax.eval_shape(lambda params: decoding._cast_once(model, params), _params(CONFIG))
    names = {}
    for path, param in jax.tree_util.tree_leaves_with_path(cast):
        names.setdefault(path[-1].key, set()).add(param.dtype.name)
    assert names == {
        "kernel": {"bfloat16"},
        "embedding": {"bfloat16"},
        "scale": {"float32"},
        "rel_embedding": {"float32"},
    }


def _casts_of_matrices_in_loops(jaxpr, inside=False):
    """How often a step casts a whole float32 matrix, which only parameters are."""
    count = 0
    for equation in jaxpr.eqns:
        loop = inside or equation.primitive.name == "while"
        for inner in jax.core.jaxprs_in_params(equation.params):
            count += _casts_of_matrices_in_loops(inner, loop)
        if inside and equation.primitive.name == "convert_element_type":
            [operand], [result] = equation.invars, equation.outvars
            shapes = len(operand.aval.shape) == 2
            count += shapes and (operand.aval.dtype, result.aval.dtype) == (
                jnp.float32,
                jnp.bfloat16,
            )
    return count


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_no_step_casts_a_parameter(search, monkeypatch):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")

    def casts(model):
        traced = search.trace(model, _params(CONFIG), _inputs(3), max_decode_len=LENGTH)
        return _casts_of_matrices_in_loops(traced.jaxpr.jaxpr)

    assert casts(Transformer(config)) == 0
    monkeypatch.setattr(decoding, "_cast_once", _as_each_step_would_cast)
    assert casts(UncastTransformer(config)) > 0


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_rows_over_two_devices_give_the_answers_of_one(decoder):
    params, inputs = _params(CONFIG), _inputs()
    ids = np.arange(100, 112, dtype=np.int32)
    options = dict(max_decode_len=LONG if decoder == Greedy() else LENGTH)
    one, one_scores = decoder(MODEL, params, inputs, example_ids=ids, **options)
    layout = sharding.make_layout({"data": 2}, devices=jax.devices()[:2])
    batch = sharding.put_batch({"inputs": inputs, "ids": ids}, layout)
    params = jax.device_put(params, jax.NamedSharding(layout.mesh, jax.P()))
    two, two_scores = decoder(MODEL, params, batch["inputs"], example_ids=batch["ids"], **options)
    assert len(batch["inputs"].sharding.device_set) == 2
    np.testing.assert_array_equal(two, one)
    np.testing.assert_allclose(two_scores, one_scores, rtol=1e-5)


def test_one_position_is_enough(oracle):
    inputs, params = _inputs(rows=3), _params(CONFIG)
    log_probs = oracle.log_probs(inputs, [[]] * 3)
    tokens, scores = Greedy()(MODEL, params, inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens[:, 0], log_probs.argmax(axis=1))
    np.testing.assert_allclose(scores, log_probs.max(axis=1), rtol=1e-4)
    # With as many beams as tokens every first token is a candidate, of which the end alone ends.
    tokens, scores = BeamSearch(beam_size=6)(MODEL, params, inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens[:, 0], EOS)
    np.testing.assert_allclose(scores, log_probs[:, EOS], rtol=1e-4)


def _truncated(logits, top_k, top_p):
    """Probabilities (V,) of what `sample` leaves of a distribution."""
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    order = np.argsort(-expected)
    if top_k:
        expected[order[top_k:]] = 0.0
        expected /= expected.sum()
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= top_p]] = 0.0
    return expected / expected.sum()


def test_sampling_follows_the_truncated_distribution(oracle):
    """First tokens drawn for one sentence under many numbers."""
    draws, decoder = 4000, Sampling(temperature=1.5, top_k=5, top_p=0.7)
    rows = np.broadcast_to(_inputs()[1], (draws, 9))
    logits = oracle.log_probs(rows[:1], [[]])[0] / decoder.temperature
    expected = _truncated(logits, decoder.top_k, decoder.top_p)
    ids = np.arange(draws, dtype=np.int32)
    tokens, _ = decoder(MODEL, _params(CONFIG), rows, max_decode_len=1, example_ids=ids)
    frequencies = np.bincount(np.asarray(tokens)[:, 0], minlength=CONFIG.vocab_size) / draws
    assert not frequencies[expected == 0.0].any()
    # Five standard deviations of a frequency.
    assert np.all(
        np.abs(frequencies - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9
    )


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.7), (200, 0.9), (1, 1.0), (0, 1e-6)]
)
def test_draws_divide_the_unit_interval_as_the_truncated_distribution_does(top_k, top_p):
    """For a vocabulary of three blocks; and where one token is left, it is the most probable."""
    vocabulary, draws = 300, 2000
    logits = np.random.default_rng(0).normal(size=vocabulary).astype(np.float32)
    expected = _truncated(logits.astype(np.float64), top_k, top_p)
    uniform = ((np.arange(draws) + 0.5) / draws).astype(np.float32)
    rows = jnp.broadcast_to(logits, (draws, vocabulary))
    tokens = jax.jit(choosing.draw, static_argnums=(2, 3))(uniform, rows, top_k, top_p)
    counts = np.bincount(tokens, minlength=vocabulary)
    assert counts.shape == (vocabulary,) and not counts[expected == 0.0].any()
    # An interval on which so many points lie evenly holds one more or less; and rounding.
    assert np.abs(counts - draws * expected).max() <= 1.0 + 1e-6 * draws


def test_sampling_depends_on_seed_example_and_position_only():
    params, inputs, decoder = _params(CONFIG), _inputs(), DECODERS[2]
    ids = np.arange(50, 62, dtype=np.int32)

    def run(rows, seed=7, wider=0):
        tokens, scores = dataclasses.replace(decoder, seed=seed)(
            MODEL,
            params,
            np.pad(inputs[rows], ((0, 0), (0, wider))),
            max_decode_len=LENGTH,
            example_ids=ids[rows],
        )
        return np.asarray(tokens), np.asarray(scores)

    everything = np.arange(12)
    tokens, scores = run(everything)
    np.testing.assert_array_equal(run(everything)[0], tokens)
    others = np.array([9, 2, 5])
    some, some_scores = run(others, wider=7)
    np.testing.assert_array_equal(some, tokens[others])
    np.testing.assert_allclose(some_scores, scores[others], rtol=1e-4)
    assert (run(everything, seed=8)[0] != tokens).any(axis=1).mean() > 0.9
    # The same sentence under other numbers is drawn anew, and so is every position.
    rows = np.broadcast_to(inputs[1], (12, inputs.shape[1]))
    drawn, _ = decoder(MODEL, params, rows, max_decode_len=LENGTH, example_ids=ids)
    assert len({tuple(row) for row in np.asarray(drawn).tolist()}) > 6


def test_sampling_scores_are_the_models_log_probabilities(oracle):
    inputs, ids = _inputs(), np.arange(12, dtype=np.int32)
    options = dict(max_decode_len=LENGTH, example_ids=ids)
    tokens, scores = map(np.asarray, DECODERS[2](MODEL, _params(CONFIG), inputs, **options))
    expected = np.zeros(12)
    ended = np.zeros(12, bool)
    for index in range(LENGTH):
        log_probs = oracle.log_probs(inputs, tokens[:, :index].tolist())
        expected += log_probs[ids, tokens[:, index]] * ~ended
        ended |= tokens[:, index] == EOS
    assert 0 < ended.sum() < 12
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_a_vocabulary_of_several_blocks_is_searched_like_a_small_one():
    """Choices are made block by block; here against NumPy, with ties and a last block not full."""
    x = np.random.default_rng(0).normal(size=(6, 1500)).astype(np.float32)
    x[1] = 0.0  # of equal values the first comes first
    x[2, [1499, 3, 700]] = 9.0
    x[3, 1408:] += 9.0  # the last block
    x[4, :128] += 9.0
    best = np.argsort(-x, axis=1, kind="stable")
    np.testing.assert_array_equal(choosing.argmax(x), best[:, 0])
    for count in (1, 8, 200):
        values, places = choosing.top(jnp.asarray(x), count)
        np.testing.assert_array_equal(places, best[:, :count])
        np.testing.assert_array_equal(values, np.take_along_axis(x, best[:, :count], axis=1))
    sums = np.logaddexp.reduce(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(choosing.logsumexp(x), sums, rtol=1e-5)


def test_length_penalty():
    assert float(length_penalty(1.0, 0.6)) == 1.0
    assert math.isclose(float(length_penalty(jnp.float32(7.0), 1.0)), 2.0, rel_tol=1e-6)
