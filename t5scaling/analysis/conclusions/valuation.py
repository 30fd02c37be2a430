"""What pretraining data are worth: the guide of Isik et al., section 3.5, as decisions.

The paper publishes the guide in outline and no threshold; all thresholds here are OURS:

- Is pretraining worth it? The largest size against runs without pretraining, with the noise of a
  point (Student's t): yes if the whole interval of the gain is above the smallest difference with
  a meaning, no if all of it is below.
- Do these data suffice, that is, match the task well enough for a law? Yes if the curve's verdict
  is predictable; no if it is nonmonotonic, inverse, trendless or unpredicted.
- What at D_p = X? Laws are fitted to all points. Families that cannot be told from the best one on
  held-out points (paired test at 5 %, and less than twice its error) all take part: the value is
  the best one's, the interval spans those of all.
- Where do two data sets cross, and where a data set and the baseline? Both curves' laws are solved
  for it, in each bootstrap replicate, up to REACH times the largest fitted size.
- What is pretraining worth in finetuning data? Effective data are read off between the runs without
  pretraining in the pools measured. A joint law gives a rate of exchange, told only if the law
  meets the measurements: its residuals are not above the noise of a point (F test at 5 %).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.fitting.compare import Comparison, compare, p_value
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.fitting.intervals import LEVEL
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.metrics import LOWER_IS_BETTER, resolution_of
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError

RIVALS = {1: ("log", "ceiling", "hill"), -1: ("power", "m1", "m3")}
REACH = 100.0
TIMES_THE_BEST = 2.0
SHAPELESS = frozenset({"nonmonotonic", "inverse", "trendless"})  # no law is for such curves

YES, NO, OPEN = "yes", "no", "cannot tell"


@dataclass(frozen=True)
class Decision:
    """An answer with its reason; low to high: the interval of `value`, all None without numbers."""

    answer: str
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Forecast:
    """What is expected at x. decades: beyond the largest measured size. families: whose interval
    it spans, the best first. inner_low, inner_high: the best one's own interval."""

    x: float
    value: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    decades: float
    families: tuple[Law, ...]


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


def sign_of(curve: Curve, direction: int) -> int:
    """+1 if more is better."""
    return -1 if curve.metric in LOWER_IS_BETTER or direction < 0 else 1


def worth_it(this: CurveFit) -> Decision:
    """Is pretraining on the most of these data better than none?"""
    curve = this.curve
    if not curve.baseline:
        return Decision(OPEN, "there is no run without pretraining")
    largest = max(p.x for p in curve.points)
    best = [p.value for p in curve.points if p.x == largest]
    base = [p.value for p in curve.baseline]
    gain = sign_of(curve, this.law.direction) * (np.mean(best) - np.mean(base))
    noise, df = this.verdict.noise, max(this.verdict.noise_df, 1)
    if not noise and this.verdict.word is None:
        return Decision(OPEN, "too few sizes to know the noise of a point", float(gain))
    from scipy.stats import t

    half = t.ppf(0.5 + LEVEL / 2, df) * noise * math.sqrt(1 / len(best) + 1 / len(base))
    low, high, least = gain - half, gain + half, resolution_of(curve.metric)
    answer = YES if low > least else NO if high < max(least, 1e-12) else OPEN
    words = {YES: "the whole interval is a gain", NO: "none of the interval is a gain that counts",
             OPEN: "the interval holds gains and none"}  # fmt: skip
    return Decision(
        answer,
        f"{gain:+.3g} over no pretraining at the largest size ({low:+.3g} to {high:+.3g}): "
        f"{words[answer]}",
        float(gain), float(low), float(high),
    )  # fmt: skip


def suffices(this: CurveFit) -> Decision:
    """Do these data match the task well enough for a law to be trusted?"""
    word = this.verdict.word
    if word == "predictable":
        return Decision(YES, f"the curve is predictable: {this.verdict.reason}")
    if word in SHAPELESS or word == "unpredicted":
        return Decision(NO, f"the curve is {word}: {this.verdict.reason}")
    return Decision(OPEN, this.verdict.reason)


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
        place = np.array([x])
        ends = [[float(end[0]) for end in fit.band(place)] for fit in self.fits]
        return Forecast(
            x=x, value=float(self.best.predict(place)[0]),
            low=min(low for low, _ in ends), high=max(high for _, high in ends),
            inner_low=ends[0][0], inner_high=ends[0][1],
            decades=float(np.log10(x / self.best.x.max())),
            families=tuple(fit.law for fit in self.fits),
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
    for i, this in enumerate(curve_fits):
        groups.setdefault((this.curve.metric, this.law.direction), []).append(i)
    found, comparisons = {}, []
    for (_, direction), members in groups.items():
        laws = [LAWS[name] for name in RIVALS[direction]]
        shaped = [i for i in members if curve_fits[i].verdict.word not in SHAPELESS] or members
        usable = [points_of(curve_fits[i].curve) for i in shaped]
        usable = [(x, y) for x, y in usable if (y > 0).all()]
        comparison = None
        if usable:
            with suppress(UserError):  # too short: all families stay in
                comparison = compare(usable, laws)
        if comparison:
            comparisons.append(([curve_fits[i] for i in members], comparison))
            laws = contenders(comparison)
        for i in members:
            found[i] = Outlook(curve_fits[i].curve, laws)
    return found, comparisons


def contenders(comparison: Comparison) -> list[Law]:
    """The best family and those that the data cannot tell from it."""
    best, *others = comparison.families
    kept = [best.law]
    for other in others:
        pair = Comparison((best, other), p_value([best, other]))
        if pair.winner is None and other.error <= TIMES_THE_BEST * best.error:
            kept.append(other.law)
    return kept


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
    tails = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
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


@dataclass(frozen=True)
class Exchange:
    """A joint law at one point: how many finetuning tokens a pretraining token replaces there.

    rate, low, high: d L / d D_p over d L / d D_f. doubling: by how much D_f must be multiplied for
    what doubling D_p brings (inf if no D_f brings it). miss: RMS residual of the law over its
    degrees of freedom. noise: standard deviation of a point over all pools (taken for one). told:
    whether the law meets its points.
    """

    fit: Fit
    pretrain: float
    finetune: float
    rate: float
    low: float
    high: float
    doubling: float
    comparison: Comparison | None
    miss: float
    noise: float
    told: bool


def exchange(curve_fits: Sequence[CurveFit], pool_sizes: Sequence[float]) -> Exchange:
    """From curves that differ in the finetuning pool alone, at their largest sizes.

    Args:
      pool_sizes: D_f of each curve, in the unit of x.

    Raises:
      UserError: too few points, or a score (the joint laws fall with data).
    """
    rows = [
        (p.x, pool, p.value)
        for this, pool in zip(curve_fits, pool_sizes, strict=True)
        for p in this.curve.points
    ]
    first, second, y = np.array(rows, float).T
    if curve_fits[0].law.direction > 0:
        raise UserError(f"{curve_fits[0].curve.metric}: the joint laws are of losses")
    x = np.array([first, second])
    laws, comparison = [LAWS["zhang"], LAWS["zhang-additive"]], None
    with suppress(UserError):
        comparison = compare([(x, y)], laws)
        laws = [family.law for family in comparison.families]
    fit = fit_curve(laws[0], x, y, hold_out=0)
    at = np.array([[first.max()], [second.max()]])
    rates = marginal_rate(fit, at, fit.replicates)
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Exchange(
        fit, float(first.max()), float(second.max()),
        float(marginal_rate(fit, at, fit.theta[None])[0]), float(low), float(high),
        _doubling(fit, at), comparison, *_lack_of_fit(fit, curve_fits),
    )  # fmt: skip


def _lack_of_fit(fit: Fit, curve_fits: Sequence[CurveFit]) -> tuple[float, float, bool]:
    """(RMS residual, noise of a point, whether the first is no larger than the second makes it)."""
    freedom = max(fit.y.size - fit.law.num_parameters, 1)
    miss = float(np.sqrt(np.sum((fit.y - fit.predict(fit.x)) ** 2) / freedom))
    known = [(v.noise, max(v.noise_df, 1)) for v in (c.verdict for c in curve_fits) if v.noise]
    if not known:
        return miss, 0.0, False
    sigmas, dfs = np.array(known).T
    noise = float(np.sqrt(np.average(sigmas**2, weights=dfs)))
    from scipy.stats import f

    return miss, noise, bool(f.sf((miss / noise) ** 2, freedom, dfs.sum()) >= 0.05)


def marginal_rate(fit: Fit, at: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """(d L / d D_p) / (d L / d D_f) at a point (2, 1), (R,)."""
    step, slopes = 1e-4, []
    for i in (0, 1):
        shift = np.ones((2, 1))
        shift[i] += step
        up, down = fit.log_values(at * shift, thetas), fit.log_values(at / shift, thetas)
        slopes.append((up - down)[:, 0] / at[i, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(slopes[0] / slopes[1], nan=0.0, posinf=np.inf)


def _doubling(fit: Fit, at: np.ndarray) -> float:
    goal = fit.log_values(at * np.array([[2.0], [1.0]]))[0]
    factors = np.geomspace(1, 1e6, 2000)
    reached = fit.log_values(at * np.stack([np.ones_like(factors), factors]))
    enough = fit.law.direction * (reached - goal) >= 0
    return float(factors[enough.argmax()]) if enough.any() else math.inf


@dataclass(frozen=True)
class Transfer:
    """Effective data (Hernandez et al., arXiv 2102.01293): how many times its finetuning data a
    model without pretraining needs for what pretraining on `pretrain` reaches in a pool.

    factor, low, high: (D_f + D_T) / D_f, inf beyond `reach`, which is the largest pool over this
    one. The interval is that of the gain in the pool (`worth_it`); the runs without pretraining in
    the other pools are taken as they were measured.
    """

    pool: float
    pretrain: float
    factor: float
    low: float
    high: float
    reach: float


def transfers(curve_fits: Sequence[CurveFit], pool_sizes: Sequence[float]) -> list[Transfer]:
    """Of every pool but the largest where pretraining is worth it, from losses that differ in the
    pool alone.

    The loss without pretraining is a power law of D_f between two neighbouring pools. Nothing is
    said without two pools, or where that loss does not fall from each to the next.
    """
    pools = sorted(zip(pool_sizes, curve_fits, strict=True), key=lambda pair: pair[0])
    pools = [(size, this) for size, this in pools if this.curve.baseline]
    sizes = np.log([size for size, _ in pools])
    base = np.array([np.mean([p.value for p in this.curve.baseline]) for _, this in pools])
    if len(pools) < 2 or (np.diff(base) >= 0).any() or not (base > 0).all():
        return []

    def factor(i: int, gain: float) -> float:
        loss = base[i] - gain
        if loss < base[-1]:
            return math.inf
        return float(np.exp(np.interp(-np.log(loss), -np.log(base), sizes) - sizes[i]))

    found = []
    for i, (size, this) in enumerate(pools[:-1]):
        gain = worth_it(this)
        if gain.answer == YES:
            largest = max(p.x for p in this.curve.points)
            factors = (factor(i, value) for value in (gain.value, gain.low, gain.high))
            found.append(Transfer(size, largest, *factors, reach=pools[-1][0] / size))
    return found
