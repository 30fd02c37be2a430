"""Fits one law to one curve: Huber loss on log values, held-out points, bootstrap intervals.

Protocol (Isik et al., arXiv 2402.04177, section 4): the coefficients come from the 4 smallest
pretraining sizes and the rest is held out. With 4 sizes or fewer, the largest is held out. A
three-parameter law thus needs 4 sizes: 3 to fit and 1 to check (3 with `hold_out=0`).

Intervals are a parametric bootstrap on log values. Resampling 3 or 4 points with replacement
repeats points until the law is not determined any more, and resampling their residuals draws from
a handful of numbers that the fit has already shrunk; so each replicate instead adds fresh normal
noise to the fitted curve and refits it. The noise's scale comes from

- the residuals of the fit, sqrt(RSS / (n - P)), when n - P >= 2, or else
- the deviations of inner points from the straight line (in log D) between their neighbours,
  with as many degrees of freedom as there are inner points. Curvature counts as noise here:
  the interval errs on the wide side.

The scale itself is uncertain when it rests on 1 or 2 degrees of freedom: every replicate draws
its own from the scaled inverse chi-squared distribution, which gives Student's t in the linear
case. With 3 fitted sizes intervals are therefore very wide. That is what 3 sizes can say.
The band of predictions includes the noise of a new measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t5scaling.analysis.law import Frame, Law
from t5scaling.analysis.least_squares import Solution, minimise
from t5scaling.errors import UserError

LEVEL = 0.90
REPLICATES = 500
PROBLEMS_AT_ONCE = 8192  # more do not fit a processor's caches
FITTED_SIZES = 4  # the paper's protocol
# What is made small: the difference of log values; of values, over the largest fitted one; or of
# logs of what lies above the law's own floor (M2 of Alabdulmohsin et al., arXiv 2209.06640).
RESIDUALS = ("log", "value", "reducible")


@dataclass(frozen=True)
class HeldOutPoint:
    """A point that the fit has not seen. Errors are predicted minus measured."""

    x: float
    value: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.predicted - self.value

    @property
    def relative_error(self) -> float:
        return self.error / self.value

    @property
    def log_error(self) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log(self.predicted) - np.log(self.value))

    @property
    def inside(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    x, y: the fitted points; held_out: the others. coefficients: name -> (value, low, high), where
    a coefficient that overflows is inf. sigma: noise of one point on the log scale, resting on
    `noise_df` degrees of freedom. at_bound: in words, for each internal parameter on its bound.
    extrapolation: decades of x from the largest fitted to the largest held-out size.
    """

    law: Law
    x: np.ndarray
    y: np.ndarray
    delta: float
    theta: np.ndarray
    frame: Frame
    objective: float
    converged: bool
    coefficients: dict[str, tuple[float, float, float]]
    sigma: float
    noise_df: int
    replicates: np.ndarray  # (R, P)
    replicate_noise: np.ndarray  # (R,): each replicate's draw of the noise of a new point
    held_out: tuple[HeldOutPoint, ...]
    extrapolation: float
    at_bound: tuple[str, ...]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The law's value at x (any shape (N,), same unit as the fitted x)."""
        return np.exp(self.law.log_value(self.theta, np.log(np.asarray(x, float)), self.frame))

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the interval for a new measurement at each x."""
        log_value = self.law.log_value(self.replicates, np.log(np.asarray(x, float)), self.frame)
        return _interval(log_value + self.replicate_noise[:, None], np.exp)

    @property
    def held_out_sizes(self) -> tuple[HeldOutPoint, ...]:
        """One entry per held-out size, with the mean of its points as the value."""
        by_size: dict[float, list[HeldOutPoint]] = {}
        for point in self.held_out:
            by_size.setdefault(point.x, []).append(point)
        return tuple(
            replace(points[0], value=sum(p.value for p in points) / len(points))
            for points in by_size.values()
        )

    @property
    def held_out_error(self) -> float | None:
        """Root mean square of the held-out log errors; None if nothing was held out."""
        if not self.held_out:
            return None
        return float(np.sqrt(np.mean([point.log_error**2 for point in self.held_out])))


def fit_curve(
    law: Law,
    x: np.ndarray,
    y: np.ndarray,
    *,
    hold_out: int | None = None,
    delta: float | None = None,
    residual: str = "log",
    x_name: str = "x",
    y_name: str = "y",
) -> Fit:
    """Fits `law` to the points (x, y), several of which may share an x.

    Args:
      hold_out: how many of the largest distinct x are held out; None: the paper's protocol.
      delta: Huber's threshold on residuals; None: the law's own; inf: squares.
      residual: one of RESIDUALS. The objective of "reducible" has its global minimum where points
        lie at the floor, or at floor 0; of its minima the lowest within the bounds is taken.

    Raises:
      UserError: a value that is not positive, too few points, or a law without a floor term for
        residuals of what lies above it.
    """
    if residual not in RESIDUALS:
        raise UserError(f"residual {residual!r}: expected one of {', '.join(RESIDUALS)}")
    if residual == "reducible" and type(law).floor is Law.floor:
        raise UserError(f"the {law.title} has no floor of its own to take residuals above")
    x, y = np.asarray(x, float), np.asarray(y, float)
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    check_positive(law, x, y, x_name, y_name)
    sizes = np.unique(x)
    fitted_sizes = sizes[: _num_fitted(law, len(sizes), hold_out, x_name)]
    fitted = x <= fitted_sizes[-1]
    delta = law.huber_delta if delta is None else delta
    if not delta > 0:
        raise UserError(f"delta = {delta:g}: Huber's threshold must be positive")
    frame = Frame.of(x[fitted], y[fitted])
    log_x, log_y = np.log(x[fitted]), np.log(y[fitted])

    theta, objective, converged = best_theta(law, frame, log_x, log_y, delta, residual)
    residuals = log_y - law.log_value(theta, log_x, frame)
    sigma, df = _noise(log_x, log_y, residuals, law.num_parameters)
    starts = law.starts(log_x, log_y, frame)
    replicates, new_noise = _bootstrap(law, frame, log_x, theta, starts, sigma, df, delta, residual)

    point = law.coefficients(theta, frame)
    spread = law.coefficients(replicates, frame)
    coefficients = {}
    for name in point:
        low, high = _interval(spread[name][:, None])
        coefficients[name] = (float(point[name]), float(low[0]), float(high[0]))
    fit = Fit(
        law=law, x=x[fitted], y=y[fitted], delta=delta, theta=theta, frame=frame,
        objective=objective, converged=converged,
        coefficients=coefficients, sigma=sigma, noise_df=df, replicates=replicates,
        replicate_noise=new_noise, held_out=(),
        extrapolation=float(np.log10(sizes[-1] / fitted_sizes[-1])),
        at_bound=_at_bound(law, frame, theta),
    )  # fmt: skip
    return _with_held_out(fit, x[~fitted], y[~fitted])


def best_theta(
    law: Law,
    frame: Frame,
    log_x: np.ndarray,
    log_y: np.ndarray,
    delta: float,
    residual: str = "log",
) -> tuple[np.ndarray, float, bool]:
    """-> (theta (P,), objective, converged): the best of all starts, without intervals."""
    starts = law.starts(log_x, log_y, frame)
    goals = np.broadcast_to(log_y, (len(starts), len(log_y)))
    solution = _solve(law, frame, log_x, goals, starts, delta, residual)
    best = _best(solution, law, frame, inside=residual == "reducible")
    return solution.theta[best], float(solution.objective[best]), bool(solution.converged[best])


def refit(
    law: Law,
    frame: Frame,
    log_x: np.ndarray,
    curves: np.ndarray,
    starts: np.ndarray,
    delta: float,
    residual: str = "log",
    **limits: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits many curves over the same sizes, each from all `starts`.

    Args:
      curves: log values (R, N).
      starts: (S, P).
      limits: tolerance and max_iterations of `minimise`.

    Returns:
      (theta (R, P), objective (R,), converged (R,)) of the best start of each curve.
    """
    found = []
    for block in np.array_split(curves, max(1, len(curves) * len(starts) // PROBLEMS_AT_ONCE)):
        goals = np.repeat(block, len(starts), axis=0)
        solution = _solve(
            law, frame, log_x, goals, np.tile(starts, (len(block), 1)), delta, residual, **limits
        )
        objective = solution.objective.reshape(len(block), -1)
        best = objective.argmin(1) + len(starts) * np.arange(len(block))
        found.append([column[best] for column in solution])
    theta, objective, converged = (np.concatenate(column) for column in zip(*found, strict=True))
    return theta, objective, converged


def check_positive(law: Law, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Raises UserError where a logarithm does not exist."""
    if not np.all(x > 0):
        raise UserError(
            f"{x_name} = {x[~(x > 0)][0]:g}: the {law.title} needs positive sizes; leave out a "
            "baseline without pretraining, it is not a point of the law"
        )
    if not np.all(y > 0):
        bad = int(np.argmax(~(y > 0)))
        raise UserError(
            f"{y_name} = {y[bad]:g} at {x_name} = {x[bad]:g}: the {law.title} is fitted to log "
            "values, which need values > 0; leave this point out or fit another metric"
        )


def noise_between_neighbours(log_x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Noise of a point from each inner point's deviation from the line between its neighbours.

    Points must have distinct, rising log_x. Returns (standard deviation, number of inner points);
    (0, 0) with fewer than 3 points. After Gasser, Sroka and Jennen-Steinmetz (1986).
    """
    if len(log_x) < 3:
        return 0.0, 0
    right_weight = (log_x[1:-1] - log_x[:-2]) / (log_x[2:] - log_x[:-2])
    left_weight = 1 - right_weight
    deviation = y[1:-1] - left_weight * y[:-2] - right_weight * y[2:]
    deviation /= np.sqrt(1 + left_weight**2 + right_weight**2)
    return float(np.sqrt(np.mean(deviation**2))), len(deviation)


def _num_fitted(law: Law, num_sizes: int, hold_out: int | None, x_name: str) -> int:
    if hold_out is not None and hold_out < 0:
        raise UserError(f"hold_out = {hold_out}: expected 0 or more")
    held_out = max(1, num_sizes - FITTED_SIZES) if hold_out is None else hold_out
    needed = law.num_parameters
    if num_sizes - held_out < needed:
        least = 1 if hold_out is None else hold_out
        raise UserError(
            f"{num_sizes} distinct {x_name}: too few points for the {law.title}, which needs "
            f"{needed + least} ({needed} to fit its {needed} coefficients and {least} held out)"
        )
    return num_sizes - held_out


def _solve(law, frame, log_x, targets, starts, delta, residual, **limits) -> Solution:
    lower, upper = law.bounds(frame)
    residuals_of, slopes_of = _residuals(law, frame, log_x, residual)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return minimise(
            residuals_of, slopes_of, targets, starts, lower, upper, delta=delta, **limits
        )


def _residuals(law: Law, frame: Frame, log_x: np.ndarray, kind: str) -> tuple[Callable, Callable]:
    """Residuals of log values (b, N) and minus their derivatives, see `RESIDUALS`."""
    if kind == "log":
        return (
            lambda theta, log_y: log_y - law.log_value(theta, log_x, frame),
            lambda theta, log_y: law.jacobian(theta, log_x, frame),
        )
    unit = np.exp(frame.log_high)

    def value(theta):
        return np.exp(law.log_value(theta, log_x, frame))

    def value_slopes(theta):
        return value(theta)[..., None] * law.jacobian(theta, log_x, frame)

    if kind == "value":
        return (
            lambda theta, log_y: (np.exp(log_y) - value(theta)) / unit,
            lambda theta, log_y: value_slopes(theta) / unit,
        )

    def reducible(theta, log_y):
        floor = law.floor(theta, frame)[0][..., None]
        return np.log(np.exp(log_y) - floor) - np.log(value(theta) - floor)

    def reducible_slopes(theta, log_y):
        floor, by_theta = law.floor(theta, frame)
        floor, by_theta = floor[..., None], by_theta[..., None, :]
        measured, fitted = np.exp(log_y) - floor, value(theta) - floor
        return by_theta / measured[..., None] + (value_slopes(theta) - by_theta) / fitted[..., None]

    return reducible, reducible_slopes


def _best(solution: Solution, law: Law, frame: Frame, *, inside: bool) -> int:
    """The lowest; of starts that end equally well, one whose gradient vanished too. With `inside`
    one that converged within the bounds, if any did."""
    objective = solution.objective
    if inside:
        lower, upper = law.bounds(frame)
        within = ((solution.theta > lower + 1e-6) & (solution.theta < upper - 1e-6)).all(-1)
        within &= solution.converged
        objective = np.where(within, objective, np.inf) if within.any() else objective
    equal = (objective <= objective.min() * (1 + 1e-9)) & solution.converged
    return int(np.argmax(equal) if equal.any() else np.argmin(objective))


def _noise(log_x, log_y, residuals, num_parameters) -> tuple[float, int]:
    df = len(log_y) - num_parameters
    if df >= 2:
        return float(np.sqrt(np.sum(residuals**2) / df)), df
    sizes, where = np.unique(log_x, return_inverse=True)
    means = np.bincount(where, log_y) / np.bincount(where)
    return noise_between_neighbours(sizes, means)


def _bootstrap(law, frame, log_x, theta, starts, sigma, df, delta, residual):
    """Refits REPLICATES noisy copies of the fitted curve; seeded, so that results repeat."""
    rng = np.random.default_rng(0)
    scale = sigma * np.sqrt(df / rng.chisquare(df, REPLICATES)) if df else np.zeros(REPLICATES)
    noise = rng.standard_normal((REPLICATES, len(log_x))) * scale[:, None]
    new_noise = rng.standard_normal(REPLICATES) * scale
    curves = law.log_value(theta, log_x, frame) + noise
    first = np.vstack([theta, starts[:: max(1, len(starts) // 3)][:3]])
    thetas, _, _ = refit(
        law, frame, log_x, curves, first, delta, residual, tolerance=1e-4, max_iterations=80
    )
    return thetas, new_noise


def _interval(draws: np.ndarray, transform=lambda v: v) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over axis 0; takes order statistics, so that infinities stay harmless."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0, method="inverted_cdf")
    with np.errstate(over="ignore"):
        return transform(low), transform(high)


def _at_bound(law: Law, frame: Frame, theta: np.ndarray) -> tuple[str, ...]:
    lower, upper = law.bounds(frame)
    notes = []
    for name, value, low, high in zip(law.theta_names, theta, lower, upper, strict=True):
        for side, bound in (("low", low), ("high", high)):
            if abs(value - bound) < 1e-6 and (name, side) in law.at_bound:
                notes.append(law.at_bound[name, side])
    return tuple(dict.fromkeys(notes))


def _with_held_out(fit: Fit, x: np.ndarray, y: np.ndarray) -> Fit:
    if not len(x):
        return fit
    predicted, (low, high) = fit.predict(x), fit.band(x)
    points = tuple(
        HeldOutPoint(*map(float, row)) for row in zip(x, y, predicted, low, high, strict=True)
    )
    return replace(fit, held_out=points)
