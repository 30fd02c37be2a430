"""Batches for training and evaluation, read from a range of examples with Grain.

The order is a function of the index alone: batch k can be made without making those before it, so a
restart at any step is immediate, and hosts agree without communication.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from t5scaling.data.examples import Examples
from t5scaling.errors import UserError

Batch = dict[str, np.ndarray]

# Threads suffice: reading and numpy release the interpreter lock, and a copy of the readers in
# another process would cost more than it brings.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


def train_batches(
    examples: Examples,
    *,
    batch_size: int,
    first: int = 0,
    last: int | None = None,
    start_step: int = 0,
    num_steps: int,
    seed: int = 0,
    shuffle: bool = False,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields `num_steps` batches, from batch number `start_step` on.

    Batch k holds positions [k * batch_size, (k + 1) * batch_size) of the endless stream of epochs
    over examples [first, last). With `shuffle` every epoch goes through them in an order of its
    own, given by `seed`; without it the first epoch keeps the stored order (which
    materialisation has shuffled) and only later ones are permuted. Of each batch only `rows` are
    read, those that this process's devices hold; all if None.

    Arrays, int32, with B = len(rows): encoder_input_tokens (B, Li),
    decoder_input_tokens, decoder_target_tokens (B, Lt), and decoder_loss_weights (B, Lt) float32,
    1 where there is a target; for packed examples also encoder_segment_ids (B, Li) and
    decoder_segment_ids (B, Lt), counted from 1. Padding is 0 everywhere.

    Raises UserError for an empty range, one beyond the examples, or a batch size below 1; and, when
    they are read, for damaged records.
    """
    _check_batch_size(batch_size)
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    example_at = order(examples, first=first, last=last, seed=seed, shuffle=shuffle)

    def batch(step: int) -> Batch:
        numbers = [example_at(step * batch_size + row) for row in rows]
        return make_batch(examples, examples.read_many(numbers))

    steps = grain.MapDataset.range(start_step, start_step + num_steps)
    return iter(steps.map(batch).to_iter_dataset(_READ_OPTIONS))


def order(
    examples: Examples,
    *,
    first: int = 0,
    last: int | None = None,
    seed: int = 0,
    shuffle: bool = False,
) -> Callable[[int], int]:
    """Position in the endless stream of `train_batches` -> number of the example that is there.

    Arguments: those of `train_batches`. Raises UserError for an empty range, or one beyond the
    examples.
    """
    first, last = _range(examples, first, last)
    size = last - first
    permuted = grain.MapDataset.range(first, last).shuffle(seed=seed % 2**32).repeat()

    def example_at(position: int) -> int:
        if not shuffle and position < size:
            return first + position
        number = permuted[position]
        assert number is not None  # only a filtered dataset has gaps
        return int(number)

    return example_at


def eval_batches(
    examples: Examples, *, batch_size: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[Batch, int]]:
    """Yields (batch, number of real rows): examples [first, last) once, in stored order.

    Arrays as in `train_batches`. The last batch is filled up with rows of zeros, whose loss
    weights are 0. Raises UserError as `train_batches` does.
    """
    first, last = _range(examples, first, last)
    _check_batch_size(batch_size)

    def batch(start: int) -> tuple[Batch, int]:
        real = min(batch_size, last - start)
        records = examples.read_many(range(start, start + real))
        return make_batch(examples, records, rows=batch_size), real

    starts = grain.MapDataset.range(first, last, batch_size)
    return iter(starts.map(batch).to_iter_dataset(_READ_OPTIONS))


def make_batch(examples: Examples, records: Sequence[dict], rows: int | None = None) -> Batch:
    """Pads decoded records to a batch of `rows` rows (default: one a record)."""
    rows = len(records) if rows is None else rows
    lengths = examples.spec.feature_lengths
    encoder = np.zeros((rows, lengths["inputs"]), np.int32)
    target = np.zeros((rows, lengths["targets"]), np.int32)
    shifted = np.zeros_like(target)
    for row, record in enumerate(records):
        inputs, targets = record["inputs"], record["targets"]
        encoder[row, : len(inputs)] = inputs
        target[row, : len(targets)] = targets
        shifted[row, 1 : len(targets)] = targets[:-1]
        # Each segment starts anew, from token 0.
        shifted[row, np.cumsum(record["targets_lengths"])[:-1]] = 0
    batch = {
        "encoder_input_tokens": encoder,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": target,
        "decoder_loss_weights": (target > 0).astype(np.float32),
    }
    if examples.spec.pack:
        batch["encoder_segment_ids"] = _segment_ids(records, "inputs", encoder.shape)
        batch["decoder_segment_ids"] = _segment_ids(records, "targets", target.shape)
    return batch


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected a number >= 1")


def _segment_ids(records: Sequence[dict], feature: str, shape: tuple[int, int]) -> np.ndarray:
    ids = np.zeros(shape, np.int32)
    for row, record in enumerate(records):
        lengths = record[f"{feature}_lengths"]
        ids[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return ids


def _range(examples: Examples, first: int, last: int | None) -> tuple[int, int]:
    last = len(examples) if last is None else last
    if not 0 <= first < last <= len(examples):
        raise UserError(
            f"range [{first}, {last}) of examples is empty or beyond the {len(examples):,} of "
            f"{examples.spec.task} {examples.spec.split}"
        )
    return first, last
