"""Decoding against oracles that run the whole decoder again for every token, without a cache."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.model import decoding
from t5scaling.model.decoding import (
    SHORTEST_STAGE,
    BeamSearch,
    Greedy,
    Sampling,
    beam_search,
    greedy,
    length_penalty,
    sample,
)
from t5scaling.model.network import T5Config, Transformer, init_params
from t5scaling.model.stacking import stack_layers
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
# The same decoders and rows where it does not matter, so that tests share compilations.
DECODERS = [Greedy(), BeamSearch(), Sampling(temperature=0.8, top_k=6, top_p=0.9)]
TIED = dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True)


class Uncached:
    """log P(next token | inputs, prefix) by the teacher-forced forward pass."""

    def __init__(self, config, params, length=LENGTH):
        self.params, self.length = params, length
        self.apply = jax.jit(Transformer(config).apply)

    def log_probs(self, inputs, prefixes):
        """(S,) tokens and N prefixes of one length t -> (N, V) float64."""
        decoder_inputs = np.zeros((len(prefixes), self.length + 1), np.int32)
        for row, prefix in enumerate(prefixes):
            decoder_inputs[row, 1 : 1 + len(prefix)] = prefix
        inputs = np.broadcast_to(inputs, (len(prefixes), len(inputs)))
        logits = self.apply({"params": self.params}, inputs, decoder_inputs)
        return np.asarray(jax.nn.log_softmax(logits[:, len(prefixes[0])]), np.float64)


def _inputs(rows=12, length=9):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 12, (rows, length)).astype(np.int32)
    for row in range(rows):
        tokens[row, length - row % 5 :] = 0
    return tokens


@pytest.fixture(scope="module")
def setting():
    params = _params(CONFIG)
    return Transformer(CONFIG), params, Uncached(CONFIG, params)


@functools.cache
def _params(config, seed=5):
    """Random parameters from NumPy: cheaper than compiling `init_params`, and fixed for good.

    With this seed greedy decoding of `_inputs()` ends seven rows, after 4 to 10 tokens.
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1.0 + 0.1 * values
        return values if path[-1].key == "embedding" else values / math.sqrt(shape.shape[0])

    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    return jax.tree.map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def long_oracle():
    return Uncached(CONFIG, _params(CONFIG), LONG)


def _greedy_by_hand(oracle, inputs):
    """(tokens, their log-probability) of one example."""
    prefix, score = [], 0.0
    while len(prefix) < oracle.length and prefix[-1:] != [EOS]:
        log_probs = oracle.log_probs(inputs, [prefix])[0]
        prefix.append(int(np.argmax(log_probs)))
        score += log_probs[prefix[-1]]
    return prefix, score


def _padded(tokens, length):
    return tokens + [0] * (length - len(tokens))


def test_greedy_is_the_uncached_argmax_step_by_step(setting):
    model, params, oracle = setting
    inputs = _inputs()
    outputs, scores = greedy(model, params, inputs, max_decode_len=LENGTH)
    assert outputs.dtype == np.int32 and scores.dtype == np.float32
    ended = 0
    for row, output, score in zip(inputs, np.asarray(outputs), scores, strict=True):
        tokens, expected = _greedy_by_hand(oracle, row)
        ended += tokens[-1] == EOS
        np.testing.assert_array_equal(output, _padded(tokens, LENGTH))
        assert score == pytest.approx(expected, rel=1e-4)
    assert 0 < ended < len(inputs)


def test_greedy_goes_on_while_the_cache_grows_and_rows_are_left_behind(setting, long_oracle):
    model, params, _ = setting
    inputs = _inputs()
    outputs, scores = greedy(model, params, inputs, max_decode_len=LONG)
    outputs = np.asarray(outputs)
    open_late = (outputs[:, SHORTEST_STAGE] > 0).sum()
    for row in range(len(inputs)):
        tokens, expected = _greedy_by_hand(long_oracle, inputs[row])
        np.testing.assert_array_equal(outputs[row], _padded(tokens, LONG))
        assert scores[row] == pytest.approx(expected, rel=1e-4)
    assert open_late > len(inputs) // 4
    # No more than a quarter of the rows is open from early on: these go on alone.
    lengths = (outputs > 0).sum(axis=1)
    chosen = [*np.argsort(lengths)[:6], *np.argsort(lengths)[-2:]]
    assert (lengths[chosen] > SHORTEST_STAGE).sum() == 2
    again, again_scores = greedy(model, params, inputs[chosen], max_decode_len=LONG)
    np.testing.assert_array_equal(again, outputs[chosen])
    np.testing.assert_allclose(again_scores, np.asarray(scores)[chosen], rtol=1e-5)


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


def _steps(decode, params, inputs, **options):
    STEPS.clear()
    outputs = jax.block_until_ready(decode(CountingTransformer(CONFIG), params, inputs, **options))
    jax.effects_barrier()
    return outputs, sorted(STEPS)


def test_greedy_stops_when_every_row_has_ended():
    params = _params(CONFIG)
    inputs = _inputs()
    outputs = np.asarray(greedy(Transformer(CONFIG), params, inputs, max_decode_len=LENGTH)[0])
    lengths = np.where((outputs == EOS).any(1), (outputs == EOS).argmax(1) + 1, LENGTH + 1)
    chosen = np.argsort(lengths)[:3]
    longest = int(lengths[chosen].max())
    assert longest < LENGTH - 2
    (ended, _), steps = _steps(greedy, params, inputs[chosen], max_decode_len=LENGTH)
    assert steps == list(range(longest))
    np.testing.assert_array_equal(ended, outputs[chosen])


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_rows_of_padding_stay_empty_and_change_nothing(decoder):
    model, params, inputs = Transformer(CONFIG), _params(CONFIG), _inputs()
    rows = np.pad(inputs, ((0, 3), (0, 0)))
    ids = np.arange(15, dtype=np.int32)
    alone, scores = decoder(model, params, inputs, max_decode_len=LENGTH, example_ids=ids[:12])
    padded, padded_scores = decoder(model, params, rows, max_decode_len=LENGTH, example_ids=ids)
    np.testing.assert_array_equal(padded, np.pad(alone, ((0, 3), (0, 0))))
    np.testing.assert_allclose(padded_scores, np.pad(scores, (0, 3)), rtol=1e-5)


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_a_batch_of_padding_takes_no_step(search):
    inputs = np.zeros((8, 9), np.int32)
    (tokens, _), steps = _steps(search, _params(CONFIG), inputs, max_decode_len=LENGTH)
    assert steps == [] and not np.any(tokens)


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_without_an_end_token_every_position_is_decoded(search):
    """As benchmarks decode, to do the same work for any parameters."""
    options = dict(max_decode_len=LENGTH, eos_id=-1)
    (_, scores), steps = _steps(search, _params(CONFIG), _inputs(), **options)
    assert steps == list(range(LENGTH)) and np.all(np.isfinite(scores))


def _beam_by_hand(oracle, inputs, beam_size, alpha):
    """One example, Python lists; (score, tokens) worst to best, and the steps taken."""
    live, finished = [(0.0, [])], []
    for step in range(oracle.length):
        hope = max(score for score, _ in live) / ((5 + oracle.length + 1) / 6) ** alpha
        if len(finished) == beam_size and finished[-1][0] > hope:
            return finished[::-1], step
        rows = oracle.log_probs(inputs, [tokens for _, tokens in live])
        candidates = [
            (score + log_prob, [*tokens, token])
            for (score, tokens), row in zip(live, rows, strict=True)
            for token, log_prob in enumerate(row)
        ]
        best = sorted(candidates, key=lambda c: -c[0])[: 2 * beam_size]
        ended = [(s / ((5 + step + 1) / 6) ** alpha, t) for s, t in best if t[-1] == EOS]
        live = [c for c in best if c[1][-1] != EOS][:beam_size]
        finished = sorted(finished + ended, key=lambda c: -c[0])[:beam_size]
    return (finished or live)[::-1], oracle.length


def _assert_as_by_hand(oracle, inputs, tokens, scores, beam_size, alpha):
    """Returns how many rows' answers have ended."""
    finished_rows = 0
    for row, source in enumerate(inputs):
        hypotheses, _ = _beam_by_hand(oracle, source, beam_size, alpha)
        finished_rows += hypotheses[-1][1][-1] == EOS
        empty = beam_size - len(hypotheses)
        assert np.all(tokens[row, :empty] == 0) and np.all(scores[row, :empty] < -1e6)
        assert np.all(np.diff(scores[row]) >= 0)
        for slot, (score, expected) in enumerate(hypotheses, start=empty):
            np.testing.assert_array_equal(tokens[row, slot], _padded(expected, oracle.length))
            assert scores[row, slot] == pytest.approx(score, rel=1e-4)
    return finished_rows


@pytest.mark.parametrize(("beam_size", "alpha"), [(4, 0.6), (3, 0.0), (1, 1.0)])
def test_beam_search_against_python_lists(setting, beam_size, alpha):
    model, params, oracle = setting
    inputs = _inputs()
    tokens, scores = beam_search(
        model, params, inputs, max_decode_len=LENGTH, beam_size=beam_size, alpha=alpha
    )
    tokens, scores = np.asarray(tokens), np.asarray(scores)
    assert _assert_as_by_hand(oracle, inputs, tokens, scores, beam_size, alpha) > 0


def test_beam_search_goes_on_while_the_cache_grows_and_rows_are_left_behind(setting, long_oracle):
    model, params, _ = setting
    inputs = _inputs()
    options = dict(max_decode_len=LONG, beam_size=2, alpha=0.6)
    needed = np.array([_beam_by_hand(long_oracle, row, 2, 0.6)[1] for row in inputs])
    late, early = np.flatnonzero(needed > SHORTEST_STAGE), np.argmin(needed)
    assert len(late) >= 2 and needed[early] < SHORTEST_STAGE
    chosen = [*[early] * 6, *late[:2]]  # the last two are soon alone
    tokens, scores = map(np.asarray, beam_search(model, params, inputs[chosen], **options))
    _assert_as_by_hand(long_oracle, inputs[chosen], tokens, scores, 2, 0.6)


def test_a_beam_as_wide_as_all_hypotheses_finds_the_best_one(setting):
    model, params, oracle = setting
    inputs, positions = _inputs(rows=3), 2
    tokens, scores = beam_search(
        model, params, inputs, max_decode_len=positions, beam_size=CONFIG.vocab_size, alpha=0.6
    )
    for row, source in enumerate(inputs):
        first = oracle.log_probs(source, [[]])[0]
        second = oracle.log_probs(source, [[token] for token in range(CONFIG.vocab_size)])
        ended = {(EOS, 0): first[EOS]}
        for token in set(range(CONFIG.vocab_size)) - {EOS}:
            ended[(token, EOS)] = (first[token] + second[token, EOS]) / (7 / 6) ** 0.6
        best = max(ended, key=ended.get)
        np.testing.assert_array_equal(tokens[row, -1], best)
        assert scores[row, -1] == pytest.approx(ended[best], rel=1e-4)


def test_beam_search_stops_when_nothing_can_improve(setting):
    _, params, oracle = setting
    inputs = _inputs()
    needed = np.array([_beam_by_hand(oracle, row, 2, 0.6)[1] for row in inputs])
    chosen = np.argsort(needed)[:2]
    options = dict(max_decode_len=LENGTH, beam_size=2, alpha=0.6)
    _, steps = _steps(beam_search, params, inputs[chosen], **options)
    longest = int(needed[chosen].max())
    assert steps == list(range(longest)) and longest < LENGTH


def test_bfloat16_decodes():
    params = _params(CONFIG)
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    outputs, scores = greedy(model, params, _inputs(), max_decode_len=LENGTH)
    exact, _ = greedy(Transformer(CONFIG), params, _inputs(), max_decode_len=LENGTH)
    assert outputs.dtype == np.int32 and scores.dtype == np.float32
    # The first token follows one forward pass: rounding rarely changes the winner.
    assert np.mean(outputs[:, 0] == exact[:, 0]) >= 0.75


def test_bfloat16_gives_the_same_answers_where_the_choice_is_clear():
    """Parameters that multiply the logits leave no two tokens close to each other."""
    params = _params(CONFIG)
    decoder = dict(params["decoder"])
    decoder["logits_dense"] = {"kernel": 8.0 * decoder["logits_dense"]["kernel"]}
    params = dict(params, decoder=decoder)
    inputs = _inputs()
    oracle = Uncached(CONFIG, params)
    exact, _ = greedy(Transformer(CONFIG), params, inputs, max_decode_len=LENGTH)
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    rounded, _ = greedy(model, params, inputs, max_decode_len=LENGTH)
    clear = 0
    for source, expected, tokens in zip(inputs, np.asarray(exact), rounded, strict=True):
        for index in range(np.count_nonzero(expected)):
            log_probs = oracle.log_probs(source, [expected[:index].tolist()])[0]
            if np.diff(np.sort(log_probs)[-2:])[0] < 1.0:
                break  # from here on the answers may differ
            assert tokens[index] == expected[index]
            clear += 1
    assert clear >= 2 * len(inputs)
    best, scores = BeamSearch()(model, params, inputs, max_decode_len=LENGTH)
    assert best.shape == (len(inputs), LENGTH) and np.all(np.isfinite(scores))


class UncastTransformer(Transformer):
    """Another class, so that what is compiled for it is not what is compiled for Transformer."""


def _as_each_step_would_cast(model, params):
    """In place of `decoding._cast_once`: the parameters as they are."""
    return params


@pytest.mark.parametrize(
    ("decoder", "config"),
    [(Greedy(), CONFIG), (Greedy(), TIED), (BeamSearch(), CONFIG)],
    ids=["greedy", "greedy-tied", "beam"],
)
def test_parameters_cast_once_give_the_same_numbers(decoder, config, monkeypatch):
    config = dataclasses.replace(config, dtype="bfloat16")
    params, inputs = _params(config), _inputs()
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
        traced = search.trace(model, _params(CONFIG), _inputs(), max_decode_len=LENGTH)
        return _casts_of_matrices_in_loops(traced.jaxpr.jaxpr)

    assert casts(Transformer(config)) == 0
    monkeypatch.setattr(decoding, "_cast_once", _as_each_step_would_cast)
    assert casts(UncastTransformer(config)) > 0


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_rows_over_two_devices_give_the_answers_of_one(decoder):
    model, params, inputs = Transformer(CONFIG), _params(CONFIG), _inputs()
    ids = np.arange(100, 112, dtype=np.int32)
    options = dict(max_decode_len=LONG if decoder == Greedy() else LENGTH)
    one, one_scores = decoder(model, params, inputs, example_ids=ids, **options)
    layout = sharding.make_layout({"data": 2}, devices=jax.devices()[:2])
    batch = sharding.put_batch({"inputs": inputs, "ids": ids}, layout)
    params = jax.device_put(params, jax.NamedSharding(layout.mesh, jax.P()))
    two, two_scores = decoder(model, params, batch["inputs"], example_ids=batch["ids"], **options)
    assert len(batch["inputs"].sharding.device_set) == 2
    np.testing.assert_array_equal(two, one)
    np.testing.assert_allclose(two_scores, one_scores, rtol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_scanned_layers_give_the_answers_of_unrolled_ones(decoder):
    config = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=2)
    params, inputs = _params(config), _inputs(rows=6)
    options = dict(max_decode_len=LENGTH, example_ids=np.arange(6, dtype=np.int32))
    unrolled = decoder(Transformer(config), params, inputs, **options)
    scanned = Transformer(dataclasses.replace(config, scan_layers=True))
    stacked = decoder(scanned, stack_layers(params), inputs, **options)
    np.testing.assert_array_equal(stacked[0], unrolled[0])
    np.testing.assert_allclose(stacked[1], unrolled[1], rtol=1e-5)


def test_one_position_is_enough(setting):
    model, params, oracle = setting
    inputs = _inputs(rows=5)
    log_probs = np.stack([oracle.log_probs(row, [[]])[0] for row in inputs])
    tokens, scores = greedy(model, params, inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens[:, 0], log_probs.argmax(axis=1))
    np.testing.assert_allclose(scores, log_probs.max(axis=1), rtol=1e-4)
    # With as many beams as tokens every first token is a candidate, of which the end alone ends.
    tokens, scores = BeamSearch(beam_size=6)(model, params, inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens[:, 0], EOS)
    np.testing.assert_allclose(scores, log_probs[:, EOS], rtol=1e-4)


def _first_tokens(params, inputs, draws, **options):
    """First tokens drawn for one sentence under many numbers."""
    rows = np.broadcast_to(inputs, (draws, len(inputs)))
    ids = np.arange(draws, dtype=np.int32)
    seed = jnp.uint32(0)
    model = Transformer(CONFIG)
    tokens, _ = sample(model, params, rows, ids, seed, max_decode_len=1, **options)
    return np.bincount(np.asarray(tokens)[:, 0], minlength=CONFIG.vocab_size) / draws


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.5, 0, 1.0), (1.5, 3, 1.0), (1.5, 0, 0.6), (1.5, 5, 0.7)],
)
def test_sampling_follows_the_truncated_distribution(setting, temperature, top_k, top_p):
    _, params, oracle = setting
    inputs, draws = _inputs()[1], 4000
    logits = oracle.log_probs(inputs, [[]])[0] / temperature
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    order = np.argsort(-expected)
    if top_k:
        expected[order[top_k:]] = 0.0
        expected /= expected.sum()
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= top_p]] = 0.0
    expected /= expected.sum()
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    frequencies = _first_tokens(params, inputs, draws, **options)
    assert not frequencies[expected == 0.0].any()
    # Five standard deviations of a frequency.
    assert np.all(
        np.abs(frequencies - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9
    )


def test_sampling_depends_on_seed_example_and_position_only():
    model, params, inputs = Transformer(CONFIG), _params(CONFIG), _inputs()
    ids = np.arange(50, 62, dtype=np.int32)

    def run(rows, seed=7, wider=0):
        tokens, scores = Sampling(seed=seed)(
            model,
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
    drawn, _ = Sampling()(model, params, rows, max_decode_len=LENGTH, example_ids=ids)
    assert len({tuple(row) for row in np.asarray(drawn).tolist()}) > 6


def test_sampling_scores_are_the_models_log_probabilities(setting):
    model, params, oracle = setting
    inputs = _inputs(rows=4)
    ids = np.arange(4, dtype=np.int32)
    decoder = Sampling(temperature=0.7, top_k=4)
    tokens, scores = decoder(model, params, inputs, max_decode_len=LENGTH, example_ids=ids)
    for row, score, source in zip(np.asarray(tokens), scores, inputs, strict=True):
        answer = row[row > 0].tolist() if EOS in row else row.tolist()
        expected = sum(
            oracle.log_probs(source, [answer[:index]])[0][token]
            for index, token in enumerate(answer)
        )
        assert score == pytest.approx(expected, rel=1e-4)


def test_one_token_left_is_greedy():
    model, params, inputs = Transformer(CONFIG), _params(CONFIG), _inputs()
    options = dict(max_decode_len=LENGTH, example_ids=np.arange(12, dtype=np.int32))
    expected = Greedy()(model, params, inputs, **options)
    for decoder in (Sampling(top_k=1), Sampling(top_p=1e-6)):
        tokens, scores = decoder(model, params, inputs, **options)
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-5)


def test_a_vocabulary_of_several_blocks_is_searched_like_a_small_one():
    """Choices are made block by block; here against NumPy, with ties and a last block not full."""
    config = dataclasses.replace(CONFIG, vocab_size=1500)
    params = dict(_params(config))
    model, inputs = Transformer(config), _inputs(rows=6)
    logits = np.asarray(
        jax.jit(model.apply)({"params": params}, inputs, np.zeros((6, 1), np.int32))
    )[:, 0].astype(np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    tokens, scores = greedy(model, params, inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens[:, 0], logits.argmax(axis=1))
    np.testing.assert_allclose(scores, log_probs.max(axis=1), rtol=1e-4)
    tokens, scores = beam_search(model, params, inputs, max_decode_len=1, beam_size=4, alpha=0.0)
    for row in range(len(inputs)):
        best = np.argsort(-log_probs[row])[:8]
        if EOS not in best:  # then the live hypotheses are given
            np.testing.assert_array_equal(tokens[row, ::-1, 0], best[:4])
            np.testing.assert_allclose(scores[row, ::-1], log_probs[row, best[:4]], rtol=1e-4)
    # The same embedding for all tokens: all logits are equal, and the first token is taken.
    decoder = dict(params["decoder"])
    decoder["logits_dense"] = {"kernel": 0.0 * decoder["logits_dense"]["kernel"]}
    tokens, _ = greedy(model, dict(params, decoder=decoder), inputs, max_decode_len=1)
    np.testing.assert_array_equal(tokens, 0)
    # Equal shares of the draws for tokens of the first block, of the others, and of the last.
    rows = np.broadcast_to(inputs[0], (3000, inputs.shape[1]))
    ids = np.arange(3000, dtype=np.int32)
    flat = dict(params, decoder=decoder)
    tokens, _ = sample(model, flat, rows, ids, jnp.uint32(1), max_decode_len=1)
    tokens = np.asarray(tokens)[:, 0]
    for low, high in ((0, 128), (128, 1408), (1408, 1500)):
        share = (high - low) / 1500
        deviation = np.mean((low <= tokens) & (tokens < high)) - share
        assert abs(deviation) <= 5 * np.sqrt(share * (1 - share) / 3000)


def test_length_penalty():
    assert float(length_penalty(1.0, 0.6)) == 1.0
    assert math.isclose(float(length_penalty(jnp.float32(7.0), 1.0)), 2.0, rel_tol=1e-6)
