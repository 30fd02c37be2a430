"""What a law predicts of points that it was not fitted to, and how sure it is.

All predictions of a curve are fitted at once: each is a copy of the curve in which the points that
it may not see are missing. Nothing of those points reaches the fit, not even the frame in which the
coefficients are numbers, which is that of the points fitted first.

Intervals are those of the linearised law: with J the derivatives of log values by the parameters at
the fitted points and g those at the predicted one, the variance of a new log value is
s^2 (1 + q g^T (J^T J)^-1 g), where s is the noise of a point and q the price of Huber's loss,
E[psi^2] / E[psi']^2 of normal noise (Huber 1981, section 7.6). They cost no bootstrap, and they say
of a prediction whether it was far off for what its points allow; a forecast that is to be used has
the intervals of `intervals`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t5scaling.analysis.fitting.least_squares import FIRST_NEWTON, Solution, huber_moments, minimise
from t5scaling.analysis.fitting.problem import (
    MANY,
    Problem,
    finalists,
    precision,
    residual_functions,
    rough_steps,
    side_weights,
)
from t5scaling.analysis.fitting.protocol import check_protocol, folds
from t5scaling.analysis.laws.base import Law

STARTS = 12  # for each prediction: of a law with more, evenly spread ones
FEWER_STARTS = 6  # of a law with many coefficients, each start of which is dear
FINALISTS = 3  # of them, that are followed to their end; of a law with many coefficients twice that
SOME_POINTS = 48  # of more, a rough fit takes about so many
# Student's quantile of 0.95; from scipy it would cost every command most of a second.
_STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


@dataclass(frozen=True)
class Prediction:
    """One prediction of a protocol.

    curve: its number. k: sizes that were fitted (places, of several sizes). x: the size predicted
    (x2: its second size). decades: of x beyond the last fitted size. measured: mean of the points
    there. low, high: the interval for a new measurement. last: what was measured at the last fitted
    size, nan of several sizes. leverage: standard deviation of the error, in the unit of the noise
    of a point; inf where it is not known. converged: of the fit.
    """

    curve: int
    k: int
    x: float
    decades: float
    measured: float
    predicted: float
    low: float = math.nan
    high: float = math.nan
    converged: bool = True
    x2: float | None = None
    last: float = math.nan
    leverage: float = math.inf

    @property
    def error(self) -> float:
        return self.predicted - self.measured

    @property
    def relative_error(self) -> float:
        return self.error / self.measured

    @property
    def log_error(self) -> float:
        """Log of predicted over measured; inf where the law predicts 0."""
        return math.log(self.predicted / self.measured) if self.predicted > 0 else math.inf

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Check:
    """What a law says of points that it was not fitted to, from the nearest size to the farthest.

    rollout: each prediction is from the sizes before it, and the law itself is fitted to all
    points. Else all are from the one fit, and these points are held out from it.
    """

    predictions: tuple[Prediction, ...] = ()
    rollout: bool = True

    @property
    def error(self) -> float | None:
        """Root mean square of the log errors; None if nothing was predicted."""
        return rms_log_error(self.predictions) if self.predictions else None

    @property
    def inside(self) -> int:
        """How many of the measured values lie in their interval."""
        return sum(p.inside for p in self.predictions)

    @property
    def farthest(self) -> Prediction:
        """The prediction of the largest size; there must be one."""
        return self.predictions[-1]


def rms_log_error(found: Sequence[Prediction]) -> float:
    """Root mean square of the log errors; an error beyond all bounds counts as 1,000."""
    return math.sqrt(sum(min(abs(p.log_error), 1e3) ** 2 for p in found) / len(found))


def predictions(
    law: Law,
    x: np.ndarray,
    y: np.ndarray,
    *,
    protocol: str = "rollout",
    first: int | None = None,
    curve: int = 0,
    delta: float | None = None,
    errors: np.ndarray | None = None,
    **options: Any,
) -> list[Prediction]:
    """What the protocol makes the law predict. Empty for a curve that is too short.

    Intervals take the noise to be even, or as the standard errors say: the few points that most
    fits have cannot show how it changes with size.

    Args:
      first: least number of sizes to fit; None: as many as the law has coefficients, and 3 at
        least.
      delta: Huber's threshold; None: the law's own. options: of `problem.Problem`.
      errors: standard errors of y, (N,), as in `fit.fit_curve`; None: all points count alike.

    Raises:
      UserError: an unknown protocol.
    """
    check_protocol(protocol)
    x, y = np.asarray(x, float), np.asarray(y, float)
    plan = folds(law, x, protocol, first)
    if not plan:
        return []
    seen = plan[0][0]
    scale = None if errors is None else precision(np.asarray(errors, float), y)
    if scale is not None:  # in a unit that no later point has a say in
        scale = scale / np.sqrt(np.mean(scale[seen] ** 2))
    problem = replace(
        Problem.of(law, x, y, delta, scale=scale, **options),
        frame=law.frame(x[..., seen], y[seen]),
    )
    thetas, converged = fit_each(problem, [fitted for fitted, _ in plan])
    found: list[Prediction] = []
    for (fitted, wanted), theta, ended in zip(plan, thetas, converged, strict=True):
        found += _predict(problem, theta, bool(ended), x, y, fitted, wanted, curve)
    return found


def fit_each(problem: Problem, fitted: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The best of several starts for each set of fitted points: (thetas (M, P), converged (M,)).

    A log value of nan is a point that is not seen.
    """
    law, starts, targets = problem.law, [], []
    most = STARTS if law.num_parameters < MANY else FEWER_STARTS
    for seen in fitted:
        grid = law.starts(problem.log_x[..., seen], problem.log_y[seen], problem.frame)
        starts.append(grid[:: max(1, len(grid) // most)])
        targets.append(np.where(seen, problem.log_y, np.nan))
    # Which start leads to the lowest minimum a few steps tell; where points are many, some of them
    # do, and steps without second derivatives tell which half is not worth those with them.
    some = np.ones(len(problem.log_y), bool)
    many = FINALISTS if law.num_parameters < MANY else 2 * FINALISTS
    stages = [(many, rough_steps(law))]
    if len(some) > SOME_POINTS:
        some = fitted[0].copy()
        some[:: len(some) // SOME_POINTS + 1] = True
        stages = [(2 * many, FIRST_NEWTON), *stages]
    for number, steps in stages:
        rough = _followed(problem, some, starts, targets,
                          tolerance=1e-3, offset=0.05, max_iterations=steps)  # fmt: skip
        starts = [theta[finalists(theta, objective, number)]
                  for theta, objective in _by_fold(rough, starts)]  # fmt: skip
    every = np.ones(len(some), bool)
    found = _followed(problem, every, starts, targets,
                      tolerance=1e-5, offset=0.01, max_iterations=100)  # fmt: skip
    firsts = np.cumsum([0, *(len(grid) for grid in starts)])[:-1]
    lowest = [int(np.argmin(objective)) for _, objective in _by_fold(found, starts)]
    best = firsts + np.array(lowest)
    # A few steps more cost little, and end at the same place whichever start they came from.
    last = _followed(problem, every, list(found.theta[best][:, None]), targets,
                     tolerance=1e-7, offset=1e-4, max_iterations=10)  # fmt: skip
    return last.theta, found.converged[best] | last.converged


def _followed(
    problem: Problem,
    used: np.ndarray,
    starts: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    **limits: Any,
) -> Solution:
    """Where the starts of each target lead on the points `used`, all of them in one batch."""
    scale = None if problem.scale is None else problem.scale[used]
    part = replace(problem, log_x=problem.log_x[..., used], log_y=problem.log_y[used], scale=scale)
    residuals, slopes = residual_functions(part)

    def residuals_of(theta: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(goal), 0.0, residuals(theta, goal))

    def slopes_of(theta: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(goal)[..., None], 0.0, slopes(theta, goal))

    goals = np.repeat(np.array(targets)[:, used], [len(grid) for grid in starts], axis=0)
    with np.errstate(all="ignore"):
        return minimise(
            residuals_of, slopes_of, goals, np.concatenate(starts),
            *problem.law.bounds(problem.frame), delta=problem.delta,
            weigh=side_weights(problem), **limits,
        )  # fmt: skip


def _by_fold(
    solution: Solution, starts: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """theta and objective of each group of starts."""
    ends = np.cumsum([len(grid) for grid in starts])[:-1]
    return zip(np.split(solution.theta, ends), np.split(solution.objective, ends), strict=True)


def _predict(
    problem: Problem,
    theta: np.ndarray,
    converged: bool,
    x: np.ndarray,
    y: np.ndarray,
    fitted: np.ndarray,
    wanted: np.ndarray,
    curve: int,
) -> list[Prediction]:
    law, rows, main = problem.law, np.atleast_2d(x), problem.law.main_size(x)
    places = np.unique(x[..., wanted], axis=-1)
    with np.errstate(all="ignore"):
        log_places = np.log(places)  # -inf without tokens of a source
        values = law.log_value(theta, log_places, problem.frame)
        half, leverage = half_widths(problem, theta, log_places, fitted, _noises(problem, places))
        low, high = np.exp(values - half), np.exp(values + half)
    one = len(rows) == 1
    order = main[fitted].min() if law.of_loss else main[fitted].max()
    found = []
    for i, size in enumerate(law.main_size(places)):
        at = np.ravel(places[..., i])
        here = (rows == at[:, None]).all(axis=0)
        found.append(
            Prediction(
                curve=curve, k=np.unique(rows[:, fitted], axis=1).shape[1], x=float(size),
                decades=abs(math.log10(size / order)) if size > 0 else 0.0,
                measured=float(y[here].mean()), predicted=float(np.exp(values[i])),
                low=float(low[i]), high=float(high[i]), converged=converged,
                x2=None if one or law.sources else float(at[1]),
                last=float(y[fitted & (main == order)].mean()) if one else math.nan,
                leverage=float(leverage[i]),
            )
        )  # fmt: skip
    return found


def _noises(problem: Problem, places: np.ndarray) -> np.ndarray | float:
    """The noise of a measurement at each place, relative to that of all points."""
    if problem.scale is None:
        return 1.0
    at, rows = np.atleast_2d(places), np.atleast_2d(problem.log_x)
    with np.errstate(divide="ignore"):
        here = (np.log(at)[:, :, None] == rows[:, None]).all(axis=0)  # (places, points)
    return np.sqrt((here / problem.scale**2).sum(1) / here.sum(1))


def half_widths(
    problem: Problem,
    theta: np.ndarray,
    log_x: np.ndarray,
    fitted: np.ndarray,
    new_noise: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Of the intervals of new log values at log_x, by the linearised law, and the standard
    deviation of their errors in the unit of the noise; inf without noise to go by. `fitted` picks
    the points of the problem that theta was fitted to; new_noise is the noise of each new value,
    relative to that of the points."""
    law, frame = problem.law, problem.frame
    slopes = law.jacobian(theta, problem.log_x[..., fitted], frame)
    residuals = (problem.log_y - law.log_value(theta, problem.log_x, frame))[fitted]
    if problem.scale is not None:
        slopes = slopes * problem.scale[fitted, None]
        residuals = residuals * problem.scale[fitted]
    lower, upper = law.bounds(frame)
    free = (theta > lower + 1e-9) & (theta < upper - 1e-9)
    count, free_count = len(residuals), int(free.sum())
    degrees = count - law.num_parameters
    if degrees < 1:
        # As many points as coefficients: what the points stray from a straight line is all there
        # is, which takes curvature for noise and so errs on the wide side.
        if log_x.ndim > 1 or count < 3:
            unknown = np.full(log_x.shape[-1], math.inf)
            return unknown, unknown
        line = np.polyfit(problem.log_x[fitted], problem.log_y[fitted], 1)
        residuals = problem.log_y[fitted] - np.polyval(line, problem.log_x[fitted])
        residuals = residuals if problem.scale is None else residuals * problem.scale[fitted]
        degrees = count - 2
    noise = _scale(residuals, degrees)
    here = np.nan_to_num(law.jacobian(theta, log_x, frame))[:, free]
    known = np.nan_to_num(slopes)[:, free]
    # What the bounds of the parameters say, and no more, keeps the matrix invertible.
    prior = np.diag(12.0 * max(noise, 1e-12) ** 2 / (upper - lower)[free] ** 2)
    spread = np.linalg.inv(known.T @ known + prior) if free_count else np.zeros((0, 0))
    variance = np.einsum("np,pq,nq->n", here, spread, here) * _price(problem.delta, noise)
    leverage = np.sqrt(new_noise**2 + np.maximum(variance, 0.0))
    return student(degrees) * noise * leverage, leverage


def _scale(residuals: np.ndarray, degrees: int) -> float:
    """The noise of a point: the root mean square, or with 8 degrees of freedom or more 1.4826
    times the median size where that is smaller (one outlier then does not widen all intervals)."""
    plain = float(np.sqrt(np.sum(residuals**2) / degrees))
    if degrees < 8:
        return plain
    robust = 1.4826 * float(np.median(np.abs(residuals))) * math.sqrt(len(residuals) / degrees)
    return robust if plain > 2 * robust else plain


def _price(delta: float, noise: float) -> float:
    """The variance of Huber's estimate over that of least squares, in normal noise."""
    ratio = delta / noise if noise else math.inf
    if ratio > 10:
        return 1.0
    inside, squares = huber_moments(ratio)
    return squares / inside**2


def student(degrees: int) -> float:
    """Student's quantile at the upper end of an interval of 90 %."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = 1.6449
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
