"""Intervals of a fit: how far its numbers could be off, in four ways.

- "noise" (the default), a parametric bootstrap on log values. Resampling 3 or 4 points with
  replacement repeats points until the law is not determined any more, and resampling their
  residuals draws from a handful of numbers that the fit has already shrunk; so each replicate adds
  fresh normal noise to the fitted curve and refits it. The noise's scale rests on few degrees of
  freedom: every replicate draws its own from the scaled inverse chi-squared distribution, which
  gives Student's t in the linear case.
- "points": points are resampled with replacement. Assumes nothing of the noise, needs many points.
- "seeds": whole seeds are resampled with replacement, each with its points at all sizes. Right
  where a seed moves a whole curve up or down, as one pretraining run with many checkpoints does;
  with 2 or 3 seeds there are only 3 or 10 such samples, and intervals come out too narrow.
- "profile": all values of a coefficient for which the best fit of the others is still good enough,
  by the likelihood ratio with an F distribution for the small sample. Its ends are open where the
  points do not bound a coefficient at all.

The band of predictions includes the noise of a new measurement in all four.
"""

import math
from collections.abc import Callable

import numpy as np

from t5scaling.analysis.fitting.least_squares import huber, minimise
from t5scaling.analysis.fitting.problem import Problem, refit, residual_functions
from t5scaling.analysis.fitting.significance import TAILS, student_quantile
from t5scaling.errors import UserError, nearest

INTERVALS = ("noise", "points", "seeds", "profile")
REPLICATES = 500
PROFILE_VALUES = 48  # per profile; its ends are interpolated between them


def check_kind(kind: str, seeds: np.ndarray | None) -> None:
    """Raises UserError for a kind that is unknown, or that the points cannot give."""
    if kind not in INTERVALS:
        raise UserError(f"intervals from {kind!r}: unknown{nearest(kind, INTERVALS)}")
    if kind == "seeds" and (seeds is None or len(set(seeds)) < 2):
        raise UserError("intervals over seeds need a seed for each point, and at least 2 of them")


def bootstrap(
    problem: Problem,
    theta: np.ndarray,
    sigma: float,
    df: int,
    *,
    kind: str = "noise",
    seeds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Refits REPLICATES copies of the points; seeded, so that results repeat.

    Returns:
      (thetas (R, P), noise of a new point (R,)).
    """
    rng = np.random.default_rng(0)
    count = len(problem.log_y)
    scale = sigma * np.sqrt(df / rng.chisquare(df, REPLICATES)) if df else np.zeros(REPLICATES)
    noise = rng.standard_normal((REPLICATES, count)) * scale[:, None]
    new_noise = rng.standard_normal(REPLICATES) * scale
    starts = problem.starts()
    # Beside the fit itself. Starts of laws with many coefficients are dear, and mostly end in it.
    more = 3 if problem.law.num_parameters < 5 else 1
    first = np.vstack([theta, starts[:: max(1, len(starts) // more)][:more]])
    factors = None
    if kind in ("points", "seeds"):
        curves = np.broadcast_to(problem.log_y, noise.shape)
        members = np.arange(count) if kind == "points" else seeds
        factors = np.sqrt(_resampled(problem, members, rng))
    else:
        if problem.scale is not None:
            noise = noise / problem.scale
        # An asymmetric loss draws its law to one side of the points, not through their middle.
        noise = noise - problem.law.direction * _expectile(problem.worse_counts) * scale[:, None]
        curves = problem.log_values(theta) + noise
    thetas, _, _ = refit(problem, curves, first, factors, tolerance=1e-4, max_iterations=80)
    return thetas, new_noise


def _resampled(problem: Problem, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each point counts in each replicate, (REPLICATES, N). Draws that leave fewer
    places than the law has coefficients are drawn again."""
    groups, where = np.unique(members, return_inverse=True)
    _, place = np.unique(np.atleast_2d(problem.log_x), axis=1, return_inverse=True)
    least = min(problem.law.num_parameters, place.max() + 1)
    drawn = []
    while len(drawn) < REPLICATES:
        counts = np.bincount(rng.integers(len(groups), size=len(groups)), minlength=len(groups))
        if len(np.unique(place[counts[where] > 0])) >= least:
            drawn.append(counts[where])
    return np.array(drawn, float)


def _expectile(worse_counts: float) -> float:
    """Where the loss with this weight for worse points lies in standard normal noise, counted
    upwards to the better side."""
    if worse_counts == 1:
        return 0.0
    low, high = -10.0, 10.0
    for _ in range(60):
        m = (low + high) / 2
        density, above = (
            math.exp(-m * m / 2) / math.sqrt(2 * math.pi),
            0.5 * math.erfc(m / math.sqrt(2)),
        )
        better = density - m * above  # mean of what lies above m
        worse = density + m * (1 - above)
        low, high = (m, high) if better > worse_counts * worse else (low, m)
    return m


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


def _constrained(problem, theta, replicates, quantity, goals, unit):
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
    def residuals_of(theta, targets):
        held = stiffness * (targets[:, -1] - quantity(theta))
        return np.column_stack([plain(theta, targets[:, :-1]), held])

    def slopes_of(theta, targets):
        own = plain_slopes(theta, targets[:, :-1])
        step = 1e-6
        columns = [
            (quantity(theta + shift) - quantity(theta - shift)) / (2 * step)
            for shift in step * np.eye(theta.shape[1])
        ]
        held = stiffness * np.stack(columns, axis=-1)[:, None, :]
        return np.concatenate([own, np.nan_to_num(held, posinf=0, neginf=0)], axis=1)

    with np.errstate(all="ignore"):
        found = minimise(
            residuals_of, slopes_of, targets, starts, lower, upper, delta=problem.delta,
            tolerance=1e-5, max_iterations=60,
        )  # fmt: skip
    values = quantity(found.theta).reshape(len(goals), per_goal)
    costs = _objective(problem, found.theta).reshape(len(goals), per_goal)
    total = costs + huber(stiffness * (goals[:, None] - values), problem.delta)
    pick = np.where(np.isfinite(total), total, np.inf).argmin(1)
    rows = np.arange(len(goals))
    return values[rows, pick], costs[rows, pick]


def _objective(problem: Problem, thetas: np.ndarray) -> np.ndarray:
    residuals_of, _ = residual_functions(problem)
    curves = np.broadcast_to(problem.log_y, (len(thetas), len(problem.log_y)))
    with np.errstate(all="ignore"):
        return huber(residuals_of(thetas, curves), problem.delta).sum(-1)


def _limit(problem: Problem, sigma: float, df: int) -> float:
    """How much the objective may rise: half of t^2 sigma^2 for squares. Huber's loss is no log
    likelihood of normal noise; its likelihood ratio is scaled by E[psi^2] / E[psi'] (Huber 1981,
    section 7.10)."""
    from scipy.stats import norm

    quantile = student_quantile(df) ** 2 / 2
    ratio = problem.delta / sigma if sigma else math.inf
    if math.isinf(ratio):
        return quantile * sigma**2
    inside = 1 - 2 * norm.sf(ratio)
    squares = inside - 2 * ratio * norm.pdf(ratio) + ratio**2 * (1 - inside)
    return quantile * sigma**2 * squares / inside
