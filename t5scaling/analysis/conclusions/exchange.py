"""What pretraining is worth in finetuning data, between the pools that were measured.

Effective data are read off between the runs without pretraining in the pools. A joint law gives a
rate of exchange, which is reported only if the law meets the measurements: its residuals are not
above the noise of a point (F test).
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer, worth_it
from t5scaling.analysis.conclusions.next_experiment import NextRun
from t5scaling.analysis.fitting.compare import Comparison, compare
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.fitting.significance import SIGNIFICANCE, TAILS, f_tail
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError


@dataclass(frozen=True)
class Exchange:
    """A joint law over all pools of a place, at one point: how many finetuning tokens a
    pretraining token replaces there.

    rate, low, high: d L / d D_p over d L / d D_f. doubling: by how much D_f must be multiplied for
    what doubling D_p brings (inf if no D_f brings it). miss: RMS residual of the law over its
    degrees of freedom. noise: standard deviation of a point over all pools (taken for one).
    fits_points: whether the law meets its points; next_runs: for that law, none if it does not.
    """

    place: Place
    metric: str
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
    fits_points: bool
    next_runs: tuple[NextRun, ...] = ()


def exchange(curve_fits: Sequence[CurveFit], pool_sizes: Sequence[float]) -> Exchange:
    """From curves that differ in the finetuning pool alone, at their largest sizes.

    Args:
      pool_sizes: D_f of each curve, in the unit of x.

    Raises:
      UserError: too few points, or a score (the joint laws fall with data).
    """
    rows = [
        (p.x, pool, p.value)
        for curve_fit, pool in zip(curve_fits, pool_sizes, strict=True)
        for p in curve_fit.curve.points
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
    low, high = np.quantile(rates, TAILS, method="inverted_cdf")
    curve = curve_fits[0].curve
    return Exchange(
        curve.place.beside_pool, curve.metric, fit, float(first.max()), float(second.max()),
        float(marginal_rate(fit, at, fit.theta[None])[0]), float(low), float(high),
        _doubling(fit, at), comparison, *_lack_of_fit(fit, noises(curve_fits)),
    )  # fmt: skip


def noises(curve_fits: Sequence[CurveFit]) -> list[tuple[float, int]]:
    """(standard deviation, degrees of freedom) of a point of each curve, where it is known."""
    return [(v.noise, max(v.noise_df, 1)) for v in (c.verdict for c in curve_fits) if v.noise]


def _lack_of_fit(fit: Fit, known: Sequence[tuple[float, int]]) -> tuple[float, float, bool]:
    return lack_of_fit(fit.y - fit.predict(fit.x), fit.law, known)


def lack_of_fit(
    residuals: np.ndarray, law: Law, known: Sequence[tuple[float, int]]
) -> tuple[float, float, bool]:
    """(RMS residual, noise of a point, whether the first is no larger than the second makes it)."""
    freedom = max(residuals.size - law.num_parameters, 1)
    miss = float(np.sqrt(np.sum(residuals**2) / freedom))
    if not known:
        return miss, 0.0, False
    sigmas, dfs = np.array(known).T
    noise = float(np.sqrt(np.average(sigmas**2, weights=dfs)))
    return miss, noise, f_tail((miss / noise) ** 2, freedom, dfs.sum()) >= SIGNIFICANCE


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

    place: Place
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
    pools = [(size, curve_fit) for size, curve_fit in pools if curve_fit.curve.baseline]
    sizes = np.log([size for size, _ in pools])
    base = np.array(
        [np.mean([p.value for p in curve_fit.curve.baseline]) for _, curve_fit in pools]
    )
    if len(pools) < 2 or (np.diff(base) >= 0).any() or not (base > 0).all():
        return []

    def factor(i: int, gain: float) -> float:
        loss = base[i] - gain
        if loss < base[-1]:
            return math.inf
        return float(np.exp(np.interp(-np.log(loss), -np.log(base), sizes) - sizes[i]))

    found = []
    for i, (size, curve_fit) in enumerate(pools[:-1]):
        gain = worth_it(curve_fit)
        if gain.answer is Answer.YES and gain.numbers:
            largest = max(p.x for p in curve_fit.curve.points)
            factors = (factor(i, value) for value in gain.numbers)
            place = curve_fit.curve.place.beside_pool
            found.append(Transfer(place, size, largest, *factors, reach=pools[-1][0] / size))
    return found
