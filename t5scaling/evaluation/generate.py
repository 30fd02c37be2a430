"""Generation for many inputs: batches of like length, any decoder, answers in the order given."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.model import decoding, network
from t5scaling.training import distributed, sharding

# Batches are padded to one of these fractions of the feature lengths: short sentences cost little,
# and the number of compilations stays small.
BUCKETS = (0.125, 0.25, 0.5, 1.0)
# Each width compiles the whole decoding anew, which takes about as long as tens of batches of a
# small model take to run (benchmarks/README.md). Fewer batches than this share the next wider one.
MIN_BATCHES = 16

Decoder = decoding.Greedy | decoding.BeamSearch | decoding.Sampling


def check_decoder(decoder: Any) -> None:
    """Raises UserError if `decoder` is none, such as a name without gin's @."""
    if not isinstance(decoder, Decoder):
        raise UserError(
            f"{decoder!r} is not a decoder; expected @decoding.Greedy(), @decoding.BeamSearch() or "
            "@decoding.Sampling()"
        )


@dataclasses.dataclass(frozen=True)
class Generated:
    """One answer: its text, and its score in nats as the decoder defines it."""

    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model that is ready to answer.

    Attributes:
        params: of the model, on the devices of `layout`.
        vocabulary: of inputs and answers.
        input_length: tokens of an input at most; the callers cut and count.
        max_decode_len: tokens of an answer at most, the end-of-sequence token included.
        batch_size: rows at a time over all devices.
    """

    config: network.T5Config
    params: Any
    layout: sharding.Layout
    vocabulary: Vocabulary
    decoder: Decoder
    input_length: int
    max_decode_len: int
    batch_size: int

    def __call__(
        self,
        inputs: Sequence[Sequence[int] | np.ndarray],
        *,
        first_id: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Generated]:
        """Answers `inputs`, token sequences with their end-of-sequence token, in their order.

        What is sampled for an input depends on its number, `first_id` + its place, and not on the
        others. `progress` is called with the inputs answered so far.
        """
        answers: dict[int, Generated] = {}
        for chosen, outputs in one_ahead(self._outputs(inputs, first_id)):
            tokens_BxL, scores_B = jax.device_get(outputs)
            for index, tokens, score in zip(chosen, tokens_BxL, scores_B, strict=False):
                answers[index] = Generated(self.vocabulary.decode(tokens), float(score))
            progress(len(answers))
            distributed.going_on("a batch of answers")
        return [answers[index] for index in range(len(inputs))]

    def _outputs(
        self, inputs: Sequence[Sequence[int] | np.ndarray], first_id: int
    ) -> Iterator[tuple[list[int], tuple[jax.Array, jax.Array]]]:
        """(numbers of the inputs, tokens (B, L) and scores (B,) of a batch), dispatched."""
        transformer = network.Transformer(self.config)
        shares = [len(tokens) / self.input_length for tokens in inputs]
        for chosen, share in batches_by_length(shares, self.batch_size, MIN_BATCHES):
            width = math.ceil(self.input_length * share)
            tokens_BxS = np.zeros((self.batch_size, width), np.int32)
            ids_B = np.zeros(self.batch_size, np.int32)
            for row, index in enumerate(chosen):
                tokens_BxS[row, : len(inputs[index])] = inputs[index]
                ids_B[row] = first_id + index
            batch = sharding.put_batch({"tokens": tokens_BxS, "ids": ids_B}, self.layout)
            outputs = self.decoder(
                transformer,
                self.params,
                batch["tokens"],
                max_decode_len=self.max_decode_len,
                eos_id=self.vocabulary.eos_id,
                example_ids=batch["ids"],
            )
            # Gathered now, not when it is fetched: a device runs its programs in the order of their
            # dispatch, and by then the next batch has been dispatched.
            yield chosen, _gather(self.layout)(outputs)


@functools.cache
def _gather(layout: sharding.Layout) -> Callable[[Any], Any]:
    """A function that puts all rows of a tree of arrays on every device, and so in each process."""
    return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(layout))


Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Each of `items`, in their order, once the next one has been made.

    Where making an item dispatches a batch and the caller fetches the item's numbers, the devices
    then have the next batch to go on with. There are never more than two batches on them.
    """
    made: collections.deque[Item] = collections.deque()
    for item in items:
        made.append(item)
        if len(made) > 1:
            yield made.popleft()
    yield from made


def batches_by_length(
    shares: Sequence[float], batch_size: int, min_batches: int = 1
) -> Iterator[tuple[list[int], float]]:
    """(numbers of the rows, bucket they are padded to): every row once, in batches of like length.

    All batches are full but the last, which holds the shortest rows: a batch costs the same however
    many rows it has, and the longest first says early whether memory suffices. `shares` are the
    rows' lengths over the longest that is allowed, each at most 1.

    The bucket is the smallest that holds the batch's longest row, unless fewer than `min_batches`
    batches would use it: these go to the next larger one in use. Padding has no weight in any sum,
    so a larger bucket changes results by the rounding of the activation dtype alone.
    """
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    fitting = [
        next(bucket for bucket in BUCKETS if shares[chosen[0]] <= bucket) for chosen in batches
    ]
    used: dict[float, float] = {}
    together: list[float] = []  # buckets that will use the same one
    for bucket in sorted(set(fitting)):
        together.append(bucket)
        if bucket == fitting[0] or sum(map(fitting.count, together)) >= min_batches:
            used |= dict.fromkeys(together, bucket)
            together = []
    for chosen, bucket in zip(batches, fitting, strict=True):
        yield chosen, used[bucket]
