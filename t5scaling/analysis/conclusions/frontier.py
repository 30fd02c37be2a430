"""The compute-optimal frontier of a law of two sizes: the model and the data that a budget buys.

A budget C, in floating-point operations, pays for training a model of N parameters on D tokens:
C = FLOPS * N * D, with 6 operations per parameter and token, forward and backward (Kaplan et al.,
arXiv 2001.08361, section 2.1). N* and D* are the sizes with the best value under that condition.
For the laws whose bracket is a sum of two powers, A / N^alpha + B / D^beta (Chinchilla's and
Kaplan's), they have a closed form (Hoffmann et al., arXiv 2203.15556, Eq. 4):

    N* = G (C / 6)^(beta / (alpha + beta)),  D* = C / (6 N*),
    G = (alpha A / (beta B))^(1 / (alpha + beta))

For any other law they are searched for. Intervals are those of the fit's replicates, each with its
own optimum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.laws.formula import Formula
from t5scaling.analysis.wording import plain
from t5scaling.errors import UserError

FLOPS = 6.0
_REACH = 16.0  # the search ends where one size is e^32 times the other
_COARSE, _FINE = 161, 1601  # sizes that are looked at


class Estimate(NamedTuple):
    """A number with the ends of its interval; inf where an end is open."""

    value: float
    low: float
    high: float

    @property
    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: plain(number) for name, number in self._asdict().items()}


@dataclass(frozen=True)
class Optimum:
    """What a budget buys at best.

    compute = flops * (first size) * (second size). sizes: the two, in the order of x. ratio: the
    second over the first (tokens per parameter). value: the law's own, without the noise of a
    measurement. exponent: c of (first size) ~ C^c; the second's is 1 - c. decades: of the budget
    beyond the dearest of the fitted points.
    """

    compute: float
    flops: float
    sizes: tuple[Estimate, Estimate]
    ratio: Estimate
    value: Estimate
    exponent: Estimate
    decades: float

    @property
    def record(self) -> dict[str, Any]:
        """As JSON takes it: compute, flops, x, x2, ratio, value, exponent, decades."""
        return {
            "compute": plain(self.compute),
            "flops": plain(self.flops),
            "x": self.sizes[0].record,
            "x2": self.sizes[1].record,
            "ratio": self.ratio.record,
            "value": self.value.record,
            "exponent": self.exponent.record,
            "decades": plain(self.decades),
        }


def frontier(fit: Fit, budgets: Sequence[float], *, flops: float = FLOPS) -> list[Optimum]:
    """The optimum for each budget C = flops * (first size) * (second size).

    Raises:
      UserError: a law whose sizes are no model and data; a budget or `flops` that is not positive;
        or a law without an optimum between the ends.
    """
    check(fit.law, flops)
    for budget in budgets:
        if not 0 < budget < math.inf:
            raise UserError(f"a budget of {budget:g}: expected a positive number of operations")
    dearest = float(np.log(flops * np.prod(fit.x, axis=0).max()))
    found = []
    for budget in budgets:
        log_product = math.log(budget / flops)
        best, spread = _both(fit, log_product, _optimum)
        exponent, exponents = _both(fit, log_product, _exponent)
        first, second = best[0], log_product - best[0]
        if not math.isfinite(first):
            way = "larger" if first > 0 else "smaller"
            raise UserError(
                f"the {fit.law.title} has no optimum at C = {budget:g}: it always prefers a {way} "
                f"{fit.law.sizes[0]}, whatever that leaves for {fit.law.sizes[1]}"
            )
        found.append(
            Optimum(
                compute=budget,
                flops=flops,
                sizes=(
                    _estimate(first, spread[0], np.exp),
                    _estimate(second, log_product - spread[0], np.exp),
                ),
                ratio=_estimate(second - first, log_product - 2 * spread[0], np.exp),
                value=_estimate(best[1], spread[1], np.exp),
                exponent=_estimate(exponent[0], exponents[0]),
                decades=(math.log(budget) - dearest) / math.log(10),
            )
        )
    return found


def check(law: Law, flops: float = FLOPS) -> None:
    """Raises UserError where a budget of compute has no meaning."""
    if not (law.sizes == ("N", "D") or (isinstance(law, Formula) and len(law.sizes) == 2)):
        raise UserError(
            f"the {law.title} is a law of {' and '.join(law.sizes)}: a budget of compute is "
            "shared by a model's size and its data; take chinchilla, kaplan or a formula of two "
            "columns"
        )
    if not 0 < flops < math.inf:
        raise UserError(f"{flops:g} operations per parameter and token: expected a positive number")


def _both(fit: Fit, log_product: float, of: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Of the fit's own theta, (K,), and of its replicates, (K, R)."""
    own = of(fit, fit.theta[None], log_product)
    return own[:, 0], of(fit, fit.replicates, log_product)


def _optimum(fit: Fit, thetas: np.ndarray, log_product: float) -> np.ndarray:
    """(log of the best first size, log of the law's value there), (2, R); the first is -inf or inf
    where the law has its best value at an end."""
    powers = _POWERS.get(fit.law.name)
    if powers is None or isinstance(fit.law, Formula):
        return _searched(fit, thetas, log_product)
    coefficients = fit.law.coefficients(thetas, fit.frame)
    with np.errstate(all="ignore"):
        log_a, alpha, log_b, beta = powers(coefficients)
        first = np.log(alpha / beta) + log_a - log_b + beta * log_product
        first = first / (alpha + beta)
        sizes = np.exp(np.array([first, log_product - first]))
        value = np.log(fit.law.published(sizes, coefficients))
    found = np.array([first, value])
    overflown = ~np.isfinite(found).all(0)
    if overflown.any():
        found[:, overflown] = _searched(fit, thetas[overflown], log_product)
    return found


def _exponent(fit: Fit, thetas: np.ndarray, log_product: float) -> np.ndarray:
    """d log (best first size) / d log C, (1, R): over a factor of e."""
    above, below = (_optimum(fit, thetas, log_product + step)[0] for step in (0.5, -0.5))
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(above - below, nan=np.inf)[None]


_POWERS: dict[str, Callable] = {  # log A, alpha, log B, beta
    "chinchilla": lambda c: (np.log(c["A"]), c["alpha"], np.log(c["B"]), c["beta"]),
    "kaplan": lambda c: (
        c["aN"] / c["aD"] * np.log(c["Nc"]), c["aN"] / c["aD"], np.log(c["Dc"]),
        np.ones_like(c["aD"]),
    ),
}  # fmt: skip


def _searched(fit: Fit, thetas: np.ndarray, log_product: float) -> np.ndarray:
    """As `_optimum`, by looking: on a coarse grid, then on a fine one around what that found, and
    on a parabola through the three best."""
    middle = log_product / 2
    coarse = np.linspace(middle - _REACH, middle + _REACH, _COARSE)

    def badness(first: np.ndarray) -> np.ndarray:
        log_x = np.array([first, log_product - first])
        with np.errstate(all="ignore"):
            values = fit.law.log_value(thetas, log_x, fit.frame)
        return np.where(np.isnan(values), np.inf, -fit.law.direction * values)

    place = badness(coarse).argmin(1)
    inner = (place > 0) & (place < _COARSE - 1)
    first = np.where(place == 0, -np.inf, np.inf)
    value = np.full(len(thetas), np.nan)
    if inner.any():
        step = coarse[1] - coarse[0]
        ends = coarse[place[inner].min()] - step, coarse[place[inner].max()] + step
        fine = np.linspace(*ends, _FINE)
        heights = badness(fine)
        at = np.clip(heights.argmin(1), 1, _FINE - 2)
        rows = np.arange(len(thetas))
        left, here, right = (heights[rows, at + shift] for shift in (-1, 0, 1))
        with np.errstate(all="ignore"):
            bend = left - 2 * here + right
            shift = np.where(bend > 0, 0.5 * (left - right) / bend, 0.0)
            lowest = here - np.where(bend > 0, 0.25 * (left - right) * shift, 0.0)
        first = np.where(inner, fine[at] + np.clip(shift, -1, 1) * (fine[1] - fine[0]), first)
        value = np.where(inner, -fit.law.direction * lowest, value)
    return np.array([first, value])


def _estimate(
    own: float, spread: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = lambda v: v
) -> Estimate:
    known = np.where(np.isnan(spread), np.inf, spread)
    low, high = intervals.percentiles(known[:, None], transform)
    return Estimate(float(transform(np.array(own))), float(low[0]), float(high[0]))
