"""Deterministic mixing: which component gives the next example, so that rates hold everywhere."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from t5scaling.errors import UserError


def interleave(
    rates: Sequence[float], available: Sequence[int], max_denominator: int = 10_000
) -> tuple[np.ndarray, int | None]:
    """The order in which components take turns until one of them runs out.

    In every prefix of n examples, component i has given n * rates[i] / sum(rates) examples to
    within less than one (Tijdeman 1980, "The chairman assignment problem"). Rates are taken as
    fractions with denominators up to `max_denominator`, and all arithmetic is in integers.

    Raises UserError for a rate that is not positive or vanishes beside the others.

    Returns (component of each example, int32 (n,); the component whose turn it was when it had
    nothing left).
    """
    total = sum(Fraction(rate) for rate in rates if rate > 0)
    shares = [Fraction(rate) / total for rate in rates] if total else [0]
    shares = [share.limit_denominator(max_denominator) for share in shares if share > 0]
    if len(shares) < len(rates) or min(shares) == 0:
        raise UserError(f"mixing rates must be at least 1 to {max_denominator:,}, got {rates}")
    scale = math.lcm(*(share.denominator for share in shares))
    weights = [int(share * scale) for share in shares]
    period = sum(weights)

    # No list is longer than what the first component to run out allows.
    bound = min(
        (have + 2) * period // weight + 1 for have, weight in zip(available, weights, strict=True)
    )
    turns = _turns(weights, min(bound, period))
    turns = np.tile(turns, math.ceil(bound / len(turns)))[:bound]

    end, ran_out = bound, None
    for component, have in enumerate(available):
        beyond = np.flatnonzero(turns == component)[have : have + 1]
        if beyond.size and beyond[0] < end:
            end, ran_out = int(beyond[0]), component
    return turns[:end], ran_out


def _turns(weights: Sequence[int], count: int) -> np.ndarray:
    """The first `count` turns of Tijdeman's schedule, which repeats after sum(weights) turns.

    `ahead[i]` is sum(weights) times what component i is owed. Of those owed enough to be allowed
    a turn, the one whose turn would come due first gets it.
    """
    total, k = sum(weights), len(weights)
    turns = np.zeros(count, np.int32)
    if k == 1:
        return turns
    slack = 2 * k - 2
    owed = [0] * k
    for n in range(count):
        best = None
        for i, weight in enumerate(weights):
            owed[i] += weight
            if slack * owed[i] >= total:
                due = (total * (slack - 1) - slack * owed[i]) / weight
                if best is None or due < best[0]:
                    best = (due, i)
        turns[n] = best[1]
        owed[best[1]] -= total
    return turns
