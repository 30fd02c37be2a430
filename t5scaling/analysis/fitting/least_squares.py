"""Many small robust least-squares problems at once.

A study asks for thousands of three-parameter fits (starts x bootstrap replicates), each too small
to keep a general solver busy: the time would go into calls. Here all problems of a batch take
their steps together. Levenberg-Marquardt in float64 with exact Jacobians, box bounds, and three
candidate steps per iteration: the reweighted one, safe far from the optimum; one with the average
curvature of Huber's loss over the residuals, quick where nearly all of them lie in its linear part;
and Newton's with second derivatives, quick at the end, once the set of outliers is known.

A weight multiplies the loss of a residual, so that a point of weight 2 counts as two equal points
do ("case" weights of `rlm`; Venables and Ripley 2002, section 6.5). Put under the root, as a
factor of the residual, it would count 1.41 times where Huber's loss is linear.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

FIRST_NEWTON = 5  # far from the optimum Newton's steps are not worth their price
STUCK = 1e8  # damping whose steps are too short to gain anything
VALUES_AT_ONCE = 16384  # of the shifted slopes; more do not fit a processor's nearest caches
MOSTLY_LINEAR = 0.7  # share of residuals within delta below which their average curvature helps


class Solution(NamedTuple):
    """theta (B, P), objective (B,): the weighted sum of Huber losses, converged (B,) bool."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 up to delta, then linear: delta * (|r| - delta / 2) (Huber 1964)."""
    size = np.abs(residuals)
    if np.isinf(delta):
        return 0.5 * residuals**2
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def huber_moments(ratio: float) -> tuple[float, float]:
    """Of standard normal residuals and Huber's threshold `ratio`: the share within the threshold
    (the mean of the loss's second derivative), and the mean square of its first derivative."""
    inside = math.erf(ratio / math.sqrt(2))
    density = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    return inside, inside - 2 * ratio * density + ratio**2 * (1 - inside)


def minimise(
    residuals_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    slopes_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    targets: np.ndarray,
    theta: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    delta: float,
    weights: np.ndarray | None = None,
    weigh: Callable[[np.ndarray], np.ndarray] | None = None,
    tolerance: float = 1e-7,
    offset: float = 0.0,
    max_iterations: int = 300,
) -> Solution:
    """Minimises sum_n weight_n * huber(residual_n) for each row of the batch.

    Args:
      residuals_of: theta (b, P), targets (b, N) -> residuals (b, N), for any batch size b. Where
        they are not finite the point is infeasible, and no step goes there.
      slopes_of: theta (b, P), targets (b, N) -> minus their derivatives by theta (b, N, P).
      targets: (B, N).
      theta: (B, P) starting points; clipped into the bounds.
      lower, upper: (P,).
      delta: Huber's threshold, in the unit of the residuals.
      weights: (B, N) of the losses, None for 1.
      weigh: residuals (b, N) -> further weights (b, N) that may depend on the sign of a residual.
      tolerance: converged where the gradient is smaller, as a share of the largest pull that one
        residual can have (delta; 1 for plain squares, delta = inf).
      offset: converged, too, where the relative offset of Bates and Watts (1981) is smaller: the
        step that is left, as a share of the standard error of theta.
    """
    theta = np.clip(theta, lower, upper)
    count: int = targets.shape[1]
    width: int = theta.shape[1]

    def weights_of(residuals: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """None for 1."""
        own = None if weights is None else weights[rows]
        if weigh is None:
            return own
        return weigh(residuals) if own is None else own * weigh(residuals)

    def objective_of(
        theta: np.ndarray, targets: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """With the residuals."""
        residuals = residuals_of(theta, targets)
        losses, by = huber(residuals, delta), weights_of(residuals, rows)
        value = (losses if by is None else losses * by).sum(-1)
        return np.where(np.isfinite(value), value, np.inf), residuals

    unit = np.eye(width)
    active = np.arange(len(theta))
    # Of the active ones, and so are residuals. Types are named where a checker would otherwise
    # follow every array around the loop.
    at: np.ndarray = theta.copy()
    goal: np.ndarray = targets
    objective, residuals = objective_of(theta, targets, active)
    converged = np.zeros(len(theta), bool)
    damping: np.ndarray = np.full(len(theta), 1e-2)
    for iteration in range(max_iterations):
        slopes: np.ndarray = slopes_of(at, goal)
        by: np.ndarray | None = weights_of(residuals, active)
        pull: np.ndarray = np.clip(residuals, -delta, delta)
        weighted_pull: np.ndarray = pull if by is None else pull * by
        downhill: np.ndarray = (weighted_pull[:, None] @ slopes)[:, 0]
        blocked: np.ndarray = ((at <= lower) & (downhill < 0)) | ((at >= upper) & (downhill > 0))
        downhill = np.where(blocked, 0.0, downhill)
        done: np.ndarray = np.abs(downhill).max(-1) <= tolerance * min(delta, 1.0)
        if offset and count > width:
            free = slopes * ~blocked[:, None] if blocked.any() else slopes
            own = free if by is None else free * by[:, :, None]
            metric = own.transpose(0, 2, 1) @ free + blocked[:, None] * unit
            metric += 1e-9 * np.trace(metric, axis1=1, axis2=2)[:, None, None] * unit
            left = np.linalg.solve(metric, downhill[:, :, None])[:, :, 0]
            spread = (weighted_pull * pull).sum(-1) / (count - width)
            done |= (downhill * left).sum(-1) <= offset**2 * width * spread
        converged[active[done]] = True
        going = ~done & (damping[active] < STUCK)
        if not going.any():
            break
        if not going.all():
            active, at, goal, residuals = active[going], at[going], goal[going], residuals[going]
            slopes, weighted_pull = slopes[going], weighted_pull[going]
            downhill, blocked = downhill[going], blocked[going]
            by = None if by is None else by[going]
        if blocked.any():
            slopes = slopes * ~blocked[:, None]
        case = 1.0 if by is None else by
        inliers = np.abs(residuals) <= delta
        reweighted = case * np.where(inliers, 1.0, delta / np.maximum(np.abs(residuals), delta))
        before: np.ndarray = objective[active]
        best_theta, best_objective, best_residuals = at.copy(), before.copy(), residuals.copy()
        models: list[tuple[np.ndarray, np.ndarray | float]] = [(reweighted, 0.0)]
        share = inliers.mean()  # all problems of a batch have about the same noise
        if share < MOSTLY_LINEAR:
            models.append((np.broadcast_to(case * max(share, 1e-3), residuals.shape), 0.0))
        if iteration >= FIRST_NEWTON:
            fixed = blocked[:, :, None] | blocked[:, None]
            bending = _second_derivatives(slopes_of, at, goal, weighted_pull, slopes) * ~fixed
            models.append((case * inliers, bending))
        for step in _steps(models, slopes, downhill, blocked, damping[active]):
            candidate: np.ndarray = np.clip(at + np.clip(step, -2.0, 2.0), lower, upper)
            value, there = objective_of(candidate, goal, active)
            better = value < best_objective
            best_theta[better], best_objective[better] = candidate[better], value[better]
            best_residuals[better] = there[better]
        improved = best_objective < before
        at, residuals = best_theta, best_residuals
        theta[active], objective[active] = at, best_objective
        damping[active] = np.where(
            improved, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4
        )
    return Solution(theta, objective, converged)


def _steps(
    models: Sequence[tuple[np.ndarray, np.ndarray | float]],
    slopes: np.ndarray,
    downhill: np.ndarray,
    blocked: np.ndarray,
    damping: np.ndarray,
) -> Iterator[np.ndarray]:
    """The damped step of each model of the curvature, (b, P): factors of the residuals' products,
    and what is taken off their sum. The first one, without a correction, scales the damping."""
    unit = np.eye(slopes.shape[2])
    scale = np.einsum("bn,bnp,bnp->bp", models[0][0], slopes, slopes)
    floor = 1e-6 * scale.max(-1, keepdims=True) + 1e-30
    ridge = damping[:, None] * (scale + floor) + blocked
    for factors, correction in models:
        weighted = (slopes * factors[:, :, None]).transpose(0, 2, 1)
        curvature = weighted @ slopes - correction
        least = 1e-14 * np.abs(curvature).max((1, 2))[:, None]  # what float64 can still see
        curvature += (ridge + least)[:, :, None] * unit
        yield np.linalg.solve(curvature, downhill[:, :, None])[:, :, 0]


def _second_derivatives(
    slopes_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    theta: np.ndarray,
    targets: np.ndarray,
    pull: np.ndarray,
    slopes: np.ndarray,
) -> np.ndarray:
    """sum_n pull_n * d slopes_n / d theta, shape (b, P, P), by forward differences."""
    step, (count, width) = 1e-6, theta.shape
    shifts = step * np.eye(width)
    # A call for all shifts of a small batch costs little more than one for one of them.
    at_once = max(1, min(width, VALUES_AT_ONCE // targets.size))
    columns = []
    for first in range(0, width, at_once):
        some = shifts[first : first + at_once]
        moved = (theta + some[:, None]).reshape(-1, width)
        there = slopes_of(moved, np.tile(targets, (len(some), 1)))
        change = there.reshape(len(some), *slopes.shape) - slopes
        columns.append((pull[:, None] @ change).reshape(len(some), count, width))
    second = np.concatenate(columns).transpose(1, 2, 0) / step
    return 0.5 * (second + second.transpose(0, 2, 1))
