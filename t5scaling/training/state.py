"""What a training run carries from step to step, all of it in the checkpoint."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from t5scaling.model import network, stacking
from t5scaling.training import optimizer

# Token counters run past int32 in long runs and JAX has no int64 by default: two int32 limbs.
LIMB_BITS = 24


@flax.struct.dataclass
class Window:
    """Sums since the last line of metrics.jsonl. They are part of the state so that a run resumed
    between two lines writes the same next line as one that was never stopped."""

    loss: jax.Array  # float32 (), nats, without z-loss
    z_loss: jax.Array  # float32 ()
    target_tokens: jax.Array  # float32 (); a window holds far fewer than 2^24 tokens per device
    grad_norm: jax.Array  # float32 (), the last step's
    steps: jax.Array  # int32 ()


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32 (), steps done
    params: Any
    opt_state: Any
    window: Window
    tokens_seen: jax.Array  # int32 (2,): [high, low] limbs of the non-padding tokens trained on
    nonfinite_step: jax.Array  # int32 (): first step whose loss was not finite, else -1


def zero_window() -> Window:
    zero = jnp.zeros((), jnp.float32)
    return Window(zero, zero, zero, zero, jnp.zeros((), jnp.int32))


def create(params: Any, config: network.T5Config) -> TrainState:
    """A state at step 0 around `params`, with a fresh optimizer."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.adafactor(stacked_params(config)).init(params),
        window=zero_window(),
        tokens_seen=jnp.zeros((2,), jnp.int32),
        nonfinite_step=jnp.full((), -1, jnp.int32),
    )


def stacked_params(config: network.T5Config) -> Any:
    """Tree of bools like the parameters: whether the first axis counts layers."""
    return jax.tree.map(
        lambda axes: axes[0] == stacking.STACKED,
        network.param_logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def add_tokens(tokens_seen: jax.Array, count: jax.Array) -> jax.Array:
    low = tokens_seen[1] + count.astype(jnp.int32)
    return jnp.stack([tokens_seen[0] + (low >> LIMB_BITS), low & ((1 << LIMB_BITS) - 1)])


def total_tokens(tokens_seen: Any) -> int:
    return (int(tokens_seen[0]) << LIMB_BITS) + int(tokens_seen[1])
