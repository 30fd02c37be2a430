"""Token budgets: how many examples, counted from the first, make up a number of tokens."""

from bisect import bisect_left

import numpy as np

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
