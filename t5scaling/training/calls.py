"""Several training steps in one call: what small models need on a large device.

Where a step takes a device a few milliseconds, the host, which puts a batch and starts a program
for each step, is what the run waits for. A call of several steps asks it for that once. A call ends
where the host has something to do (a line of metrics, a checkpoint, an evaluation), and it is of
`steps_per_call` steps or of one: two programs to compile, whatever the numbers.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from t5scaling.data.loader import Batch
from t5scaling.errors import UserError
from t5scaling.training import sharding

PARAMETER_AXES = ("vocab", "embed", "joined_kv", "heads", "mlp")


@dataclasses.dataclass(frozen=True)
class Call:
    """The inputs of `steps` steps; where these are several, stacked along a first axis."""

    steps: int
    batch: Batch  # arrays (B, L) or (steps, B, L)
    learning_rate: np.ndarray | np.float32  # float32 () or (steps,)
    new_window: np.ndarray | np.bool_  # bool () or (steps,)

    @property
    def stacked(self) -> bool:
        return self.steps > 1


def check(steps_per_call: Any, layout: sharding.Layout) -> None:
    """Raises UserError unless it is a whole number >= 1, and 1 where rows and parameters are split
    over one mesh axis, as "fsdp" does.

    XLA then orders the sums of a loop's step in another way than those of a step by itself: a run
    stopped in between would not go on with the same bits.
    """
    whole = isinstance(steps_per_call, int) and not isinstance(steps_per_call, bool)
    if not whole or steps_per_call < 1:
        raise UserError(f"STEPS_PER_CALL={steps_per_call!r}; expected a whole number >= 1")
    of_parameters = {axis for name in PARAMETER_AXES for axis in layout.axes(name)}
    both = of_parameters & layout.axes("batch")
    split = sorted(axis for axis in both if layout.mesh.shape[axis] > 1)
    if steps_per_call > 1 and split:
        raise UserError(
            f"STEPS_PER_CALL={steps_per_call} where parameters are split over the mesh axis "
            f"{split[0]!r} would not repeat bit for bit; expected STEPS_PER_CALL=1, or parameters "
            "that are whole, as small models can have them"
        )


def lengths(
    start: int, end: int, steps_per_call: int, *, every: Sequence[int], at: Collection[int] = ()
) -> Iterator[int]:
    """Yields the steps of each call from step `start` to step `end`.

    No call crosses a multiple of one of `every` or a step in `at`: a call of several steps that
    would is replaced by calls of one step.
    """
    while start < end:
        stops = [start - start % period + period for period in every]
        stop = min(end, *stops, *(step for step in at if step > start))
        steps = steps_per_call if steps_per_call <= stop - start else 1
        yield steps
        start += steps


def gather(
    batches: Iterator[Batch],
    lengths: Iterator[int],
    *,
    start: int,
    learning_rate_schedule: Callable[[int], float],
    log_every: int,
) -> Iterator[Call]:
    """Yields calls of these lengths, the first of which goes on after step `start`."""
    for steps in lengths:
        numbers = range(start, start + steps)
        parts = list(itertools.islice(batches, steps))
        rates = [np.float32(learning_rate_schedule(number)) for number in numbers]
        new = [np.bool_(number % log_every == 0) for number in numbers]
        if steps == 1:
            yield Call(steps, parts[0], rates[0], new[0])
        else:
            stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
            yield Call(steps, stacked, np.stack(rates), np.stack(new))
        start += steps
