"""What the compiled train step costs: floating-point operations and temporary memory."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tiny

from t5scaling.model import network
from t5scaling.training import sharding, step

# One instruction of a compiled module's text that calls a while loop's body.
_WHILE = re.compile(r"^.* while\(.*$", re.MULTILINE)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Uncountable(RuntimeError):
    """The compiled program has parts whose operations XLA does not count."""


def lower_train_step(config: network.T5Config) -> jax.stages.Lowered:
    """The program of the train step on one device with tiny.py's batch, not compiled yet.

    Traced anew each time, so that what is patched while tracing has its effect.
    """
    layout = sharding.make_layout(devices=jax.devices()[:1])
    train_step = step.jit_train_step.__wrapped__(config, step.Objective(), layout)
    return train_step.lower(
        step.abstract_state(config, layout),
        _abstract_batch(layout),
        jax.ShapeDtypeStruct((), jnp.float32),  # learning rate
        jax.ShapeDtypeStruct((), jnp.uint32),  # seed
        jax.ShapeDtypeStruct((), jnp.bool_),  # new window
    )


def _abstract_batch(layout: sharding.Layout) -> dict[str, jax.ShapeDtypeStruct]:
    where = sharding.batch_sharding(layout)
    return {
        name: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=where)
        for name, values in tiny.make_batch().items()
    }


@contextmanager
def unrolled_scans() -> Iterator[None]:
    """Inside, every `jax.lax.scan` that is traced is written out, iteration after iteration."""
    scan = jax.lax.scan

    def unrolled(
        f: Any,
        init: Any,
        xs: Any = None,
        length: int | None = None,
        reverse: bool = False,
        unroll: int | bool = True,
        **options: Any,
    ) -> Any:
        del unroll
        return scan(f, init, xs, length, reverse, unroll=True, **options)

    with mock.patch.object(jax.lax, "scan", unrolled):
        yield


def count_flops(lower: Callable[[], jax.stages.Lowered], **options: Any) -> float:
    """Floating-point operations of one call of a compiled program, loop bodies times their trips.

    XLA counts the body of a loop once, so the program that `lower` traces is traced with its scans
    written out. A product of (m, k) by (k, n) counts 2mkn, an element-wise operation one for each
    element, a transcendental function nothing. `options`: of `Lowered.compile`.

    Raises Uncountable if a loop is left that runs more than once, or whose trips are not known, or
    if the program calls a library, in which XLA counts nothing.
    """
    with unrolled_scans():
        compiled = lower().compile(**options)
    text = compiled.as_text()
    for loop in _WHILE.findall(text):
        trips = _TRIPS.search(loop)
        if trips is None or int(trips[1]) > 1:
            raise Uncountable(f"a loop is left: {loop.strip()[:200]}")
    calls = sorted(set(re.findall(r'custom_call_target="([^"]*)"', text)))
    if calls:
        raise Uncountable(f"calls of libraries: {', '.join(calls)}")
    return float(compiled.cost_analysis()["flops"])


def train_step_flops(config: network.T5Config, **options: Any) -> float:
    """`count_flops` of the step with tiny.py's batch."""
    return count_flops(lambda: lower_train_step(config), **options)


def train_step_temporary_bytes(config: network.T5Config) -> int:
    """Memory that the compiled step takes beside its arguments and results."""
    return int(lower_train_step(config).compile().memory_analysis().temp_size_in_bytes)
