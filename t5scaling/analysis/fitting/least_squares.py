"""Many small robust least-squares problems at once.

A study asks for thousands of three-parameter fits (starts x bootstrap replicates), each too small
to keep a general solver busy: the time would go into calls. Here all problems of a batch take
their steps together. Levenberg-Marquardt in float64 with exact Jacobians, box bounds, and two
candidate steps per iteration: the reweighted one, safe far from the optimum, and Newton's with
second derivatives, quick at the end, once the set of outliers is known.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FIRST_NEWTON = 5  # far from the optimum Newton's steps are not worth their price


class Solution(NamedTuple):
    """theta (B, P), objective (B,): the sum of Huber losses, converged (B,) bool."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 up to delta, then linear: delta * (|r| - delta / 2) (Huber 1964)."""
    size = np.abs(residuals)
    if np.isinf(delta):
        return 0.5 * residuals**2
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(
    residuals_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    slopes_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    targets: np.ndarray,
    theta: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    delta: float,
    tolerance: float = 1e-7,
    max_iterations: int = 300,
) -> Solution:
    """Minimises sum_n huber(residual_n) for each row of the batch.

    Args:
      residuals_of: theta (b, P), targets (b, N) -> residuals (b, N), for any batch size b. Where
        they are not finite the point is infeasible, and no step goes there.
      slopes_of: theta (b, P), targets (b, N) -> minus their derivatives by theta (b, N, P).
      targets: (B, N).
      theta: (B, P) starting points; clipped into the bounds.
      lower, upper: (P,).
      delta: Huber's threshold, in the unit of the residuals.
      tolerance: converged where the gradient is smaller, as a share of the largest pull that one
        residual can have (delta; 1 for plain squares, delta = inf).
    """
    theta = np.clip(theta, lower, upper)

    def objective_of(theta, targets):
        value = huber(residuals_of(theta, targets), delta).sum(-1)
        return np.where(np.isfinite(value), value, np.inf)

    objective = objective_of(theta, targets)
    converged = np.zeros(len(theta), bool)
    damping = np.full(len(theta), 1e-2)
    active = np.arange(len(theta))
    for iteration in range(max_iterations):
        at, goal = theta[active], targets[active]
        residuals, slopes = residuals_of(at, goal), slopes_of(at, goal)
        pull = np.clip(residuals, -delta, delta)
        downhill = (slopes * pull[:, :, None]).sum(1)
        blocked = ((at <= lower) & (downhill < 0)) | ((at >= upper) & (downhill > 0))
        downhill = np.where(blocked, 0.0, downhill)
        done = np.abs(downhill).max(-1) <= tolerance * min(delta, 1.0)
        converged[active[done]] = True
        going = ~done & (damping[active] < 1e14)
        if not going.any():
            break
        active, at, goal, residuals = active[going], at[going], goal[going], residuals[going]
        slopes, pull, downhill, blocked = (
            slopes[going] * ~blocked[going, None, :],
            pull[going],
            downhill[going],
            blocked[going],
        )
        inliers = np.abs(residuals) <= delta
        reweighted = np.where(inliers, 1.0, delta / np.maximum(np.abs(residuals), delta))
        best_theta, best_objective = at, np.full(len(active), np.inf)
        scale = (slopes**2 * reweighted[:, :, None]).sum(1)
        floor = 1e-6 * scale.max(-1, keepdims=True) + 1e-30
        ridge = damping[active, None] * (scale + floor) + blocked
        models = [(reweighted, 0.0)]
        if iteration >= FIRST_NEWTON:
            fixed = blocked[:, :, None] | blocked[:, None]
            bending = _second_derivatives(slopes_of, at, goal, pull, slopes) * ~fixed
            models.append((inliers.astype(float), bending))
        for weights, correction in models:
            weighted = (slopes * weights[:, :, None]).transpose(0, 2, 1)
            curvature = weighted @ slopes - correction
            curvature += ridge[:, :, None] * np.eye(theta.shape[1])
            step = np.linalg.solve(curvature, downhill[:, :, None])[:, :, 0]
            candidate = np.clip(at + np.clip(step, -2.0, 2.0), lower, upper)
            value = objective_of(candidate, goal)
            better = value < best_objective
            best_theta = np.where(better[:, None], candidate, best_theta)
            best_objective = np.where(better, value, best_objective)
        improved = best_objective < objective[active]
        theta[active] = np.where(improved[:, None], best_theta, at)
        objective[active] = np.where(improved, best_objective, objective[active])
        damping[active] = np.where(
            improved, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4
        )
    return Solution(theta, objective, converged)


def _second_derivatives(slopes_of, theta, targets, pull, slopes) -> np.ndarray:
    """sum_n pull_n * d slopes_n / d theta, shape (b, P, P), by forward differences."""
    step = 1e-6
    columns = [
        (pull[:, :, None] * (slopes_of(theta + shift, targets) - slopes)).sum(1)
        for shift in step * np.eye(theta.shape[1])
    ]
    second = np.stack(columns, axis=-1) / step
    return 0.5 * (second + second.transpose(0, 2, 1))
