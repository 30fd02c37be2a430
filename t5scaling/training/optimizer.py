"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) as T5X runs it, and learning rates.

The learning rate and the step are arguments of every update, not part of the state: runs that
differ only in their rate share one compilation, and the step lives in one place, the train state.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5scaling import values
from t5scaling.errors import UserError

Schedule = Callable[[int], float]
Moments = dict[str, jax.Array]  # {"v"} or {"v_row", "v_col"} of one parameter


def factored_axes(shape: tuple[int, ...], min_size: int) -> tuple[int, int] | None:
    """(second largest, largest) axis of `shape` if both hold at least `min_size`, else None."""
    if len(shape) < 2:
        return None
    *_, second, largest = np.argsort(shape, kind="stable")
    return (int(second), int(largest)) if shape[second] >= min_size else None


def adafactor(
    stacked: Any = None,
    *,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor without momentum, with parameter-scaled steps.

    `update(grads, state, params, *, step, learning_rate)` takes the 0-based step (int32) and the
    rate (float32), both traced, and returns (updates to add to the parameters, state).

    Second moments decay by 1 - (step+1)^-decay_rate, so the first step's are the squared gradient.
    A parameter whose two largest axes both hold `min_dim_size_to_factor` keeps their row and column
    means {"v_row", "v_col"} (v_row: mean over the largest axis), any other keeps {"v"}; the state
    is the tree of parameters with these dicts for leaves, float32. A step is clipped to RMS
    `clipping_threshold` over its whole tensor and scaled by max(RMS(parameter), epsilon2).

    `stacked` is a tree of bools like the parameters: true where the first axis counts layers, each
    of which is then a parameter of its own. None: nowhere.
    """

    def init_one(param: jax.Array) -> Moments:
        axes = factored_axes(param.shape, min_dim_size_to_factor)
        if axes is None:
            return {"v": jnp.zeros(param.shape, jnp.float32)}
        second, largest = axes
        return {
            "v_row": jnp.zeros(np.delete(param.shape, largest), jnp.float32),
            "v_col": jnp.zeros(np.delete(param.shape, second), jnp.float32),
        }

    def is_stacked(structure: Any) -> list[bool]:
        if stacked is None:
            return [False] * structure.num_leaves
        return structure.flatten_up_to(stacked)

    def init(params: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        return structure.unflatten(
            [
                (jax.vmap(init_one) if layers else init_one)(param)
                for param, layers in zip(leaves, is_stacked(structure), strict=True)
            ]
        )

    def update_one(
        grad: jax.Array,
        moments: Moments,
        param: jax.Array,
        decay: jax.Array,
        learning_rate: jax.Array,
    ) -> tuple[jax.Array, Moments]:
        grad = grad.astype(jnp.float32)
        square = jnp.square(grad) + epsilon1

        def decayed(old: jax.Array, new: jax.Array) -> jax.Array:
            return decay * old + (1.0 - decay) * new

        axes = factored_axes(param.shape, min_dim_size_to_factor)
        if axes is None:
            v = decayed(moments["v"], square)
            moments, direction = {"v": v}, grad * jax.lax.rsqrt(v)
        else:
            second, largest = axes
            v_row = decayed(moments["v_row"], jnp.mean(square, axis=largest))
            v_col = decayed(moments["v_col"], jnp.mean(square, axis=second))
            # v ~ v_row v_col / mean(v_row): the outer product with the full tensor's mean.
            row_mean = jnp.mean(v_row, axis=second - (largest < second), keepdims=True)
            row_factor = jax.lax.rsqrt(v_row / row_mean)
            direction = grad * jnp.expand_dims(row_factor, largest)
            direction *= jnp.expand_dims(jax.lax.rsqrt(v_col), second)
            moments = {"v_row": v_row, "v_col": v_col}

        param_scale = jnp.maximum(_rms(param), epsilon2)
        clip = jnp.maximum(1.0, _rms(direction) / clipping_threshold)
        return direction * (-learning_rate * param_scale / clip), moments

    def update(
        grads: Any,
        state: Any,
        params: Any = None,
        *,
        step: jax.Array,
        learning_rate: jax.Array,
        **_: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("Adafactor scales its steps by the parameters: pass params")
        decay = 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -decay_rate
        leaves, structure = jax.tree.flatten(params)
        per_layer = jax.vmap(update_one, in_axes=(0, 0, 0, None, None))
        updated = [
            (per_layer if layers else update_one)(grad, moments, param, decay, learning_rate)
            for grad, moments, param, layers in zip(
                structure.flatten_up_to(grads),
                structure.flatten_up_to(state),
                leaves,
                is_stacked(structure),
                strict=True,
            )
        ]
        updates, moments = zip(*updated, strict=True)
        return structure.unflatten(updates), structure.unflatten(moments)

    # (Its annotation takes an update that wants no argument beyond optax's own three.)
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def moment_axes(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stacked: bool,
    min_dim_size_to_factor: int = 128,
) -> dict[str, tuple[str, ...]]:
    """Axis names of a parameter's second moments, from the parameter's: moments are split over a
    mesh as their parameter is."""
    layers, axes, shape = (axes[:1], axes[1:], shape[1:]) if stacked else ((), axes, shape)
    factored = factored_axes(shape, min_dim_size_to_factor)
    if factored is None:
        return {"v": layers + axes}
    second, largest = factored
    return {
        "v_row": layers + axes[:largest] + axes[largest + 1 :],
        "v_col": layers + axes[:second] + axes[second + 1 :],
    }


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _refuse_unless_positive(schedule: str, name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UserError(f"{schedule}: {name} is {value!r}; expected a number > 0")


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same rate at every step. Raises UserError unless it is positive and finite."""

    learning_rate: values.PositiveNumber

    def __post_init__(self) -> None:
        _refuse_unless_positive("constant", "learning_rate", self.learning_rate)

    def __call__(self, step: int) -> float:
        return float(self.learning_rate)


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot:
    """base / sqrt(max(step, warmup_steps)): flat during the warm-up, then falling.

    Steps count from 0. Raises UserError unless both arguments are positive and finite.
    """

    base_learning_rate: values.PositiveNumber
    warmup_steps: values.Positive = 10_000

    def __post_init__(self) -> None:
        _refuse_unless_positive(
            "inverse_square_root", "base_learning_rate", self.base_learning_rate
        )
        _refuse_unless_positive("inverse_square_root", "warmup_steps", self.warmup_steps)

    def __call__(self, step: int) -> float:
        return float(self.base_learning_rate / math.sqrt(max(step, self.warmup_steps)))


# What gin files call them.
constant, inverse_square_root = Constant, InverseSquareRoot
