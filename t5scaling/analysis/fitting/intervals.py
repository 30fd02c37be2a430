"""Intervals of a fit: how far its numbers could be off, in four ways.

- "noise" (the default), a parametric bootstrap on log values. Resampling 3 or 4 points with
  replacement repeats points until the law is not determined any more, and resampling their
  residuals draws from a handful of numbers that the fit has already shrunk; so each replicate adds
  fresh normal noise to the fitted curve and refits it. The noise is that of `noise`: it may grow
  with size, be correlated along the checkpoints of one run, or shift whole seeds, as far as the
  points show it. Its scale rests on few degrees of freedom: every replicate draws its own from the
  scaled inverse chi-squared distribution, which gives Student's t in the linear case.
- "points": points are resampled with replacement. Assumes nothing of the noise but that it is
  independent, needs many points.
- "seeds": whole seeds are resampled, each with its points at all sizes: the loss of every seed's
  points has a random weight. The weights are shares of gamma variables (the Bayesian bootstrap of
  Rubin 1981 has shape 1) with the shape that gives a mean over S seeds the variance s^2 / S, which
  resampling makes (S - 1) / S as large: 1 - 2 / S. With 2 or 3 seeds intervals are a guess all the
  same. A seed that two curves share has the same draws in both, so that they move together.
- "profile": all values of a coefficient for which the best fit of the others is still good enough,
  by the likelihood ratio with an F distribution for the small sample. Its ends are open where the
  points do not bound a coefficient at all. Noise counts as independent and even.

Each curve has random numbers of its own, from its points; they depend neither on units nor on other
curves, and repeat. Replicates of two curves may thus be paired as if drawn independently.

The band of predictions includes the noise of a new measurement in all four.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t5scaling.analysis.fitting.least_squares import huber, huber_moments, minimise
from t5scaling.analysis.fitting.noise import Noise
from t5scaling.analysis.fitting.problem import Problem, refit, residual_functions, side_weights
from t5scaling.analysis.fitting.significance import TAILS, student_quantile
from t5scaling.errors import UserError, nearest

INTERVALS = ("noise", "points", "seeds", "profile")
REPLICATES = 500
PROFILE_VALUES = 48  # per profile; its ends are interpolated between them
OFFSET = 0.05  # of a replicate's last step, in standard errors of the coefficients
# Replicates of laws with so many parameters at most, or on so many points, start at the fit alone:
# 1 in 100 at most had a lower minimum elsewhere, against 1 in 5 of larger laws on fewer points.
FEW_PARAMETERS, MANY_POINTS = 4, 60
# Starts of a replicate that are followed to their end. Of those of a broken power law on 14 points
# 3.6 % had a lower minimum elsewhere, against 1.8 % with all 5 starts, at half of the time.
KEPT = 2


def check_kind(kind: str, seeds: np.ndarray | list | None) -> None:
    """Raises UserError for a kind that is unknown, or that the points cannot give."""
    if kind not in INTERVALS:
        raise UserError(f"intervals from {kind!r}: unknown{nearest(kind, INTERVALS)}")
    if kind == "seeds" and (seeds is None or len(set(seeds)) < 2):
        raise UserError("intervals over seeds need a seed for each point, and at least 2 of them")


class Replicates(NamedTuple):
    """thetas (R, P); noise (R,): error of a new point's log value at the centre; growth (R,): the
    error at other sizes is exp(growth * `Noise.places`) times as large."""

    thetas: np.ndarray
    noise: np.ndarray
    growth: np.ndarray


def bootstrap(
    problem: Problem,
    theta: np.ndarray,
    noise: Noise,
    *,
    kind: str = "noise",
    seeds: np.ndarray | None = None,
) -> Replicates:
    """Refits REPLICATES copies of the points."""
    rng = np.random.default_rng(_identity(problem))
    errors, new, growth = noise.draw(rng, REPLICATES)
    counts = None
    if kind in ("points", "seeds"):
        curves = np.broadcast_to(problem.log_y, errors.shape)
        counts = _resampled(problem, rng) if kind == "points" else _by_seed(seeds)
    else:
        if problem.scale is not None:
            errors = errors / problem.scale
        # An asymmetric loss draws its law to one side of the points, not through their middle.
        errors = errors - problem.law.direction * _middle(problem, noise.sigma)
        curves = problem.log_values(theta) + errors
    starts = _near(problem, theta, curves, counts)[:, None]
    if problem.law.num_parameters > FEW_PARAMETERS and len(problem.log_y) < MANY_POINTS:
        grid = problem.starts()
        others = np.vstack([theta, grid[:: max(1, len(grid) // 3)][:3]])
        others = np.broadcast_to(others, (len(curves), *others.shape))
        starts = np.concatenate([starts, others], axis=1)
    thetas, _, _ = refit(
        problem, curves, starts, counts, KEPT, tolerance=1e-4, offset=OFFSET, max_iterations=80
    )
    return Replicates(thetas, new, growth)


def _identity(problem: Problem) -> int:
    """A number that the points' shape makes, whatever their units."""
    log_x, log_y = np.atleast_2d(problem.log_x), problem.log_y[None]
    known = np.isfinite(log_x)  # -inf: no tokens of a source
    log_x = np.where(known, log_x, log_x[known].min() - 1.0)
    shape = [
        np.round((rows - rows.mean(1, keepdims=True)) / max(np.ptp(rows), 1e-300), 6) + 0.0
        for rows in (log_x, log_y)
    ]
    return zlib.crc32(np.concatenate(shape).tobytes())


def _near(
    problem: Problem, theta: np.ndarray, curves: np.ndarray, counts: np.ndarray | None
) -> np.ndarray:
    """About where the minima of many copies of the points are, (R, P): a few steps from the fit,
    with its derivatives and the average curvature of Huber's loss (one-step M-estimates; Bickel
    1975)."""
    residuals_of, slopes_of = residual_functions(problem)
    weigh = side_weights(problem)
    lower, upper = problem.law.bounds(problem.frame)
    free = (theta > lower + 1e-9) & (theta < upper - 1e-9)
    thetas = np.broadcast_to(theta, (len(curves), len(theta)))
    if not free.any():
        return thetas
    with np.errstate(all="ignore"):
        slopes = slopes_of(theta[None], problem.log_y[None])[0][:, free]
        for _ in range(5):
            residuals = residuals_of(thetas, curves)
            pull = np.clip(residuals, -problem.delta, problem.delta)
            share = max(float(np.mean(np.abs(residuals) <= problem.delta)), 1e-2)
            by = np.ones_like(pull) if weigh is None else weigh(residuals)
            by = by if counts is None else by * counts
            if counts is None and weigh is None:
                curvature = share * slopes.T @ slopes
            else:
                curvature = share * (slopes.T * by[:, None]) @ slopes
            curvature = curvature + 1e-6 * np.max(curvature) * np.eye(slopes.shape[1])
            step = np.linalg.solve(curvature, ((pull * by) @ slopes)[:, :, None])[:, :, 0]
            if not np.isfinite(step).all():
                break
            moved = np.array(thetas)
            moved[:, free] += np.clip(step, -1.0, 1.0)
            thetas = np.clip(moved, lower, upper)
    return thetas


def _resampled(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """How often each point counts in each replicate, (REPLICATES, N). Draws that leave fewer
    places than the law has coefficients are drawn again."""
    count = len(problem.log_y)
    _, place = np.unique(np.atleast_2d(problem.log_x), axis=1, return_inverse=True)
    place = place.ravel()
    least = min(problem.law.num_parameters, place.max() + 1)
    drawn = []
    while len(drawn) < REPLICATES:
        counts = np.bincount(rng.integers(count, size=count), minlength=count)
        if len(np.unique(place[counts > 0])) >= least:
            drawn.append(counts)
    return np.array(drawn, float)


def _by_seed(seeds: np.ndarray | None) -> np.ndarray:
    """Weight of each point in each replicate, (REPLICATES, N): the same for all points of a seed,
    from random numbers that the seed's label alone decides."""
    from scipy.special import gammaincinv

    labels, where = np.unique(np.asarray(seeds), return_inverse=True)
    shape = max(1 - 2 / len(labels), 0.25)  # two seeds would count all or nothing
    uniform = [
        np.random.default_rng(zlib.crc32(str(label).encode())).random(REPLICATES)
        for label in labels
    ]
    drawn = np.maximum(gammaincinv(shape, np.array(uniform)), 1e-12)
    return (drawn / drawn.mean(0)).T[:, where.ravel()]


def _middle(problem: Problem, sigma: float) -> float:
    """Where the loss puts its law in normal noise, from the middle upwards to the better side."""
    if problem.worse_counts == 1 or not sigma:
        return 0.0
    from scipy.optimize import root_scalar

    reach = problem.delta / sigma

    def above(m: float) -> float:
        """Mean of max(z - m, 0) of a standard normal z."""
        return math.exp(-m * m / 2) / math.sqrt(2 * math.pi) - m * math.erfc(m / math.sqrt(2)) / 2

    def pull(m: float) -> float:
        """Of what lies above m, less that of what lies below, both bounded by Huber's threshold."""
        better, worse = above(m), above(-m)
        if math.isfinite(reach):
            better, worse = better - above(m + reach), worse - above(-m + reach)
        return better - problem.worse_counts * worse

    return sigma * root_scalar(pull, bracket=(-10.0, 10.0)).root


def percentiles(draws: np.ndarray, transform=lambda v: v) -> tuple[np.ndarray, np.ndarray]:
    """Interval over axis 0; takes order statistics, so that infinities stay harmless."""
    low, high = np.quantile(draws, TAILS, axis=0, method="inverted_cdf")
    with np.errstate(over="ignore"):
        return transform(low), transform(high)


def profile(
    problem: Problem,
    theta: np.ndarray,
    replicates: np.ndarray,
    sigma: float,
    df: int,
    quantity: Callable[[np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """The interval of a quantity (thetas (..., P) -> (...)) by its profile likelihood.

    An end that the points do not bound is the quantity's most extreme value that was reached.
    """
    best = float(quantity(theta))
    seen = quantity(replicates)
    seen = seen[np.isfinite(seen)]
    if not df or not np.isfinite(best) or not len(seen) or np.ptp(seen) == 0:
        return best, best
    low, high = min(seen.min(), best), max(seen.max(), best)
    margin = 0.5 * (high - low)
    unit = max(np.quantile(seen, 0.95) - np.quantile(seen, 0.05), 1e-9 * (high - low))
    half = PROFILE_VALUES // 2
    steps = np.linspace(0, 1, half + 1)[1:] ** 2  # denser near the best value
    goals = np.concatenate(
        [best - steps * (best - low + margin), best + steps * (high - best + margin)]
    )
    reached, cost = _constrained(problem, theta, replicates, quantity, goals, unit)
    slack = cost - _objective(problem, theta[None])[0]
    limit = _limit(problem, sigma, df)
    ends = []
    for side in (slice(0, half), slice(half, None)):
        values = np.concatenate([[best], reached[side]])
        heights = np.concatenate([[0.0], slack[side]])
        over = np.flatnonzero(heights > limit)
        if not len(over):
            ends.append(float(values[np.argmax(np.abs(values - best))]))
            continue
        i = over[0]
        share = (limit - heights[i - 1]) / (heights[i] - heights[i - 1])
        ends.append(float(values[i - 1] + share * (values[i] - values[i - 1])))
    return ends[0], ends[1]


def _constrained(
    problem: Problem,
    theta: np.ndarray,
    replicates: np.ndarray,
    quantity: Callable[[np.ndarray], np.ndarray],
    goals: np.ndarray,
    unit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The best fits with the quantity held at each goal -> (values reached, objectives)."""
    plain, plain_slopes = residual_functions(problem)
    stiffness = 300 * min(problem.delta, 1.0) / unit
    lower, upper = problem.law.bounds(problem.frame)
    # Start where a replicate already has the wanted value.
    seen = np.where(np.isfinite(quantity(replicates)), quantity(replicates), np.inf)
    near = replicates[np.abs(seen[None] - goals[:, None]).argsort(1)[:, :3]]
    starts = np.concatenate([near, np.broadcast_to(theta, (len(goals), 1, len(theta)))], axis=1)
    starts = np.clip(starts.reshape(-1, len(theta)), lower, upper)
    count = len(problem.log_y)
    per_goal = len(starts) // len(goals)
    targets = np.column_stack(
        [np.broadcast_to(problem.log_y, (len(starts), count)), np.repeat(goals, per_goal)]
    )

    # The goal is one more residual. Within the linear part of Huber's loss it still pulls.
    def residuals_of(theta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        held = stiffness * (targets[:, -1] - quantity(theta))
        return np.column_stack([plain(theta, targets[:, :-1]), held])

    def slopes_of(theta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        own = plain_slopes(theta, targets[:, :-1])
        step = 1e-6
        columns = [
            (quantity(theta + shift) - quantity(theta - shift)) / (2 * step)
            for shift in step * np.eye(theta.shape[1])
        ]
        held = stiffness * np.stack(columns, axis=-1)[:, None, :]
        return np.concatenate([own, np.nan_to_num(held, posinf=0, neginf=0)], axis=1)

    side = side_weights(problem)

    def weigh(residuals: np.ndarray) -> np.ndarray:
        own = np.ones(residuals[:, :-1].shape) if side is None else side(residuals[:, :-1])
        return np.column_stack([own, np.ones(len(own))])

    with np.errstate(all="ignore"):
        found = minimise(
            residuals_of, slopes_of, targets, starts, lower, upper, delta=problem.delta,
            weigh=weigh, tolerance=1e-5, max_iterations=60,
        )  # fmt: skip
    values = quantity(found.theta).reshape(len(goals), per_goal)
    costs = _objective(problem, found.theta).reshape(len(goals), per_goal)
    total = costs + huber(stiffness * (goals[:, None] - values), problem.delta)
    pick = np.where(np.isfinite(total), total, np.inf).argmin(1)
    rows = np.arange(len(goals))
    return values[rows, pick], costs[rows, pick]


def _objective(problem: Problem, thetas: np.ndarray) -> np.ndarray:
    residuals_of, _ = residual_functions(problem)
    weigh = side_weights(problem)
    curves = np.broadcast_to(problem.log_y, (len(thetas), len(problem.log_y)))
    with np.errstate(all="ignore"):
        residuals = residuals_of(thetas, curves)
        losses = huber(residuals, problem.delta)
        return (losses if weigh is None else losses * weigh(residuals)).sum(-1)


def _limit(problem: Problem, sigma: float, df: int) -> float:
    """How much the objective may rise: half of t^2 sigma^2 for squares. Huber's loss is no log
    likelihood of normal noise; its likelihood ratio is scaled by E[psi^2] / E[psi'] (Huber 1981,
    section 7.10)."""
    quantile = student_quantile(df) ** 2 / 2
    ratio = problem.delta / sigma if sigma else math.inf
    if math.isinf(ratio):
        return quantile * sigma**2
    inside, squares = huber_moments(ratio)
    return float(quantile * sigma**2 * squares / inside)
