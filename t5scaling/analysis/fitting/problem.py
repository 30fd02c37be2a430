"""What a fit minimises, and the best of many starts, for one curve or for thousands of copies.

The objective is a sum of Huber losses (Huber 1964) of residuals. Which residuals: `RESIDUALS`.
Losses may have weights: copies of a bootstrap count some points twice and leave others out, and
points on the worse side of the law may count less than those on its better side (a run that was
tuned badly is worse than its law, never better). Residuals may have factors: the points' own
standard errors say how the scale of the noise differs from point to point, and Huber's threshold
is meant for noise of one scale. These are the two kinds of weights, "case" and "inv.var", of `rlm`
(Venables and Ripley 2002, section 6.5).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t5scaling.analysis.fitting.least_squares import Solution, minimise
from t5scaling.analysis.laws.base import Frame, Law
from t5scaling.errors import UserError

FINALISTS = 4  # of all starts, that are followed to their end; of a law with many coefficients 8
MANY = 5  # coefficients
SAME = 1e-2  # starts whose parameters come so close lead to the same minimum
SOME_POINTS = 48
LONG = 300  # steps, which hardly any start takes
FIRST_STEPS = 5  # of a copy's starts, after which most of them are dropped
FEW = 2  # points for each coefficient: fewer leave flat valleys, and starts need all their steps
PROBLEMS_AT_ONCE = 8192  # more do not fit a processor's caches
# What is made small: the difference of log values; of values, over the largest fitted one; or of
# logs of what lies above the law's own floor (M2 of Alabdulmohsin et al., arXiv 2209.06640).
RESIDUALS = ("log", "value", "reducible")


@dataclass(frozen=True)
class Problem:
    """A law, the points it is fitted to, and what is minimised.

    log_x: (N,), or (k, N) for a law of k sizes. log_y: (N,). delta: Huber's threshold, inf for
    squares. worse_counts: weight of the loss of a point that is worse than the law, relative to
    one that is better; 1 is symmetric. scale: (N,) factors of the residuals, None for 1.
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
    def of(
        law: Law, x: np.ndarray, y: np.ndarray, delta: float | None = None, **more: Any
    ) -> "Problem":
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


def precision(errors: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Factors of the residuals of log values, (N,), from the standard errors of y, with a root mean
    square of 1. Raises UserError for an error that is not positive."""
    if not np.all(errors > 0):
        raise UserError(
            f"a standard error of {errors[~(errors > 0)][0]:g}: points are weighted by its inverse "
            "square, which needs errors > 0"
        )
    weights = y / errors
    return weights / np.sqrt(np.mean(weights**2))


def best_theta(problem: Problem) -> tuple[np.ndarray, float, bool]:
    """-> (theta (P,), objective, converged): the best of all starts, without intervals."""
    starts, inside = problem.starts(), problem.residual == "reducible"
    parameters = problem.law.num_parameters
    few = len(problem.log_y) < FEW * parameters
    if not inside and len(starts) > FINALISTS:
        # Most starts lead to the same minimum: to see whose is the lowest a rough one is enough, of
        # some of the points if they are many.
        some = _thinned(problem)
        rough = _solve(some, _copies(some, len(starts)), None, starts, offset=0.01,
                       max_iterations=LONG if few else rough_steps(problem.law))  # fmt: skip
        number = FINALISTS if parameters < MANY else 2 * FINALISTS
        starts = rough.theta[finalists(rough.theta, rough.objective, number)]
    solution = _solve(problem, _copies(problem, len(starts)), None, starts)
    best = _best(solution, problem, inside=inside)
    return solution.theta[best], float(solution.objective[best]), bool(solution.converged[best])


def rough_steps(law: Law) -> int:
    """After how many steps the start of the lowest minimum is one of the finalists."""
    return 2 * law.num_parameters**2


def finalists(theta: np.ndarray, objective: np.ndarray, number: int) -> list[int]:
    """The places of the lowest of some starts (S, P), at different points first: at one point, one
    of them may go on where another is stuck."""
    first: list[int] = []
    others: list[int] = []
    for place in np.argsort(objective, kind="stable").tolist():
        far = all(np.abs(theta[place] - theta[other]).max() > SAME for other in first)
        (first if far else others).append(place)
    return (first + others)[:number]


def _thinned(problem: Problem) -> Problem:
    """SOME_POINTS or a few more of the points, which are sorted by size, evenly spread."""
    step = len(problem.log_y) // SOME_POINTS
    if step < 2:
        return problem
    return replace(
        problem, log_x=problem.log_x[..., ::step], log_y=problem.log_y[::step],
        scale=None if problem.scale is None else problem.scale[::step],
    )  # fmt: skip


def _copies(problem: Problem, count: int) -> np.ndarray:
    return np.broadcast_to(problem.log_y, (count, *problem.log_y.shape))


def refit(
    problem: Problem,
    curves: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray | None = None,
    keep: int | None = None,
    **limits: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits many curves over the sizes of the problem, each from several starts.

    Args:
      curves: log values (R, N), in place of the problem's own.
      starts: (S, P) for all curves, or (R, S, P) for each its own.
      counts: (R, N) weights of the points' losses, a set for each curve.
      keep: how many starts of a curve, the lowest after FIRST_STEPS, are followed to their end.
      limits: tolerance, offset and max_iterations of `minimise`.

    Returns:
      (theta (R, P), objective (R,), converged (R,)) of the best start of each curve.
    """
    starts = np.broadcast_to(starts, (len(curves), *starts.shape[-2:]))
    many = starts.shape[1]
    found = []
    blocks = max(1, len(curves) * many // PROBLEMS_AT_ONCE)
    for block in np.array_split(np.arange(len(curves)), blocks):
        goals = np.repeat(curves[block], many, axis=0)
        weights = None if counts is None else np.repeat(counts[block], many, axis=0)
        begin = starts[block].reshape(-1, starts.shape[2])
        first = many * np.arange(len(block))[:, None]  # row of each curve's first start
        if keep is not None and keep < many:
            early = {**limits, "max_iterations": FIRST_STEPS}
            solution = _solve(problem, goals, weights, begin, **early)
            order = solution.objective.reshape(len(block), many).argsort(1, kind="stable")
            rows = (order[:, :keep] + first).ravel()
            begin, goals = solution.theta[rows], goals[rows]
            weights = None if weights is None else weights[rows]
            first = keep * np.arange(len(block))[:, None]
        solution = _solve(problem, goals, weights, begin, **limits)
        objective = solution.objective.reshape(len(block), -1)
        best = objective.argmin(1) + first[:, 0]
        found.append([column[best] for column in solution])
    theta, objective, converged = (np.concatenate(column) for column in zip(*found, strict=True))
    return theta, objective, converged


def _solve(
    problem: Problem,
    curves: np.ndarray,
    weights: np.ndarray | None,
    starts: np.ndarray,
    **limits: Any,
) -> Solution:
    lower, upper = problem.law.bounds(problem.frame)
    residuals_of, slopes_of = residual_functions(problem)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return minimise(
            residuals_of, slopes_of, curves, starts, lower, upper, delta=problem.delta,
            weights=weights, weigh=side_weights(problem), **limits,
        )  # fmt: skip


def side_weights(problem: Problem) -> Callable[[np.ndarray], np.ndarray] | None:
    """Residuals (b, N) -> weights of their losses by the side of the law; None where equal."""
    if problem.worse_counts == 1:
        return None
    return lambda residuals: np.where(
        problem.law.direction * residuals < 0, problem.worse_counts, 1.0
    )


def residual_functions(problem: Problem) -> tuple[Callable, Callable]:
    """Residuals (b, N) of theta (b, P) and log values (b, N), and minus their derivatives
    (b, N, P)."""
    plain, plain_slopes = _plain(problem)
    by = problem.scale
    if by is None:
        return plain, plain_slopes
    return (
        lambda theta, log_y: plain(theta, log_y) * by,
        lambda theta, log_y: plain_slopes(theta, log_y) * by[:, None],
    )


def _plain(problem: Problem) -> tuple[Callable, Callable]:
    law, log_x, frame = problem.law, problem.log_x, problem.frame
    if problem.residual == "log":
        return (
            lambda theta, log_y: log_y - law.log_value(theta, log_x, frame),
            lambda theta, log_y: law.jacobian(theta, log_x, frame),
        )
    unit = np.exp(frame.log_high)

    def value(theta: np.ndarray) -> np.ndarray:
        return np.exp(law.log_value(theta, log_x, frame))

    def value_slopes(theta: np.ndarray) -> np.ndarray:
        return value(theta)[..., None] * law.jacobian(theta, log_x, frame)

    if problem.residual == "value":
        return (
            lambda theta, log_y: (np.exp(log_y) - value(theta)) / unit,
            lambda theta, log_y: value_slopes(theta) / unit,
        )

    def reducible(theta: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        floor = law.floor(theta, frame)[0][..., None]
        return np.log(np.exp(log_y) - floor) - np.log(value(theta) - floor)

    def reducible_slopes(theta: np.ndarray, log_y: np.ndarray) -> np.ndarray:
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
