"""Token budgets: how many examples, counted from the first, make up a number of tokens."""

from bisect import bisect_left

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
    # From the last knot below the budget, record by record.
    knots = examples.meta["knots"]
    knot = bisect_left(knots[field], tokens) - 1
    n, count = knot * knots["every"], knots[field][knot]
    while count < tokens:
        count += examples.row_tokens(n, field)
        n += 1
    return n
