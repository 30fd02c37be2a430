"""Generation for many inputs: batches of like length, any decoder, answers in the order given."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.model import decoding, network
from t5scaling.training import sharding

# Batches are padded to one of these fractions of the feature lengths: short sentences cost little,
# and the number of compilations stays small.
BUCKETS = (0.125, 0.25, 0.5, 1.0)

Decoder = decoding.Greedy | decoding.BeamSearch | decoding.Sampling


def check_decoder(decoder: Any) -> None:
    """Raises UserError if `decoder` is none, such as a name without gin's @."""
    if not isinstance(decoder, Decoder):
        raise UserError(
            f"{decoder!r} is no decoder; expected @decoding.Greedy(), @decoding.BeamSearch() or "
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
        inputs: Sequence[np.ndarray],
        *,
        first_id: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Generated]:
        """Answers `inputs`, token sequences with their end-of-sequence token, in their order.

        What is sampled for an input depends on its number, `first_id` + its place, and not on the
        others. `progress` is called with the inputs answered so far.
        """
        transformer = network.Transformer(self.config)
        answers: dict[int, Generated] = {}
        shares = [len(tokens) / self.input_length for tokens in inputs]
        for chosen, share in batches_by_length(shares, self.batch_size):
            width = math.ceil(self.input_length * share)
            tokens_BxS = np.zeros((self.batch_size, width), np.int32)
            ids_B = np.zeros(self.batch_size, np.int32)
            for row, index in enumerate(chosen):
                tokens_BxS[row, : len(inputs[index])] = inputs[index]
                ids_B[row] = first_id + index
            batch = sharding.put_batch({"tokens": tokens_BxS, "ids": ids_B}, self.layout)
            tokens_BxL, scores_B = multihost_utils.process_allgather(
                self.decoder(
                    transformer,
                    self.params,
                    batch["tokens"],
                    max_decode_len=self.max_decode_len,
                    example_ids=batch["ids"],
                ),
                tiled=True,
            )
            for index, tokens, score in zip(chosen, tokens_BxL, scores_B, strict=False):
                answers[index] = Generated(self.vocabulary.decode(tokens), float(score))
            progress(len(answers))
        return [answers[index] for index in range(len(inputs))]


def batches_by_length(
    shares: Sequence[float], batch_size: int
) -> Iterator[tuple[list[int], float]]:
    """(numbers of the rows, bucket of their longest): every row once, in batches of like length.

    All batches are full but the last, which holds the shortest rows: a batch costs the same however
    many rows it has, and the longest first says early whether memory suffices. `shares` are the
    rows' lengths over the longest that is allowed, each at most 1.
    """
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = shares[chosen[0]]
        yield chosen, next(bucket for bucket in BUCKETS if longest <= bucket)
