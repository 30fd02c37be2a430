"""What benchmarks count, without timing anything."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.training import sharding, step
from tests.conftest import REPOSITORY

sys.path.append(os.path.join(REPOSITORY, "benchmarks"))
import compiled_costs
import step_worker
import tiny


def test_loop_bodies_count_once_for_each_trip():
    x, kernels = jnp.ones((32, 48)), jnp.ones((7, 48, 48))

    def lower():
        def products(x, kernels):  # a function of its own each time: JAX keeps what it traced
            return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

        return jax.jit(products).lower(x, kernels)

    one_trip = 2 * 32 * 48 * 48
    counted = compiled_costs.count_flops(lower)
    assert counted == pytest.approx(7 * one_trip, rel=0.01)
    assert lower().compile().cost_analysis()["flops"] < 2 * one_trip  # XLA alone counts one


def test_a_loop_of_unknown_length_is_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1e3, lambda x: x @ x, x)

    with pytest.raises(compiled_costs.Uncountable, match="a loop is left"):
        compiled_costs.count_flops(lambda: jax.jit(until).lower(jnp.ones((8, 8))))


def test_the_peer_computes_the_same_loss():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config, layout = tiny.model(256), sharding.make_layout()
    batch = tiny.make_batch(256)
    params = step.jit_init(config, layout)(np.uint32(0)).params
    total, tokens = step.jit_eval_step(config, layout)(params, sharding.put_batch(batch, layout))
    named = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    peer = step_worker.peer_model(256, tiny.ARCHITECTURE, named)
    with torch.no_grad():
        loss = peer(**step_worker.peer_batch(batch)).loss.item()
    assert loss == pytest.approx(float(total) / float(tokens), rel=1e-4)
