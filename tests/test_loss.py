import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.model import loss
from t5scaling.model.loss import cross_entropy, log_likelihood
from t5scaling.training import sharding


def _by_hand(logits, targets, weights, z_loss, label_smoothing):
    """Soft one-hot targets, the whole batch at once, by JAX's own differentiation."""
    vocab = logits.shape[-1]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    soft = jnp.where(targets[..., None] == jnp.arange(vocab), 1.0 - label_smoothing, 0.0)
    soft += jnp.where(soft > 0, 0.0, label_smoothing / (vocab - 1))
    entropy = -jnp.sum(jnp.where(soft > 0, soft * jnp.log(jnp.maximum(soft, 1e-30)), 0.0), -1)
    loss = -jnp.sum(soft * (logits - log_z[..., None]), -1) - entropy
    z_part = z_loss * log_z**2
    return jnp.sum((loss + z_part) * weights), jnp.sum(z_part * weights), jnp.sum(weights)


@functools.cache
def _problem(batch=4, length=9, width=16, vocab=40):
    """(hidden, kernel, targets, weights), with labels at both ends of the vocabulary."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
    kernel = rng.normal(size=(width, vocab)).astype(np.float32)
    targets = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    targets[0, :2] = 0, vocab - 1
    weights = ((rng.random((batch, length)) < 0.7) * rng.random((batch, length))).astype(np.float32)
    return hidden, kernel, targets, weights


def _close(actual, expected, tolerance=1e-6):
    """Relative to the largest magnitude, as rounding follows the size of a sum's terms."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    bound = tolerance * max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@functools.cache
def _whole(z_loss, label_smoothing):
    """`_by_hand` for `_problem` and half of its gradient, at once for all sizes of chunks."""
    hidden, kernel, targets, weights = _problem()

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def expected(hidden, kernel):
        parts = _by_hand(hidden @ kernel, targets, weights, z_loss, label_smoothing)
        return 0.5 * parts[0], parts

    with jax.default_matmul_precision("highest"):
        return expected(hidden, kernel)


@pytest.mark.parametrize(
    ("chunk_positions", "z_loss", "label_smoothing"),
    [
        *((positions, 1e-2, 0.1) for positions in (1, 5, 12, 36, 1000)),
        (5, 0.0, 0.0),
        (5, 1e-2, 0.0),
    ],
)
def test_chunks_equal_the_whole(chunk_positions, z_loss, label_smoothing):
    hidden, kernel, targets, weights = _problem()
    options = dict(z_loss=z_loss, label_smoothing=label_smoothing)

    @functools.partial(jax.jit, static_argnames="tied")
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def ours(hidden, kernel, tied=False):
        total, *rest = cross_entropy(
            hidden, kernel, targets, weights, tied=tied, chunk_positions=chunk_positions, **options
        )
        return 0.5 * total, (total, *rest)  # the gradient must be scaled too

    with jax.default_matmul_precision("highest"):
        (_, parts), (dhidden, dkernel) = ours(hidden, kernel)
        (_, tied_parts), (tied_dhidden, tied_dkernel) = ours(hidden, kernel.T, tied=True)
    (_, wanted), (wanted_dhidden, wanted_dkernel) = _whole(z_loss, label_smoothing)
    for got in (parts, tied_parts):
        for a, b in zip(got, wanted, strict=True):
            _close(a, b)
    for a, b in (
        (dhidden, wanted_dhidden),
        (dkernel, wanted_dkernel),
        (tied_dhidden, wanted_dhidden),
        (tied_dkernel.T, wanted_dkernel),
    ):
        _close(a, b)


def _total(hidden, kernel, targets, weights, split, tied):
    return cross_entropy(
        hidden, kernel, targets, weights, z_loss=1e-2, label_smoothing=0.1, tied=tied,
        chunk_positions=5, split=split,
    )[0]  # fmt: skip


# One function, so that what one device computes is compiled once for all meshes.
_differentiate = jax.jit(
    jax.value_and_grad(_total, argnums=(0, 1)), static_argnames=("split", "tied")
)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("mesh_shape", "vocab"),
    [
        ({"data": 2}, 40),
        ({"model": 2, "data": 1}, 40),
        ({"fsdp": 2, "data": 1}, 40),
        ({"fsdp": 2, "data": 1}, 30),
    ],
)
def test_split_over_a_mesh(mesh_shape, tied, vocab):
    """Over rows, or over the vocabulary; two devices. With fewer positions (36) than tokens in the
    vocabulary, "fsdp" splits the vocabulary too."""
    hidden, kernel, targets, weights = _problem(vocab=vocab)
    within = sharding.make_layout(mesh_shape).loss_split().for_sizes(targets.size, vocab)
    assert within.shared == (("fsdp",) if "fsdp" in mesh_shape and vocab == 40 else ())
    kernel = kernel.T if tied else kernel
    layout = sharding.make_layout(mesh_shape)
    axes = ("vocab", "embed") if tied else ("embed", "vocab")

    rows = sharding.batch_sharding(layout)
    arrays = [jax.device_put(x, rows) for x in (hidden, targets, weights)]
    with jax.default_matmul_precision("highest"):
        one, grads_of_one = _differentiate(hidden, kernel, targets, weights, split=None, tied=tied)
        two, grads_of_two = _differentiate(
            arrays[0],
            jax.device_put(kernel, layout.sharding(*axes)),
            *arrays[1:],
            split=layout.loss_split(),
            tied=tied,
        )
    _close(two, one)
    for a, b in zip(grads_of_two, grads_of_one, strict=True):
        _close(a, b)


def test_bfloat16_operands_are_summed_in_float32():
    hidden, kernel, targets, weights = _problem(width=256)
    low = jnp.asarray(hidden, jnp.bfloat16)
    rounded = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)

    def loss(hidden, kernel):
        return cross_entropy(hidden, kernel, targets, weights, chunk_positions=8)[0]

    value, (dhidden, dkernel) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(low, kernel)
    assert dhidden.dtype == jnp.bfloat16 and dkernel.dtype == jnp.float32
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(low, np.float32) @ rounded
        exact = _by_hand(logits, targets, weights, 1e-4, 0.0)[0]
    assert float(value) == pytest.approx(float(exact), rel=1e-5)


def test_no_array_holds_the_logits_of_the_whole_batch():
    hidden, kernel, targets, weights = _problem(batch=8, length=32, vocab=400)
    chunk = 16

    def loss(hidden, kernel):
        return cross_entropy(hidden, kernel, targets, weights, chunk_positions=chunk)[0]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile()
    whole = 4 * 8 * 32 * 400
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def test_the_z_loss_part_is_a_number_to_log_and_has_no_gradient():
    hidden, kernel, targets, weights = _problem()
    grad = jax.grad(lambda h: cross_entropy(h, kernel, targets, weights, z_loss=0.5)[1])(hidden)
    np.testing.assert_array_equal(grad, np.zeros_like(hidden))


def _loss_of_logits(logits, targets, weights, **options):
    """The loss of given logits: they pass through the identity."""
    return cross_entropy(logits, jnp.eye(logits.shape[-1]), targets, weights, **options)[0]


def test_a_perfect_smoothed_prediction_costs_nothing():
    vocab, smoothing = 11, 0.2
    probabilities = np.full(vocab, smoothing / (vocab - 1), np.float32)
    probabilities[3] = 1.0 - smoothing
    logits = jnp.log(probabilities)[None, None]
    targets, weights = jnp.full((1, 1), 3), jnp.ones((1, 1))
    options = dict(z_loss=0.0, label_smoothing=smoothing)
    assert float(_loss_of_logits(logits, targets, weights, **options)) == pytest.approx(0, abs=1e-6)
    assert float(_loss_of_logits(logits, targets + 1, weights, **options)) > 1.0


def test_extreme_logits_stay_finite():
    logits = jnp.asarray([[[3e4, -3e4, 0.0]]])
    ones = jnp.ones((1, 1), int)
    loss, grad = jax.value_and_grad(_loss_of_logits)(logits, ones, ones, z_loss=0.0)
    assert float(loss) == pytest.approx(6e4)
    np.testing.assert_allclose(grad, [[[1.0, -1.0, 0.0]]])


def test_the_shares_of_a_sequence_sum_to_one():
    """Rows of 4, 1 and 0 target tokens; then packed: segments of 2 and 3 tokens, and of 1."""
    weights = np.array([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    padded = [[0.25, 0.25, 0.25, 0.25, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(loss.shares_of_sequences(weights), np.float32(padded))
    weights = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    segments = np.array([[1, 1, 2, 2, 2], [1, 0, 0, 0, 0]])
    packed = [[0.5, 0.5, 1 / 3, 1 / 3, 1 / 3], [1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(loss.shares_of_sequences(weights, segments), np.float32(packed))


def test_the_gradient_may_weigh_positions_in_a_way_of_its_own():
    hidden, kernel, targets, weights = _problem()
    others = np.random.default_rng(1).random(weights.shape).astype(np.float32)

    def gradient(weights, **options):
        def total(hidden, kernel):
            return cross_entropy(hidden, kernel, targets, weights, chunk_positions=5, **options)[0]

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, kernel)

    value, got = gradient(weights, gradient_weights=others)
    assert value == gradient(weights)[0]
    for a, b in zip(got, gradient(others)[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_log_likelihood_counts_weighted_positions_of_each_row():
    logits = jnp.log(jnp.asarray([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.5, 0.5]]]))
    targets, weights = jnp.asarray([[0, 1], [1, 0]]), jnp.asarray([[1, 1], [1, 0]])
    expected = [math.log(0.5 * 0.75), math.log(0.1)]
    np.testing.assert_allclose(log_likelihood(logits, targets, weights), expected, rtol=1e-6)
