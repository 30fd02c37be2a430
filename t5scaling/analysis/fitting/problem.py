"""What a fit minimises, and the best of many starts, for one curve or for thousands of copies.

The objective is a sum of Huber losses (Huber 1964) of residuals. Which residuals: `RESIDUALS`. Each
may carry a factor: the points' own errors set their weights, copies of a bootstrap count some
points twice and leave others out, and points on the worse side of the law may count less than
those on its better side (a run that was tuned badly is worse than its law, never better).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5scaling.analysis.fitting.least_squares import Solution, minimise
from t5scaling.analysis.laws.base import Frame, Law

PROBLEMS_AT_ONCE = 8192  # more do not fit a processor's caches
# What is made small: the difference of log values; of values, over the largest fitted one; or of
# logs of what lies above the law's own floor (M2 of Alabdulmohsin et al., arXiv 2209.06640).
RESIDUALS = ("log", "value", "reducible")


@dataclass(frozen=True)
class Problem:
    """A law, the points it is fitted to, and what is minimised.

    log_x: (N,), or (k, N) for a law of k sizes. log_y: (N,). delta: Huber's threshold, inf for
    squares. worse_counts: weight of a point that is worse than the law, relative to one that is
    better; 1 is symmetric. scale: (N,) factors of the residuals, None for 1.
    """

    law: Law
    frame: Frame
    log_x: np.ndarray
    log_y: np.ndarray
    delta: float
    residual: str = "log"
    worse_counts: float = 1.0
    scale: np.ndarray | None = None

    @staticmethod
    def of(law: Law, x: np.ndarray, y: np.ndarray, delta: float | None = None, **more):
        """delta None: the law's own."""
        delta = law.huber_delta if delta is None else delta
        with np.errstate(divide="ignore"):  # no tokens of a source
            log_x = np.log(x)
        return Problem(law, law.frame(x, y), log_x, np.log(y), delta, **more)

    def starts(self) -> np.ndarray:
        return self.law.starts(self.log_x, self.log_y, self.frame)

    def log_values(self, theta: np.ndarray) -> np.ndarray:
        """The law at the fitted points, (..., N)."""
        return self.law.log_value(theta, self.log_x, self.frame)


def best_theta(problem: Problem) -> tuple[np.ndarray, float, bool]:
    """-> (theta (P,), objective, converged): the best of all starts, without intervals."""
    starts = problem.starts()
    solution = _solve(problem, np.broadcast_to(problem.log_y, (len(starts), *problem.log_y.shape)),
                      None, starts)  # fmt: skip
    best = _best(solution, problem, inside=problem.residual == "reducible")
    return solution.theta[best], float(solution.objective[best]), bool(solution.converged[best])


def refit(
    problem: Problem,
    curves: np.ndarray,
    starts: np.ndarray,
    factors: np.ndarray | None = None,
    **limits: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits many curves over the sizes of the problem, each from all `starts`.

    Args:
      curves: log values (R, N), in place of the problem's own.
      starts: (S, P).
      factors: (R, N) further factors of the residuals, a set for each curve.
      limits: tolerance and max_iterations of `minimise`.

    Returns:
      (theta (R, P), objective (R,), converged (R,)) of the best start of each curve.
    """
    found = []
    blocks = max(1, len(curves) * len(starts) // PROBLEMS_AT_ONCE)
    for block in np.array_split(np.arange(len(curves)), blocks):
        goals = np.repeat(curves[block], len(starts), axis=0)
        weights = None if factors is None else np.repeat(factors[block], len(starts), axis=0)
        solution = _solve(problem, goals, weights, np.tile(starts, (len(block), 1)), **limits)
        objective = solution.objective.reshape(len(block), -1)
        best = objective.argmin(1) + len(starts) * np.arange(len(block))
        found.append([column[best] for column in solution])
    theta, objective, converged = (np.concatenate(column) for column in zip(*found, strict=True))
    return theta, objective, converged


def _solve(problem, curves, factors, starts, **limits) -> Solution:
    lower, upper = problem.law.bounds(problem.frame)
    residuals_of, slopes_of = residual_functions(problem)
    # The solver hands on the targets row by row; factors of their own travel beside them.
    targets = curves if factors is None else np.stack([curves, factors], axis=1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return minimise(
            residuals_of, slopes_of, targets, starts, lower, upper, delta=problem.delta, **limits
        )


def residual_functions(problem: Problem) -> tuple[Callable, Callable]:
    """Residuals (b, N) of theta (b, P) and targets, and minus their derivatives (b, N, P).

    Targets are log values (b, N), or stacked with factors of the residuals, (b, 2, N).
    """
    plain, plain_slopes = _plain(problem)
    worse = np.sqrt(problem.worse_counts)

    def split(targets):
        return (targets, None) if targets.ndim == 2 else (targets[:, 0], targets[:, 1])

    def factor(theta, log_y, own):
        """None for 1."""
        factors = [f for f in (problem.scale, own) if f is not None]
        if worse != 1:
            side = problem.law.direction * plain(theta, log_y)
            factors.append(np.where(side < 0, worse, 1.0))
        return np.prod(np.broadcast_arrays(log_y, *factors)[1:], axis=0) if factors else None

    def residuals_of(theta, targets):
        log_y, own = split(targets)
        residual, by = plain(theta, log_y), factor(theta, log_y, own)
        return residual if by is None else residual * by

    def slopes_of(theta, targets):
        log_y, own = split(targets)
        slopes, by = plain_slopes(theta, log_y), factor(theta, log_y, own)
        return slopes if by is None else slopes * by[..., None]

    return residuals_of, slopes_of


def _plain(problem: Problem) -> tuple[Callable, Callable]:
    law, log_x, frame = problem.law, problem.log_x, problem.frame
    if problem.residual == "log":
        return (
            lambda theta, log_y: log_y - law.log_value(theta, log_x, frame),
            lambda theta, log_y: law.jacobian(theta, log_x, frame),
        )
    unit = np.exp(frame.log_high)

    def value(theta):
        return np.exp(law.log_value(theta, log_x, frame))

    def value_slopes(theta):
        return value(theta)[..., None] * law.jacobian(theta, log_x, frame)

    if problem.residual == "value":
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


def _best(solution: Solution, problem: Problem, *, inside: bool) -> int:
    """The lowest; of starts that end equally well, one whose gradient vanished too. With `inside`
    one that converged within the bounds, if any did."""
    objective = solution.objective
    if inside:
        lower, upper = problem.law.bounds(problem.frame)
        within = ((solution.theta > lower + 1e-6) & (solution.theta < upper - 1e-6)).all(-1)
        within &= solution.converged
        objective = np.where(within, objective, np.inf) if within.any() else objective
    equal = (objective <= objective.min() * (1 + 1e-9)) & solution.converged
    return int(np.argmax(equal) if equal.any() else np.argmin(objective))
