"""One training step and one evaluation step, as pure functions of (state, batch)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5scaling.errors import UserError
from t5scaling.model import loss as loss_lib
from t5scaling.model import network
from t5scaling.training import optimizer, sharding
from t5scaling.training import state as state_lib

Batch = Mapping[str, jax.Array]
# What the loss may be divided by beside a number, by T5X's names.
REAL_TOKENS = "NUM_REAL_TARGET_TOKENS"
ALL_POSITIONS = "NUM_TOTAL_TARGET_TOKENS"
PER_SEQUENCE = "AVERAGE_PER_SEQUENCE"
NORMALIZERS = (REAL_TOKENS, ALL_POSITIONS, PER_SEQUENCE)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises: cross-entropy summed over target tokens, as T5X.

    Whatever is minimised, metrics.jsonl has nats per target token.

    z_loss: weight of log(Z)^2, which keeps the logits' scale bounded.
    label_smoothing: probability mass spread over the vocabulary.
    loss_normalizing_factor: the sum is divided by it; None keeps the sum (Adafactor's updates
        hardly depend on the gradient's scale). Or one of T5X's names: "NUM_REAL_TARGET_TOKENS"
        divides by the batch's target tokens, "NUM_TOTAL_TARGET_TOKENS" by its target positions,
        padding included, and "AVERAGE_PER_SEQUENCE" takes the mean over the sequences of the means
        over their target tokens; a packed row has a sequence for each segment. All three are of
        the whole batch, however many MICROBATCHES it is done in.
    chunk_positions: target positions whose logits a device holds at a time; None for what suits
        the device and the vocabulary.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | str | None = None
    chunk_positions: int | None = None

    def __post_init__(self) -> None:
        for name, below in (("z_loss", math.inf), ("label_smoothing", 1.0)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0.0 <= value < below):
                raise UserError(f"Objective.{name} is {value!r}; expected [0, {below})")
        positions = self.chunk_positions
        if positions is not None and (not isinstance(positions, int) or positions < 1):
            raise UserError(
                f"Objective.chunk_positions is {positions!r}; expected None or a number >= 1"
            )
        factor = self.loss_normalizing_factor
        if not (factor is None or factor in NORMALIZERS or _positive(factor)):
            raise UserError(
                f"Objective.loss_normalizing_factor is {factor!r}; expected None, a number > 0 or "
                f"one of {', '.join(NORMALIZERS)}"
            )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def loss_fn(
    params: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    model: network.Transformer,
    objective: Objective,
    layout: sharding.Layout,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """-> (loss sum with z-loss, to differentiate; (its z-loss part, target tokens)).

    If `batch` has `gradient_weights` (B, T), they weigh its target positions in the gradient. With
    a `dropout_key` it has the rows' numbers in the whole batch, `row_numbers` (B,).
    """
    dropout_keys = None
    if dropout_key is not None:  # a key for each row: its masks do not depend on the others
        of_row = functools.partial(jax.random.fold_in, dropout_key)
        dropout_keys = jax.vmap(of_row)(batch["row_numbers"])
    hidden_BxTxE: Any = model.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        encoder_segment_ids=batch.get("encoder_segment_ids"),
        decoder_segment_ids=batch.get("decoder_segment_ids"),
        dropout_keys=dropout_keys,
        method="hidden",
    )
    total, z_loss, weight_sum = loss_lib.cross_entropy(
        hidden_BxTxE,
        network.output_kernel(model.config, params),
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        z_loss=objective.z_loss,
        label_smoothing=objective.label_smoothing,
        tied=model.config.logits_via_embedding,
        chunk_positions=objective.chunk_positions,
        split=layout.loss_split(),
        gradient_weights=batch.get("gradient_weights"),
    )
    return total, (z_loss, weight_sum)


def gradients(
    params: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    model: network.Transformer,
    objective: Objective,
    layout: sharding.Layout,
    microbatches: int,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """-> (gradient, loss sum with z-loss, its z-loss part, target tokens) of the whole batch.

    The batch is done in `microbatches` parts, one after the other. Losses are sums over tokens, so
    parts with more tokens weigh more and the sum is that of the batch done at once; and dropout
    draws for each row what it draws at once.
    """
    if dropout_key is not None:
        rows = len(batch["encoder_input_tokens"])
        batch = dict(batch) | {"row_numbers": jnp.arange(rows, dtype=jnp.uint32)}
    factor = objective.loss_normalizing_factor
    divisor = None if factor in NORMALIZERS else factor
    if factor == PER_SEQUENCE:
        weights, segments = batch["decoder_loss_weights"], batch.get("decoder_segment_ids")
        shares = loss_lib.shares_of_sequences(weights, segments)
        batch = dict(batch) | {"gradient_weights": shares}
        divisor = jnp.maximum(jnp.sum(shares), 1.0)  # how many sequences have targets
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        (total, (z_loss, weight_sum)), grads = differentiate(
            params, batch, dropout_key, model, objective, layout
        )
    else:

        def one(sums: Any, part: Batch) -> tuple[Any, None]:
            more = differentiate(params, part, dropout_key, model, objective, layout)
            return jax.tree.map(jnp.add, sums, more), None

        def split(rows: jax.Array) -> jax.Array:
            # Each part takes every k-th row: a row stays on its device.
            rows = rows.reshape(-1, microbatches, *rows.shape[1:]).swapaxes(0, 1)
            parts = layout.sharding("layers", "batch")
            return jax.lax.with_sharding_constraint(rows, parts)

        zero = jnp.zeros((), jnp.float32)
        start = ((zero, (zero, zero)), jax.tree.map(jnp.zeros_like, params))
        parts = jax.tree.map(split, dict(batch))
        ((total, (z_loss, weight_sum)), grads), _ = jax.lax.scan(one, start, parts)
    if factor == REAL_TOKENS:
        divisor = jnp.maximum(weight_sum, 1.0)
    elif factor == ALL_POSITIONS:
        divisor = batch["decoder_target_tokens"].size
    if divisor is not None:
        grads = jax.tree.map(lambda grad: grad / divisor, grads)
    return grads, total, z_loss, weight_sum


def train_step(
    train_state: state_lib.TrainState,
    batch: Batch,
    learning_rate: jax.Array,
    seed: jax.Array,
    new_window: jax.Array,
    *,
    model: network.Transformer,
    objective: Objective,
    layout: sharding.Layout,
    microbatches: int = 1,
) -> tuple[state_lib.TrainState, tuple[state_lib.Window, jax.Array, jax.Array]]:
    """-> (next state, (window, tokens_seen, nonfinite_step) to log without touching the state).

    The dropout key follows from (seed, step), so a resumed run draws what it would have drawn.
    `new_window` (bool) starts the sums of the metrics window again.
    """
    dropout_key = None
    if model.config.dropout_rate > 0:
        dropout_key = jax.random.fold_in(jax.random.key(seed), train_state.step)
    with layout.constraints(), network.exact_products(model.config):
        grads, total, z_loss, weight_sum = gradients(
            train_state.params, batch, dropout_key, model, objective, layout, microbatches
        )
    adafactor = optimizer.adafactor(state_lib.stacked_params(model.config))
    updates, opt_state = adafactor.update(
        grads,
        train_state.opt_state,
        train_state.params,
        step=train_state.step,
        learning_rate=learning_rate,
    )
    params = optax.apply_updates(train_state.params, updates)
    keep = jnp.where(new_window, 0, 1)
    old = train_state.window
    window = state_lib.Window(
        loss=old.loss * keep + (total - z_loss),
        z_loss=old.z_loss * keep + z_loss,
        target_tokens=old.target_tokens * keep + weight_sum,
        grad_norm=jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))),
        steps=old.steps * keep + 1,
    )
    tokens = jnp.sum(batch["encoder_input_tokens"] > 0) + jnp.sum(
        batch["decoder_target_tokens"] > 0
    )
    tokens_seen = state_lib.add_tokens(train_state.tokens_seen, tokens)
    first_bad = (train_state.nonfinite_step < 0) & ~jnp.isfinite(total)
    nonfinite_step = jnp.where(first_bad, train_state.step + 1, train_state.nonfinite_step)
    new_state = state_lib.TrainState(
        step=train_state.step + 1,
        params=params,
        opt_state=opt_state,
        window=window,
        tokens_seen=tokens_seen,
        nonfinite_step=nonfinite_step,
    )
    return new_state, (window, tokens_seen, nonfinite_step)


def train_steps(
    train_state: state_lib.TrainState,
    batches: Batch,
    learning_rates: jax.Array,
    seed: jax.Array,
    new_windows: jax.Array,
    *,
    model: network.Transformer,
    objective: Objective,
    layout: sharding.Layout,
    microbatches: int = 1,
) -> tuple[state_lib.TrainState, tuple[state_lib.Window, jax.Array, jax.Array]]:
    """As many `train_step`s as `batches`, `learning_rates` and `new_windows` stack along their
    first axis -> (state after the last, what the last one logs)."""
    one_step = functools.partial(
        train_step, model=model, objective=objective, layout=layout, microbatches=microbatches
    )
    shardings = state_shardings(model.config, layout)

    def body(before: state_lib.TrainState, inputs: tuple[Batch, jax.Array, jax.Array]) -> Any:
        batch, learning_rate, new_window = inputs
        after, logged = one_step(before, batch, learning_rate, seed, new_window)
        return jax.lax.with_sharding_constraint(after, shardings), logged

    inputs = (dict(batches), learning_rates, new_windows)
    train_state, logged = jax.lax.scan(body, train_state, inputs)
    return train_state, jax.tree.map(lambda values: values[-1], logged)


def eval_step(
    params: Any, batch: Batch, *, model: network.Transformer, layout: sharding.Layout
) -> tuple[jax.Array, jax.Array]:
    """-> (cross-entropy summed over target tokens in nats, target tokens), teacher-forced."""
    plain = Objective(z_loss=0.0)
    with layout.constraints(), network.exact_products(model.config):
        total, (_, weight_sum) = loss_fn(params, batch, None, model, plain, layout)
    return total, weight_sum


# Runs of one shape in one process share these, and with them the compilation.


@functools.cache
def jit_train_step(
    config: network.T5Config, objective: Objective, layout: sharding.Layout, microbatches: int = 1
) -> Callable:
    rows = sharding.batch_sharding(layout)
    return _jit_training(train_step, rows, config, objective, layout, microbatches)


@functools.cache
def jit_train_steps(
    config: network.T5Config, objective: Objective, layout: sharding.Layout, microbatches: int = 1
) -> Callable:
    """`train_steps`; each number of steps is a program of its own."""
    rows = sharding.batch_sharding(layout, stacked=True)
    return _jit_training(train_steps, rows, config, objective, layout, microbatches)


def _jit_training(
    function: Callable,
    rows: jax.sharding.NamedSharding,
    config: network.T5Config,
    objective: Objective,
    layout: sharding.Layout,
    microbatches: int,
) -> Callable:
    everywhere, states = sharding.replicated(layout), state_shardings(config, layout)
    return jax.jit(
        functools.partial(
            function,
            model=network.Transformer(config),
            objective=objective,
            layout=layout,
            microbatches=microbatches,
        ),
        in_shardings=(states, rows, everywhere, everywhere, everywhere),
        out_shardings=(states, everywhere),
        donate_argnums=0,
    )


@functools.cache
def jit_eval_step(config: network.T5Config, layout: sharding.Layout) -> Callable:
    return jax.jit(
        functools.partial(eval_step, model=network.Transformer(config), layout=layout),
        in_shardings=(
            sharding.param_shardings(config, layout),
            sharding.batch_sharding(layout),
        ),
        out_shardings=sharding.replicated(layout),
    )


@functools.cache
def jit_init(config: network.T5Config, layout: sharding.Layout) -> Callable:
    """seed (uint32) -> fresh TrainState, initialised straight into its shards."""

    def init(seed: jax.Array) -> state_lib.TrainState:
        return state_lib.create(network.init_params(config, jax.random.key(seed)), config)

    return jax.jit(init, out_shardings=state_shardings(config, layout))


@functools.cache
def jit_create(config: network.T5Config, layout: sharding.Layout) -> Callable:
    """params -> TrainState at step 0 with a fresh optimizer."""
    return jax.jit(
        functools.partial(state_lib.create, config=config),
        out_shardings=state_shardings(config, layout),
    )


@functools.cache
def _state_shapes(config: network.T5Config) -> state_lib.TrainState:
    create = functools.partial(state_lib.create, config=config)
    return jax.eval_shape(create, network.abstract_params(config))


@functools.cache
def state_shardings(config: network.T5Config, layout: sharding.Layout) -> state_lib.TrainState:
    """The tree of a TrainState with a NamedSharding for each leaf: the optimizer's moments are
    split as their parameter is, and what is left is everywhere."""

    def moments(param: jax.ShapeDtypeStruct, axes: tuple[str, ...], stacked: bool) -> Any:
        named = optimizer.moment_axes(param.shape, axes, stacked)
        return {name: layout.sharding(*of_moment) for name, of_moment in named.items()}

    shapes = _state_shapes(config)
    everywhere = jax.tree.map(lambda _: sharding.replicated(layout), shapes)
    return everywhere.replace(
        params=sharding.param_shardings(config, layout),
        opt_state=jax.tree.map(
            moments,
            shapes.params,
            network.param_logical_axes(config),
            state_lib.stacked_params(config),
        ),
    )


def abstract_state(config: network.T5Config, layout: sharding.Layout) -> state_lib.TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        _state_shapes(config),
        state_shardings(config, layout),
    )


def abstract_params(config: network.T5Config, layout: sharding.Layout) -> Any:
    """The parameters' part of `abstract_state`."""
    return abstract_state(config, layout).params
