"""Decoding against oracles that run the whole decoder again for every token, without a cache."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.model.decoding import beam_search, greedy, length_penalty
from t5scaling.model.network import T5Config, Transformer, init_params

EOS = 1
LENGTH = 14
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
TIED = dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True)


class Uncached:
    """log P(next token | inputs, prefix) by the teacher-forced forward pass."""

    def __init__(self, config, params):
        self.params = params
        self.apply = jax.jit(Transformer(config).apply)

    def log_probs(self, inputs, prefixes):
        """(S,) tokens and N prefixes of one length t -> (N, V) float64."""
        decoder_inputs = np.zeros((len(prefixes), LENGTH + 1), np.int32)
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


def test_greedy_is_the_uncached_argmax_step_by_step(setting):
    model, params, oracle = setting
    inputs = _inputs()
    outputs = np.asarray(greedy(model, params, inputs, max_decode_len=LENGTH))
    ended = 0
    for row, output in zip(inputs, outputs, strict=True):
        prefix = []
        while len(prefix) < LENGTH and prefix[-1:] != [EOS]:
            prefix.append(int(np.argmax(oracle.log_probs(row, [prefix])[0])))
        ended += prefix[-1] == EOS
        np.testing.assert_array_equal(output, prefix + [0] * (LENGTH - len(prefix)))
    assert 0 < ended < len(inputs)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["1.1", "1.0"])
def test_cached_logits_equal_teacher_forced_logits(config):
    model, variables = Transformer(config), {"params": _params(config)}
    inputs = _inputs(rows=4)
    targets = np.random.default_rng(1).integers(2, 12, (4, LENGTH)).astype(np.int32)
    decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    expected = jax.jit(model.apply)(variables, inputs, decoder_inputs)
    context, cache = model.apply(variables, inputs, LENGTH, method="start_decoding")
    step = jax.jit(functools.partial(model.apply, method="decode_step"))
    for index in range(LENGTH):
        logits, cache = step(variables, decoder_inputs[:, index, None], cache, index, context)
        np.testing.assert_allclose(logits[:, 0], expected[:, index], rtol=0, atol=1e-5)


class CountingTransformer(Transformer):
    """Counts the decoder steps that really run."""

    def decode_step(self, tokens_BxK, cache, index, context):
        jax.debug.callback(lambda i: STEPS.append(int(i)), index)
        return super().decode_step(tokens_BxK, cache, index, context)


STEPS = []


def _steps(decode, params, inputs, **options):
    STEPS.clear()
    outputs = jax.block_until_ready(decode(CountingTransformer(CONFIG), params, inputs, **options))
    jax.effects_barrier()
    return outputs, sorted(STEPS)


def test_greedy_stops_when_every_row_has_ended():
    params = _params(CONFIG)
    inputs = _inputs()
    outputs = np.asarray(greedy(Transformer(CONFIG), params, inputs, max_decode_len=LENGTH))
    lengths = np.where((outputs == EOS).any(1), (outputs == EOS).argmax(1) + 1, LENGTH + 1)
    chosen = np.argsort(lengths)[:3]
    longest = int(lengths[chosen].max())
    assert longest < LENGTH - 2
    ended, steps = _steps(greedy, params, inputs[chosen], max_decode_len=LENGTH)
    assert steps == list(range(longest))
    np.testing.assert_array_equal(ended, outputs[chosen])


def test_greedy_ignores_rows_of_padding():
    params = _params(CONFIG)
    inputs = _inputs(rows=8)
    alone = greedy(Transformer(CONFIG), params, inputs, max_decode_len=LENGTH)
    padded = greedy(
        Transformer(CONFIG), params, np.pad(inputs, ((0, 3), (0, 0))), max_decode_len=LENGTH
    )
    np.testing.assert_array_equal(padded, np.pad(alone, ((0, 3), (0, 0))))
    _, steps = _steps(greedy, params, np.zeros_like(inputs), max_decode_len=LENGTH)
    assert steps == []


def _beam_by_hand(oracle, inputs, beam_size, alpha):
    """One example, Python lists; (score, tokens) worst to best, and the steps taken."""
    live, finished = [(0.0, [])], []
    for step in range(LENGTH):
        hope = max(score for score, _ in live) / ((5 + LENGTH + 1) / 6) ** alpha
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
    return (finished or live)[::-1], LENGTH


@pytest.mark.parametrize(("beam_size", "alpha"), [(4, 0.6), (3, 0.0), (1, 1.0)])
def test_beam_search_against_python_lists(setting, beam_size, alpha):
    model, params, oracle = setting
    inputs = _inputs()
    tokens, scores = beam_search(
        model, params, inputs, max_decode_len=LENGTH, beam_size=beam_size, alpha=alpha
    )
    tokens, scores = np.asarray(tokens), np.asarray(scores)
    finished_rows = 0
    for row, source in enumerate(inputs):
        hypotheses, _ = _beam_by_hand(oracle, source, beam_size, alpha)
        finished_rows += hypotheses[-1][1][-1] == EOS
        empty = beam_size - len(hypotheses)
        assert np.all(tokens[row, :empty] == 0) and np.all(scores[row, :empty] < -1e6)
        assert np.all(np.diff(scores[row]) >= 0)
        for slot, (score, expected) in enumerate(hypotheses, start=empty):
            padded = expected + [0] * (LENGTH - len(expected))
            np.testing.assert_array_equal(tokens[row, slot], padded)
            assert scores[row, slot] == pytest.approx(score, rel=1e-4)
    assert finished_rows > 0


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
    outputs = np.asarray(greedy(model, params, _inputs(), max_decode_len=LENGTH))
    exact = np.asarray(greedy(Transformer(CONFIG), params, _inputs(), max_decode_len=LENGTH))
    assert outputs.dtype == np.int32
    # The first token follows one forward pass: rounding rarely changes the winner.
    assert np.mean(outputs[:, 0] == exact[:, 0]) >= 0.75


def test_length_penalty():
    assert float(length_penalty(1.0, 0.6)) == 1.0
    assert math.isclose(float(length_penalty(jnp.float32(7.0), 1.0)), 2.0, rel_tol=1e-6)
