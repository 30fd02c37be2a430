"""The training loop against the jitted step alone, in turn and in one process.

The loop reads real examples, writes its metrics every 20 steps, and shows its progress bar. Both
compute the same program, at most one step ahead of the device. A leg's first steps are left out
(start-up; runs of one shape share their compilation), and no checkpoint falls into a leg: a run
writes one every 10 minutes, while it goes on.
"""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import tiny

from t5scaling.data import loader
from t5scaling.data.examples import DataSpec, find_examples
from t5scaling.model import network
from t5scaling.training import loop, optimizer, sharding, step, tracker

TASK = "techdoc_span_en50_de50"
VOCABULARY = 8192  # the embedded corpus's, rounded up
LOG_EVERY = 20
# Steps of a leg, from one line of metrics to the next: there every call ends. The loop is broken
# off while the loader still has batches to make, as in the middle of a run.
SKIPPED, MEASURED, NEVER_DONE = LOG_EVERY, LOG_EVERY, 1000


@dataclasses.dataclass
class Leg:
    """Seconds a step, without the first SKIPPED."""

    wall_s: float
    cpu_s: float


class _LegDone(Exception):
    """Breaks off the loop."""


class _Stopwatch:
    def __init__(self) -> None:
        self._times: dict[int, tuple[float, float]] = {}

    def step_done(self, number: int) -> None:
        # The first call for a step counts: the loop calls again when its metrics are there.
        self._times.setdefault(number, (time.perf_counter(), time.process_time()))

    def leg(self) -> Leg:
        first, last = self._times[SKIPPED], self._times[SKIPPED + MEASURED]
        wall_s, cpu_s = ((b - a) / MEASURED for a, b in zip(first, last, strict=True))
        return Leg(wall_s, cpu_s)


def examples_spec() -> DataSpec:
    return DataSpec(
        task=TASK,
        split="train",
        feature_lengths={"inputs": tiny.LENGTH, "targets": tiny.LENGTH},
        modules=("tasks.registry",),
    )


def loop_leg(
    config: network.T5Config, examples_root: str, rows: int = tiny.ROWS, steps_per_call: int = 1
) -> Leg:
    """Of the training loop, in a run directory of its own."""
    watch = _Stopwatch()
    with (
        tempfile.TemporaryDirectory() as scratch,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        tracker.console_progress("loop") as bar,
        contextlib.suppress(_LegDone),
    ):

        def progress(done: int, total: int, text: str) -> None:
            bar(done, total, text)
            if done:
                watch.step_done(done)
            if done == SKIPPED + MEASURED:
                raise _LegDone

        loop.train(
            model_dir=os.path.join(scratch, "run"),
            model=config,
            dataset=examples_spec(),
            examples_root=examples_root,
            batch_size=rows,
            train_steps=NEVER_DONE,
            learning_rate_schedule=optimizer.inverse_square_root(1.0, 2500),
            objective=step.Objective(),
            steps_per_call=steps_per_call,
            max_epochs=None,
            log_every=LOG_EVERY,
            progress=progress,
        )
    return watch.leg()


def measure(examples_root: str, legs: int, note: Callable[[str], None]) -> list[tuple[Leg, Leg]]:
    """-> `legs` pairs (step alone, loop); materialises the examples first if they are not there."""
    examples = find_examples(examples_spec(), examples_root)
    config, objective, layout = tiny.model(VOCABULARY), step.Objective(), sharding.make_layout()
    batch = next(iter(loader.train_batches(examples, batch_size=tiny.ROWS, num_steps=1)))
    on_device = sharding.put_batch(batch, layout)
    train_step = step.jit_train_step(config, objective, layout)
    schedule = optimizer.inverse_square_root(1.0, 2500)

    def alone() -> Leg:
        watch = _Stopwatch()
        train_state, previous = step.jit_init(config, layout)(np.uint32(0)), None
        for number in range(1, SKIPPED + MEASURED + 1):
            train_state, logged = train_step(
                train_state, on_device, np.float32(schedule(0)), np.uint32(0), np.bool_(False)
            )
            jax.block_until_ready(previous)
            previous = logged
            watch.step_done(number)
        jax.block_until_ready(train_state)
        return watch.leg()

    def in_loop() -> Leg:
        return loop_leg(config, examples_root, tiny.ROWS)

    alone()
    pairs = []
    for number in range(legs):
        first, second = (alone, in_loop) if number % 2 == 0 else (in_loop, alone)
        one, other = first(), second()
        pairs.append((one, other) if first is alone else (other, one))
        bare, whole = pairs[-1]
        note(f"step {bare.cpu_s:.3f}, loop {whole.cpu_s:.3f} CPU-s a step")
    return pairs
