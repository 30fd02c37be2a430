"""Token budgets: how many examples, counted from the first, make up a number of tokens."""

import math
from bisect import bisect_left

import numpy as np

from t5scaling.data import loader
from t5scaling.data.examples import Examples
from t5scaling.errors import UserError


def examples_for_tokens(examples: Examples, tokens: int, field: str = "text") -> int:
    """The smallest n whose first n examples hold at least `tokens` tokens of `field`, exactly.

    `field` as in `Examples.tokens`. Larger budgets give longer prefixes of the same list, so that
    budgets are nested. Raises UserError if the examples hold fewer tokens.
    """
    if tokens <= 0:
        return 0
    available = examples.tokens(len(examples), field)
    if tokens > available:
        raise UserError(
            f"{tokens:,} {field} tokens asked for, but {examples.spec.task} "
            f"({examples.spec.split}) has only {available:,} in {len(examples):,} examples"
        )
    # The budget is reached somewhere between two knots; the records there say where.
    knots = examples.meta["knots"]
    knot = bisect_left(knots[field], tokens) - 1
    first = knot * knots["every"]
    between = range(first, min(first + knots["every"], len(examples)))
    counts = np.cumsum(examples.row_tokens(between, field)) + knots[field][knot]
    return first + int(np.searchsorted(counts, tokens)) + 1


class Stream:
    """The text that a run has seen after so many examples, over all of its passes, exactly.

    The order is that of `loader.train_batches`: with `shuffle` all passes, and else all but the
    first, go through the examples in orders of their own, given by `seed`. `passes`: how many the
    run may make; None for as many as it needs.
    """

    def __init__(
        self, examples: Examples, *, passes: int | None = 1, seed: int = 0, shuffle: bool = False
    ):
        self.examples, self.shuffle = examples, shuffle
        self.length = math.inf if passes is None else passes * len(examples)
        self.in_one_pass = examples.tokens(len(examples))
        self._example_at = loader.order(examples, seed=seed, shuffle=shuffle)
        self._of_each: np.ndarray | None = None
        self._passes: dict[int, np.ndarray] = {}

    def tokens(self, number: int) -> int:
        """Text tokens of the first `number` examples, those read again counted again."""
        whole, rest = divmod(number, len(self.examples))
        if not rest:
            return whole * self.in_one_pass
        if not whole and not self.shuffle:
            return self.examples.tokens(rest)
        return whole * self.in_one_pass + int(self._of_pass(whole)[rest - 1])

    def examples_for(self, tokens: int) -> int:
        """The smallest number of examples that hold at least `tokens` text tokens. Raises UserError
        if the passes give fewer."""
        if tokens <= 0:
            return 0
        whole, rest = divmod(tokens - 1, self.in_one_pass)
        if whole * len(self.examples) >= self.length:
            task, passes = self.examples.spec.task, int(self.length) // len(self.examples)
            raise UserError(
                f"{tokens:,} text tokens asked for, but {task} ({self.examples.spec.split}) has "
                f"only {self.in_one_pass:,} in {len(self.examples):,} examples"
                f"{f', and {passes} passes are allowed' if passes > 1 else ''}; ask for fewer, or "
                "allow the text to be read again by MAX_EPOCHS (None: as often as it takes)"
            )
        if not whole and not self.shuffle:
            return examples_for_tokens(self.examples, tokens)
        within = int(np.searchsorted(self._of_pass(whole), rest + 1)) + 1
        return whole * len(self.examples) + within

    def _of_pass(self, number: int) -> np.ndarray:
        """Tokens of the first 1, 2, ... examples of a pass in an order of its own."""
        size = len(self.examples)
        if self._of_each is None:
            self._of_each = np.array(self.examples.row_tokens(range(size)))
        if number not in self._passes:
            positions = range(number * size, (number + 1) * size)
            order = [self._example_at(position) for position in positions]
            self._passes[number] = np.cumsum(self._of_each[order])
        return self._passes[number]
