"""The two laws that the paper fits (Isik et al., arXiv 2402.04177): of scores and of losses."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law


class LogLaw(Law):
    """f(D) = (log(A * D^alpha))^beta, natural log (Isik et al., arXiv 2402.04177, Eq. 1).

    Written out, f(D) = s * (log D - log D0)^beta with s = alpha^beta and D0 = A^(-1/alpha): only
    (s, D0, beta) are identified by data, and (A, alpha) run away along a ridge when fitted freely.
    D0 lies below the smallest fitted size: log D0 = log D_min - exp(t). Instead of (log s, beta)
    the fit holds the log value and the log-log slope at the centre of the points, which are what
    the points pin down directly:

        theta = (log f(D_c), slope = d log f / d log D at D_c, t)
        h = log D_c - log D0,  log f(D) = theta_0 + slope * h * log(1 + (log D - log D_c) / h)
        beta = slope * h,  log s = theta_0 - beta * log h

    For t -> infinity this is the pure power f ~ D^slope. The law has no ceiling.
    """

    name = "log"
    title = "log-law"
    formula = "f(D) = (log(A * D^alpha))^beta"
    direction = 1
    huber_delta = 0.1
    theta_names = ("log value at the centre", "slope at the centre", "t")
    coefficient_table = (
        Coefficient("A", "factor inside the logarithm", "D^-alpha"),
        Coefficient("alpha", "factor of log D inside the logarithm", "metric^(1/beta)"),
        Coefficient("beta", "exponent of the logarithm", "1"),
        Coefficient("s", "alpha^beta: value where log D = log D0 + 1", "metric"),
        Coefficient("D0", "size below which the predicted score is 0", "D"),
    )
    identified = ("s", "D0", "beta")
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted score does not rise with D",
        ("slope at the centre", "high"): "the fitted score rises steeper than the law allows for",
        ("t", "low"): "D0 sits just under the smallest fitted size",
        ("t", "high"): "these points do not distinguish the fit from a pure power of D; A, alpha "
        "and beta mean little one by one",
    }

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, slope, t = (theta[..., i, None] for i in range(3))
        h = frame.log_centre - frame.log_min + np.exp(t)
        inside = np.maximum((log_x - frame.log_centre) / h, -1.0)
        with np.errstate(divide="ignore"):
            return value + slope * h * np.log1p(inside)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        slope, span = theta[..., 1, None], np.exp(theta[..., 2, None])
        h = frame.log_centre - frame.log_min + span
        ratio = (log_x - frame.log_centre) / h
        log = np.log1p(ratio)
        return np.stack(
            [np.ones_like(log), h * log, slope * span * (log - ratio / (1 + ratio))], axis=-1
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 2.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-4, -5.0]),
            np.array([frame.log_high + width, 20.0, 6.0]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(np.polyfit(log_x, log_y, 1)[0], 1e-2)
        grid = [
            (log_y.mean(), steepness * factor, t)
            for factor in (0.3, 1.0, 2.0)
            for t in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, t = (theta[..., i] for i in range(3))
        h = frame.log_centre - frame.log_min + np.exp(t)
        beta = slope * h
        log_d0 = frame.log_min - np.exp(t)
        with np.errstate(over="ignore", under="ignore"):
            alpha = np.exp(value / beta) / h
            return {
                "A": np.exp(-alpha * log_d0),
                "alpha": alpha,
                "beta": beta,
                "s": np.exp(value - beta * np.log(h)),
                "D0": np.exp(log_d0),
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return (np.log(c["A"]) + c["alpha"] * np.log(x)) ** c["beta"]


class PowerLaw(Law):
    """L(D) = E + A / D^alpha (Isik et al., arXiv 2402.04177, Eq. 3).

    Fitted as (E, A, alpha), or their logs, the three pull on each other along a narrow bent valley
    in which solvers creep. As for the log-law, the fit holds what the points pin down, at their
    centre D_c, and one number for the shape:

        theta = (log L(D_c), slope = -d log L / d log D at D_c, log rho)
        rho = L(D_c) / (L(D_c) - E) >= 1,  alpha = slope * rho
        L(D) = L(D_c) * (1 - 1/rho + (D / D_c)^-alpha / rho)

    rho = 1 is a power law without floor, E = 0.
    """

    name = "power"
    title = "power law with floor"
    formula = "L(D) = E + A / D^alpha"
    direction = -1
    huber_delta = 1e-3
    theta_names = ("log value at the centre", "slope at the centre", "log rho")
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited D", "metric"),
        Coefficient("A", "size of the reducible part", "metric * D^alpha"),
        Coefficient("alpha", "exponent of the reducible part", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not fall with D",
        ("log rho", "low"): "no floor is visible in the fitted points (E = 0 fits best)",
        ("log rho", "high"): "the fitted curve drops at once and is flat afterwards",
    }

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, log_rho = theta[..., 0, None], theta[..., 2, None]
        inside = self._rise(theta, log_x, frame)
        # log(exp(rise) + rho - 1), in place: np.logaddexp would take several times as long.
        np.exp(inside, out=inside)
        inside += np.expm1(log_rho)
        with np.errstate(divide="ignore"):
            np.log(inside, out=inside)
        inside += value - log_rho
        return inside

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        rise, log_rho = self._rise(theta, log_x, frame), theta[..., 2, None]
        power = np.exp(rise)
        total = power + np.expm1(log_rho)
        slopes = np.ones((*rise.shape, 3))
        slopes[..., 1] = power / total * (-np.exp(log_rho) * (log_x - frame.log_centre))
        slopes[..., 2] = (1 - power * (1 - rise)) / total
        return slopes

    @staticmethod
    def _rise(theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """-alpha * (log D - log D_c), (..., N), as far as a float64 holds its exponential."""
        rise = -theta[..., 1, None] * np.exp(theta[..., 2, None]) * (log_x - frame.log_centre)
        return np.clip(rise, -500, 500, out=rise)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 0.0]),
            np.array([frame.log_high + width, 10.0, np.log(1e3)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        grid = [
            (log_y.mean(), steepness * factor, log_rho)
            for factor in (0.1, 0.4, 1.0, 1.5)
            for log_rho in (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.5, 4.0)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, log_rho = (theta[..., i] for i in range(3))
        alpha = slope * np.exp(log_rho)
        with np.errstate(over="ignore"):
            return {
                "E": -np.exp(value) * np.expm1(-log_rho),
                "A": np.exp(value - log_rho + alpha * frame.log_centre),
                "alpha": alpha,
            }

    def floor(self, theta: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        value, log_rho = np.exp(theta[..., 0]), theta[..., 2]
        floor = -value * np.expm1(-log_rho)
        by_rho = value * np.exp(-log_rho)
        return floor, np.stack([floor, np.zeros_like(floor), by_rho], axis=-1)

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["E"] + c["A"] / x ** c["alpha"]


LAWS: tuple[Law, ...] = (LogLaw(), PowerLaw())
