"""One training step and one evaluation step, as pure functions of (state, batch)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from t5scaling.model import loss as losses
from t5scaling.model import network
from t5scaling.training import optimizer, sharding, state

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises: cross-entropy summed over target tokens, as T5X.

    z_loss: weight of log(Z)^2, which keeps the logits' scale bounded.
    label_smoothing: probability mass spread over the vocabulary.
    loss_normalizing_factor: the sum is divided by it; None keeps the sum (Adafactor's updates do
        not depend on the gradient's scale).
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None


def loss_fn(
    params: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    model: network.Transformer,
    objective: Objective,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """-> (loss to minimise, (loss sum with z-loss, z-loss part, target tokens))."""
    logits_BxTxV = model.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        encoder_segment_ids=batch.get("encoder_segment_ids"),
        decoder_segment_ids=batch.get("decoder_segment_ids"),
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    total, z_loss, weight_sum = losses.cross_entropy(
        logits_BxTxV,
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        z_loss=objective.z_loss,
        label_smoothing=objective.label_smoothing,
    )
    normalizer = objective.loss_normalizing_factor
    minimised = total if normalizer is None else total / normalizer
    return minimised, (total, z_loss, weight_sum)


def train_step(
    train_state: state.TrainState,
    batch: Batch,
    learning_rate: jax.Array,
    seed: jax.Array,
    new_window: jax.Array,
    *,
    model: network.Transformer,
    objective: Objective,
) -> tuple[state.TrainState, tuple[state.Window, jax.Array, jax.Array]]:
    """-> (next state, (window, tokens_seen, nonfinite_step) to log without touching the state).

    The dropout key follows from (seed, step), so a resumed run draws what it would have drawn.
    `new_window` (bool) starts the sums of the metrics window again.
    """
    dropout_key = None
    if model.config.dropout_rate > 0:
        dropout_key = jax.random.fold_in(jax.random.key(seed), train_state.step)
    (_, (total, z_loss, weight_sum)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        train_state.params, batch, dropout_key, model, objective
    )
    updates, opt_state = optimizer.adafactor().update(
        grads,
        train_state.opt_state,
        train_state.params,
        step=train_state.step,
        learning_rate=learning_rate,
    )
    params = optax.apply_updates(train_state.params, updates)
    keep = jnp.where(new_window, 0, 1)
    old = train_state.window
    window = state.Window(
        loss=old.loss * keep + (total - z_loss),
        z_loss=old.z_loss * keep + z_loss,
        target_tokens=old.target_tokens * keep + weight_sum,
        grad_norm=jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))),
        steps=old.steps * keep + 1,
    )
    tokens = jnp.sum(batch["encoder_input_tokens"] > 0) + jnp.sum(
        batch["decoder_target_tokens"] > 0
    )
    tokens_seen = state.add_tokens(train_state.tokens_seen, tokens)
    first_bad = (train_state.nonfinite_step < 0) & ~jnp.isfinite(total)
    nonfinite_step = jnp.where(first_bad, train_state.step + 1, train_state.nonfinite_step)
    new_state = state.TrainState(
        step=train_state.step + 1,
        params=params,
        opt_state=opt_state,
        window=window,
        tokens_seen=tokens_seen,
        nonfinite_step=nonfinite_step,
    )
    return new_state, (window, tokens_seen, nonfinite_step)


def eval_step(
    params: Any, batch: Batch, *, model: network.Transformer
) -> tuple[jax.Array, jax.Array]:
    """-> (cross-entropy summed over target tokens in nats, target tokens), teacher-forced."""
    plain = Objective(z_loss=0.0)
    _, (total, _, weight_sum) = loss_fn(params, batch, None, model, plain)
    return total, weight_sum


# Runs of one shape in one process share these, and with them the compilation.


@functools.cache
def jit_train_step(config: network.T5Config, objective: Objective, mesh: Mesh) -> Callable:
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        functools.partial(train_step, model=network.Transformer(config), objective=objective),
        in_shardings=(everywhere, rows, everywhere, everywhere, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )


@functools.cache
def jit_eval_step(config: network.T5Config, mesh: Mesh) -> Callable:
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        functools.partial(eval_step, model=network.Transformer(config)),
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )


@functools.cache
def jit_init(config: network.T5Config, mesh: Mesh) -> Callable:
    """seed (uint32) -> fresh TrainState, initialised straight onto the mesh."""

    def init(seed: jax.Array) -> state.TrainState:
        return state.create(network.init_params(config, jax.random.key(seed)))

    return jax.jit(init, out_shardings=sharding.replicated(mesh))


@functools.cache
def jit_create(mesh: Mesh) -> Callable:
    """params -> TrainState at step 0 with a fresh optimizer."""
    return jax.jit(state.create, out_shardings=sharding.replicated(mesh))


def abstract_state(config: network.T5Config, mesh: Mesh) -> state.TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)
        ),
        jax.eval_shape(jit_init(config, mesh), np.uint32(0)),
    )


def abstract_params(config: network.T5Config, mesh: Mesh) -> Any:
    """The parameters' part of `abstract_state`."""
    return abstract_state(config, mesh).params
