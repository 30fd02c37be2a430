"""What is expected at D_p = X, and where one curve overtakes another.

Laws are fitted to all points. Families that cannot be distinguished from the best one on sizes that
they were not fitted to (paired test, and where there are ENOUGH predictions less than
TIMES_THE_BEST times its error) all take part: the value is the best one's, the interval spans those
of all. Those with more coefficients do too: what they leave open, the best one does not close.
Neither passes the end of the metric's scale. Where two data sets cross, and where a data set and
the baseline: both curves' laws are solved for it, in each bootstrap replicate, up to REACH times
the largest fitted size. Replicates of two curves are drawn independently, so that
those of one number may be paired; chances and crossings take the replicates of all families that
take part, each family with itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.choice_of_law import as_good, saturating_first
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import sign_of
from t5scaling.analysis.fitting.compare import Comparison, compare
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.fitting.significance import TAILS
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.metrics import highest_of
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError

RIVALS = {1: ("log", "ceiling", "hill"), -1: ("power", "m1", "m3", "onset")}
MORE = {1: (), -1: ("m4", "bnsl")}  # for curves with SPARE sizes more than they have coefficients
SPARE = 4
REACH = 100.0
TIMES_THE_BEST = 2.0
ENOUGH = 7  # predictions: of fewer, the errors of two equals differ as much in 1 case of 20


@dataclass(frozen=True)
class Forecast:
    """What is expected at x. decades: beyond the largest measured size. families: whose interval
    it spans, the best first. inner_low, inner_high: the best one's own interval. end: where the
    metric's scale ends, if the value or the interval would pass it; they are cut there."""

    x: float
    value: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    decades: float
    families: tuple[Law, ...]
    end: float | None = None


@dataclass(frozen=True)
class Crossing:
    """Where the second of two curves overtakes the first. x: None if it does not within reach.
    low, high: over the replicates in which it does, `share` of them."""

    x: float | None
    low: float | None
    high: float | None
    share: float


class Outlook:
    """The laws of one curve that take part in forecasts, the best first, each fitted to all its
    points (`fits`)."""

    def __init__(self, curve: Curve, laws: Sequence[Law]):
        self.curve = curve
        self.fits: list[Fit] = []
        self.note = ""
        x, y = curve.arrays
        for law in laws:
            try:
                self.fits.append(
                    fit_curve(
                        law, x, y, hold_out=0, x_name=curve.x_name, y_name=curve.metric,
                        errors=curve.errors, seeds=curve.seeds,
                    )
                )  # fmt: skip
            except UserError as error:
                self.note = self.note or str(error)

    @property
    def best(self) -> Fit | None:
        return self.fits[0] if self.fits else None

    def at(self, x: float) -> Forecast | None:
        """None if no law could be fitted."""
        if self.best is None:
            return None
        place, best = np.array([x]), self.fits[0]
        ends = [[float(end[0]) for end in fit.band(place)] for fit in self.fits]
        numbers = {
            "value": float(best.predict(place)[0]), "low": min(low for low, _ in ends),
            "high": max(high for _, high in ends), "inner_low": ends[0][0],
            "inner_high": ends[0][1],
        }  # fmt: skip
        end = highest_of(self.curve.metric, [p.value for p in self.curve.points])
        return Forecast(
            x=x, **{name: min(value, end) for name, value in numbers.items()},
            decades=float(np.log10(x / best.x.max())),
            families=tuple(fit.law for fit in self.fits),
            end=end if max(numbers.values()) > end else None,
        )  # fmt: skip

    def break_even(self) -> Crossing | None:
        """The size from which pretraining beats none; None without a baseline or a law."""
        if not self.fits or not self.curve.baseline:
            return None
        base = [p.value for p in self.curve.baseline]
        level = math.log(max(np.mean(base), 1e-300))

        def gains_of(fit: Fit) -> Gains:
            noise = fit.replicate_noise[:, None] / math.sqrt(len(base))
            return lambda log_x, drawn: (
                _log_values(fit, log_x, drawn) - (level + (noise if drawn else 0.0))
            )

        sign = sign_of(self.curve, self.fits[0].law.direction)
        return _crossing([gains_of(fit) for fit in self.fits], self.fits, sign, from_below=1e-2)


def outlooks(
    curve_fits: Sequence[CurveFit],
) -> tuple[dict[int, Outlook], list[tuple[list[CurveFit], Comparison]]]:
    """Forecasting laws for each curve, by its place in the sequence, and the comparisons that chose
    them: one for all curves of a metric and direction that have a shape for a law."""
    groups: dict[tuple, list[int]] = {}
    for i, curve_fit in enumerate(curve_fits):
        names = rivals(curve_fit)
        groups.setdefault((curve_fit.curve.metric, curve_fit.law.direction, names), []).append(i)
    found, comparisons = {}, []
    for (*_, names), members in groups.items():
        laws = [LAWS[name] for name in names]
        shaped = [i for i in members if not curve_fits[i].verdict.has_no_law] or members
        usable = [curve_fits[i].curve.measured for i in shaped]
        usable = [points for points in usable if (points[1] > 0).all()]
        comparison = None
        if usable:
            with suppress(UserError):  # too short: all families stay in
                comparison = compare(usable, laws)
        if comparison:
            comparisons.append(([curve_fits[i] for i in members], comparison))
            laws = contenders(comparison)
            laws = saturating_first(laws, comparison, [curve_fits[i].curve for i in members])
        for i in members:
            found[i] = Outlook(curve_fits[i].curve, laws)
    return found, comparisons


def rivals(curve_fit: CurveFit) -> tuple[str, ...]:
    """Names of the laws that may take part: those with many coefficients for long curves alone."""
    sizes, direction = len({p.x for p in curve_fit.curve.points}), curve_fit.law.direction
    more = (n for n in MORE[direction] if LAWS[n].num_parameters + SPARE <= sizes)
    return (*RIVALS[direction], *more)


def contenders(comparison: Comparison) -> list[Law]:
    """The best family, and those that the data cannot distinguish from it."""
    enough = len(comparison.families[0].predictions) >= ENOUGH
    return as_good(comparison, TIMES_THE_BEST if enough else math.inf)


def overtakes(first: Outlook, second: Outlook) -> Crossing | None:
    """Where the second curve becomes better than the first and stays so; None without laws."""
    if not first.fits or not second.fits:
        return None

    def gains_of(one: Fit, two: Fit) -> Gains:
        size = min(len(one.replicates), len(two.replicates))
        return lambda log_x, drawn: (
            _log_values(two, log_x, drawn)[:size] - _log_values(one, log_x, drawn)[:size]
        )

    pairs = _by_family([first, second])
    fits = [fit for pair in pairs for fit in pair]
    sign = sign_of(first.curve, first.fits[0].law.direction)
    return _crossing([gains_of(*pair) for pair in pairs], fits, sign)


# How much higher, in logs, one law is than another at log sizes (G,), (R, G): of the replicates if
# asked for them, else of the fits themselves, (1, G).
Gains = Callable[[np.ndarray, bool], np.ndarray]


def _log_values(fit: Fit, log_x: np.ndarray, drawn: bool) -> np.ndarray:
    return fit.law.log_value(fit.replicates if drawn else fit.theta[None], log_x, fit.frame)


def _by_family(of: Sequence[Outlook]) -> list[tuple[Fit, ...]]:
    """The fits of several curves by each law that takes part in all; without one, the best ones."""
    by_law = [{fit.law.name: fit for fit in one.fits} for one in of]
    common = [name for name in by_law[0] if all(name in fits for fits in by_law)]
    return [tuple(fits[name] for fits in by_law) for name in common] or [
        tuple(one.fits[0] for one in of)
    ]


def _crossing(
    families: Sequence[Gains], fits: Sequence[Fit], sign: int, *, from_below: float = 1.0
) -> Crossing:
    """The last change from worse to better on a grid from the smallest fitted size (times
    `from_below`) to REACH times the largest: the first family's, and over the replicates of all."""
    low = math.log(min(fit.x.min() for fit in fits) * from_below)
    grid = np.linspace(low, math.log(max(fit.x.max() for fit in fits) * REACH), 400)

    def last_change(gains: np.ndarray) -> np.ndarray:
        """(R, G) -> (R,): log size, nan if there is none or the change is undone."""
        gains = np.nan_to_num(sign * gains, nan=-np.inf)
        better = gains > 0
        rises = ~better[:, :-1] & better[:, 1:]
        place = np.where(rises.any(1) & better[:, -1], grid.size - 2 - rises[:, ::-1].argmax(1), -1)
        row = np.arange(len(gains))
        before, after = gains[row, place], gains[row, place + 1]
        share = np.nan_to_num(-before / (after - before), nan=0.5)
        return np.where(place >= 0, grid[place] + share * (grid[1] - grid[0]), np.nan)

    with np.errstate(invalid="ignore", divide="ignore"):
        here = last_change(families[0](grid, False))[0]
        spread = np.concatenate([last_change(gains(grid, True)) for gains in families])
    known = spread[np.isfinite(spread)]
    share = len(known) / len(spread)
    if math.isnan(here) or not len(known):
        return Crossing(None, None, None, share)
    low, high = np.exp(np.quantile(known, TAILS))
    return Crossing(float(np.exp(here)), float(low), float(high), share)


def chance_of_best(outlook: Mapping[str, Outlook], x: float, direction: int) -> dict[str, float]:
    """Share of bootstrap replicates, over all families, in which each data set is the best at x,
    ties shared."""
    named = {name: one for name, one in outlook.items() if one.fits}
    if not named:
        return {}
    first, *_ = named.values()
    sign = sign_of(first.curve, direction)
    shares = []
    for fits in _by_family(list(named.values())):
        size = min(len(fit.replicates) for fit in fits)
        values = [fit.log_values(np.array([x]), fit.replicates[:size])[:, 0] for fit in fits]
        drawn = sign * np.nan_to_num(np.array(values), nan=-sign * np.inf)
        won = drawn == drawn.max(0)
        shares.append((won / won.sum(0)).mean(1))
    return {name: float(share) for name, share in zip(named, np.mean(shares, 0), strict=True)}
