"""What is expected at D_p = X, and where one curve overtakes another.

Laws are fitted to all points. Families that cannot be distinguished from the best one on sizes that
they were not fitted to (paired test, and less than TIMES_THE_BEST times its error), and have no
more coefficients, all take part: the value is the best one's, the interval spans those of all.
Neither passes the end of the metric's scale. Where two data sets cross, and where a data set and
the baseline: both curves' laws are solved for it, in each bootstrap replicate, up to REACH times
the largest fitted size.
"""

import math
from collections.abc import Mapping, Sequence
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

RIVALS = {1: ("log", "ceiling", "hill"), -1: ("power", "m1", "m3")}
MORE = {1: (), -1: ("m4", "bnsl")}  # for curves with SPARE sizes more than they have coefficients
SPARE = 4
REACH = 100.0
TIMES_THE_BEST = 2.0


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


def points_of(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a curve's points, (N,) each."""
    x, y = np.array([(p.x, p.value) for p in curve.points], float).T
    return x, y


class Outlook:
    """The laws of one curve that take part in forecasts, the best first, each fitted to all its
    points (`fits`)."""

    def __init__(self, curve: Curve, laws: Sequence[Law]):
        self.curve = curve
        self.fits: list[Fit] = []
        self.note = ""
        x, y = points_of(curve)
        for law in laws:
            try:
                self.fits.append(
                    fit_curve(law, x, y, hold_out=0, x_name=curve.x_name, y_name=curve.metric)
                )
            except UserError as error:
                self.note = self.note or str(error)

    @property
    def best(self) -> Fit | None:
        return self.fits[0] if self.fits else None

    def at(self, x: float) -> Forecast | None:
        """None if no law could be fitted."""
        if not self.fits:
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
        fit, base = self.best, [p.value for p in self.curve.baseline]
        level = math.log(max(np.mean(base), 1e-300))
        noise = fit.replicate_noise / math.sqrt(len(base))
        return _crossing(
            lambda log_x, thetas: fit.law.log_value(thetas, log_x, fit.frame)
            - (level + (noise[:, None] if thetas.ndim == 2 else 0.0)),
            fit, fit, sign_of(self.curve, fit.law.direction), from_below=1e-2,
        )  # fmt: skip


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
        usable = [points_of(curve_fits[i].curve) for i in shaped]
        usable = [(x, y) for x, y in usable if (y > 0).all()]
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
    """The best family, and those with no more coefficients that the data cannot distinguish."""
    best, *others = as_good(comparison, TIMES_THE_BEST)
    return [best, *(law for law in others if law.num_parameters <= best.num_parameters)]


def overtakes(first: Outlook, second: Outlook) -> Crossing | None:
    """Where the second curve becomes better than the first and stays so; None without laws."""
    if not first.fits or not second.fits:
        return None
    one, two = first.best, second.best
    size = min(len(one.replicates), len(two.replicates))
    both = np.concatenate([one.replicates[:size], two.replicates[:size]], axis=1)
    split = one.law.num_parameters

    def difference(log_x, thetas):
        if thetas is None:
            mine, other = one.theta, two.theta
        else:
            mine, other = both[:, :split], both[:, split:]
        return two.law.log_value(other, log_x, two.frame) - one.law.log_value(
            mine, log_x, one.frame
        )

    return _crossing(difference, one, two, sign_of(first.curve, one.law.direction))


def _crossing(difference, one: Fit, two: Fit, sign: int, *, from_below: float = 1.0) -> Crossing:
    """The last change from worse to better on a grid from the smallest fitted size (times
    `from_below`) to REACH times the largest."""
    low = math.log(min(one.x.min(), two.x.min()) * from_below)
    grid = np.linspace(low, math.log(max(one.x.max(), two.x.max()) * REACH), 400)

    def last_change(values: np.ndarray) -> np.ndarray:
        """(R, G) -> (R,): log size, nan if there is none or the change is undone."""
        better = np.nan_to_num(sign * values, nan=-np.inf) > 0
        rises = ~better[:, :-1] & better[:, 1:]
        place = np.where(rises.any(1) & better[:, -1], grid.size - 2 - rises[:, ::-1].argmax(1), -1)
        return np.where(place >= 0, (grid[place] + grid[place + 1]) / 2, np.nan)

    theta = one.theta if one is two else None
    thetas = one.replicates if one is two else ()
    with np.errstate(invalid="ignore"):
        here = last_change(difference(grid, theta)[None])[0]
        spread = last_change(difference(grid, thetas))
    known = spread[np.isfinite(spread)]
    share = len(known) / len(spread)
    if math.isnan(here) or not len(known):
        return Crossing(None, None, None, share)
    tails = np.quantile(known, TAILS)
    return Crossing(float(np.exp(here)), *(float(v) for v in np.exp(tails)), share)


def chance_of_best(outlook: Mapping[str, Outlook], x: float, direction: int) -> dict[str, float]:
    """Share of bootstrap replicates in which each data set is the best at x, ties shared."""
    names = [name for name, one in outlook.items() if one.fits]
    drawn = np.array(
        [outlook[n].best.log_values(np.array([x]), outlook[n].best.replicates)[:, 0] for n in names]
    )
    sign = sign_of(outlook[names[0]].curve, direction) if names else 1
    won = (sign * drawn).argmax(0) if names else np.array([])
    return {name: float(np.mean(won == i)) for i, name in enumerate(names)}
