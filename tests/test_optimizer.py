import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5scaling.errors import UserError
from t5scaling.training.optimizer import (
    adafactor,
    constant,
    factored_axes,
    inverse_square_root,
)

SHAPES = {
    "wide": (128, 200),  # factored, v_row averages axis 1
    "tall": (200, 128),  # factored, v_row averages axis 0
    "square": (128, 128),
    "narrow": (127, 4096),  # one axis too short: not factored
    "vector": (512,),
}


class NumpyAdafactor:
    """Shazeer and Stern, algorithms 4 and 5, in float64, second moments spelled out."""

    def __init__(self, shapes):
        self.v = {name: None for name in shapes}

    def update(self, name, param, grad, step, learning_rate):
        beta2 = 1.0 - (step + 1.0) ** -0.8
        square = grad.astype(np.float64) ** 2 + 1e-30
        if name in ("wide", "tall", "square"):
            new = (square.mean(axis=0), square.mean(axis=1))
        else:
            new = (square,)
        old = self.v[name] or tuple(np.zeros_like(a) for a in new)
        self.v[name] = tuple(beta2 * o + (1 - beta2) * n for o, n in zip(old, new, strict=True))
        if len(new) == 2:
            per_column, per_row = self.v[name]
            second_moment = np.outer(per_row, per_column) / per_row.mean()
        else:
            (second_moment,) = self.v[name]
        direction = grad / np.sqrt(second_moment)
        direction /= max(1.0, np.sqrt((direction**2).mean()))
        scale = max(1e-3, np.sqrt((param.astype(np.float64) ** 2).mean()))
        return param - learning_rate * scale * direction


def _random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in SHAPES.items()}


def test_against_numpy():
    optimizer, oracle = adafactor(), NumpyAdafactor(SHAPES)
    params = _random_tree(0)
    params["vector"] *= 1e-5  # below epsilon2: its step is scaled by 1e-3
    expected = {k: v.astype(np.float64) for k, v in params.items()}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(4):
        grads = _random_tree(step + 1, scale=10.0**step)
        rate = 0.01 * (step + 1)
        updates, state = update(grads, state, params, step=step, learning_rate=rate)
        params = optax.apply_updates(params, updates)
        expected = {k: oracle.update(k, p, grads[k], step, rate) for k, p in expected.items()}
        for name in SHAPES:
            error = np.abs(params[name] - expected[name]).max()
            assert error <= 2e-6 * np.abs(expected[name]).max(), (step, name)


def test_state_is_small_and_float32():
    state = adafactor().init(_random_tree(0))
    shapes = jax.tree.map(lambda x: x.shape, state)
    assert shapes["wide"] == {"v_row": (128,), "v_col": (200,)}
    assert shapes["tall"] == {"v_row": (128,), "v_col": (200,)}
    assert shapes["square"] == {"v_row": (128,), "v_col": (128,)}
    assert shapes["narrow"] == {"v": (127, 4096)}
    assert shapes["vector"] == {"v": (512,)}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


def test_row_is_the_mean_over_the_larger_axis():
    optimizer, grads = adafactor(), _random_tree(3)
    params = _random_tree(0)
    _, state = optimizer.update(grads, optimizer.init(params), params, step=0, learning_rate=0.01)
    np.testing.assert_allclose(state["wide"]["v_row"], (grads["wide"] ** 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(state["tall"]["v_row"], (grads["tall"] ** 2).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((128, 128), (0, 1)),
        ((512, 128), (1, 0)),
        ((3, 512, 256), (2, 1)),
        ((127, 512), None),
        ((512,), None),
        ((), None),
    ],
)
def test_factored_axes(shape, axes):
    assert factored_axes(shape, 128) == axes


def test_a_zero_gradient_moves_nothing():
    optimizer, params = adafactor(), _random_tree(0)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=0, learning_rate=1.0)
    assert all(np.all(np.asarray(u) == 0.0) for u in jax.tree.leaves(updates))


def test_a_grid_of_rates_shares_one_compilation():
    optimizer, params = adafactor(), _random_tree(0)
    traces = []

    @jax.jit
    def update(grads, state, params, step, learning_rate):
        traces.append(1)
        return optimizer.update(grads, state, params, step=step, learning_rate=learning_rate)

    state, sizes = optimizer.init(params), []
    for rate in (0.001, 0.01, 0.1):
        updates, _ = update(_random_tree(1), state, params, jnp.int32(0), jnp.float32(rate))
        sizes.append(float(optax.global_norm(updates)))
    assert len(traces) == 1
    np.testing.assert_allclose(sizes, [sizes[0], 10 * sizes[0], 100 * sizes[0]], rtol=1e-5)


def test_schedules():
    assert constant(0.005)(0) == constant(0.005)(10**6) == 0.005
    schedule = inverse_square_root(1.0, warmup_steps=10_000)
    assert schedule(0) == schedule(10_000) == 0.01
    assert schedule(40_000) == 0.005
    assert inverse_square_root(0.5, 2500)(1) == 0.01


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), "0.01", None])
def test_a_wrong_rate_is_named(rate):
    with pytest.raises(UserError, match="learning_rate"):
        constant(rate)
    with pytest.raises(UserError, match="base_learning_rate"):
        inverse_square_root(rate, 100)


def test_a_wrong_warmup_is_named():
    with pytest.raises(UserError, match="warmup_steps is 0"):
        inverse_square_root(1.0, 0)
