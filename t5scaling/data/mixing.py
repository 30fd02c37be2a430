"""Deterministic mixing: which component gives the next example, so that rates hold everywhere."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from t5scaling.errors import UserError

MAX_DENOMINATOR = 10_000  # of a share; smaller rates vanish beside the others
MAX_PERIOD = 1_000_000  # turns that are held in memory


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Turns of components, for ever: `period` (component of each turn, int16), again and again."""

    period: np.ndarray
    components: int

    def turns(self, first: int, last: int) -> np.ndarray:
        """The components of the turns [first, last)."""
        return self.period[np.arange(first, last) % len(self.period)]

    def before(self, position: int) -> np.ndarray:
        """How many of the turns [0, position) each component has, int64 (components,)."""
        periods, rest = divmod(position, len(self.period))
        counts = self._counts(len(self.period)) * periods if periods else 0
        return counts + self._counts(rest)

    def turn_of(self, component: int, number: int) -> int:
        """The position at which a component has its turn `number`, counted from 0."""
        own = np.flatnonzero(self.period == component)
        periods, rest = divmod(number, len(own))
        return periods * len(self.period) + int(own[rest])

    def _counts(self, end: int) -> np.ndarray:
        return np.bincount(self.period[:end], minlength=self.components)


def interleave(rates: Sequence[float], available: Sequence[int]) -> tuple[Schedule, int, int]:
    """The order in which components take turns until one of them runs out.

    In every prefix of n examples, component i has given n * rates[i] / sum(rates) examples to
    within less than one (Tijdeman 1980, "The chairman assignment problem"). Rates are taken as
    fractions with denominators up to MAX_DENOMINATOR, and all arithmetic is in integers; rates
    whose common denominator is beyond MAX_PERIOD are rounded to that many parts.

    Raises UserError for a rate that is not positive or vanishes beside the others.

    Returns (the schedule; the length of the list; the component whose turn it was when it had
    nothing left).
    """
    weights = _weights(rates)
    schedule = Schedule(_turns(weights), len(weights))
    ends = [schedule.turn_of(component, have) for component, have in enumerate(available)]
    ran_out = int(np.argmin(ends))
    return schedule, ends[ran_out], ran_out


def _weights(rates: Sequence[float]) -> list[int]:
    """Turns of each component in a period."""
    positive = [Fraction(rate) for rate in rates if rate > 0]
    total = sum(positive)
    shares = [(rate / total).limit_denominator(MAX_DENOMINATOR) for rate in positive]
    if not shares or len(shares) < len(rates) or min(shares) == 0:
        raise UserError(f"mixing rates must be at least 1 to {MAX_DENOMINATOR:,}, got {rates}")
    scale = math.lcm(*(share.denominator for share in shares))
    if scale * sum(shares) > MAX_PERIOD:
        weights = [round(share * MAX_PERIOD) for share in shares]
    else:
        weights = [int(share * scale) for share in shares]
    common = math.gcd(*weights)
    return [weight // common for weight in weights]


def _turns(weights: Sequence[int]) -> np.ndarray:
    """Tijdeman's schedule, which repeats after sum(weights) turns, int16.

    `owed[i]` is sum(weights) times what component i is owed. Of those owed enough to be allowed
    a turn, the one whose turn would come due first gets it.
    """
    total, k = sum(weights), len(weights)
    if k == 1:
        return np.zeros(1, np.int16)
    turns = np.zeros(total, np.int16)
    slack = 2 * k - 2
    owed = [0] * k
    for n in range(total):
        earliest, chosen = math.inf, -1
        for i, weight in enumerate(weights):
            owed[i] += weight
            if slack * owed[i] >= total:
                due = (total * (slack - 1) - slack * owed[i]) / weight
                if due < earliest:
                    earliest, chosen = due, i
        turns[n] = chosen
        owed[chosen] -= total
    return turns
