"""The scaling laws: one small object per law.

A law maps the pretraining size D (tokens, or whatever unit the x column has) to a positive metric
value. Fits work on the logarithm of the value and in an internal parametrisation `theta` chosen so
that its three numbers are O(1), weakly correlated and bounded; `coefficients` turns `theta` into
the numbers of the published formula. To add a law, write one class and enter it in `LAWS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Frame:
    """Constants of the points that a law is fitted to; they make `theta` free of units.

    log_min: natural log of the smallest x.
    log_centre: mean of the natural logs of the distinct x.
    log_low, log_high: natural logs of the smallest and the largest value.
    """

    log_min: float
    log_centre: float
    log_low: float
    log_high: float

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray) -> "Frame":
        log_x, log_y = np.unique(np.log(x)), np.log(y)
        return Frame(float(log_x[0]), float(log_x.mean()), float(log_y.min()), float(log_y.max()))


@dataclass(frozen=True)
class Coefficient:
    """One reported number of a law: its name, what it means, its unit."""

    name: str
    meaning: str
    unit: str


class Law:
    """What every law offers. `theta` has shape (..., P), `log_x` shape (N,); all float64."""

    name: str  # on the command line and in fits.json
    title: str  # in tables and figures
    formula: str
    direction: int  # +1: rises with x, -1: falls with x
    huber_delta: float  # default, on log values
    theta_names: tuple[str, ...]
    coefficient_table: tuple[Coefficient, ...]
    at_bound: Mapping[tuple[str, str], str]  # (theta name, "low" or "high") -> what it means

    @property
    def num_parameters(self) -> int:
        return len(self.theta_names)

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """Natural log of the law's value, shape (..., N); -inf where the law predicts 0."""
        raise NotImplementedError

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """Derivatives of `log_value` by `theta`, shape (..., N, P)."""
        raise NotImplementedError

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of `theta`, shape (P,) each."""
        raise NotImplementedError

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        """A grid of starting points made from the data, shape (S, P)."""
        raise NotImplementedError

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        """The published formula's numbers, each of shape (...); inf where one overflows."""
        raise NotImplementedError


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
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted score does not rise with D",
        ("slope at the centre", "high"): "the fitted score rises steeper than the law allows for",
        ("t", "low"): "D0 sits just under the smallest fitted size",
        ("t", "high"): "the fit cannot be told from a pure power of D; A, alpha and beta mean "
        "little one by one",
    }

    def log_value(self, theta, log_x, frame):
        value, slope, t = (theta[..., i, None] for i in range(3))
        h = frame.log_centre - frame.log_min + np.exp(t)
        inside = np.maximum((log_x - frame.log_centre) / h, -1.0)
        with np.errstate(divide="ignore"):
            return value + slope * h * np.log1p(inside)

    def jacobian(self, theta, log_x, frame):
        slope, span = theta[..., 1, None], np.exp(theta[..., 2, None])
        h = frame.log_centre - frame.log_min + span
        ratio = (log_x - frame.log_centre) / h
        log = np.log1p(ratio)
        return np.stack(
            [np.ones_like(log), h * log, slope * span * (log - ratio / (1 + ratio))], axis=-1
        )

    def bounds(self, frame):
        width = 2.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-4, -5.0]),
            np.array([frame.log_high + width, 20.0, 6.0]),
        )

    def starts(self, log_x, log_y, frame):
        steepness = max(np.polyfit(log_x, log_y, 1)[0], 1e-2)
        grid = [
            (log_y.mean(), steepness * factor, t)
            for factor in (0.3, 1.0, 2.0)
            for t in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5)
        ]
        return np.array(grid)

    def coefficients(self, theta, frame):
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

    def log_value(self, theta, log_x, frame):
        value, slope, log_rho = (theta[..., i, None] for i in range(3))
        decay = slope * np.exp(log_rho) * (log_x - frame.log_centre)
        with np.errstate(divide="ignore"):
            return value + np.logaddexp(np.log1p(-np.exp(-log_rho)), -log_rho - decay)

    def jacobian(self, theta, log_x, frame):
        slope, rho = theta[..., 1, None], np.exp(theta[..., 2, None])
        centred = log_x - frame.log_centre
        decay = slope * rho * centred
        reducible = np.exp(np.clip(-decay, -500, 500)) / rho
        total = 1 - 1 / rho + reducible
        return np.stack(
            [
                np.ones_like(decay),
                -reducible * rho * centred / total,
                (1 / rho - reducible * (1 + decay)) / total,
            ],
            axis=-1,
        )

    def bounds(self, frame):
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 0.0]),
            np.array([frame.log_high + width, 10.0, np.log(1e3)]),
        )

    def starts(self, log_x, log_y, frame):
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        grid = [
            (log_y.mean(), steepness * factor, log_rho)
            for factor in (0.1, 0.4, 1.0, 1.5)
            for log_rho in (0.0, 0.3, 0.8, 1.5, 2.5, 4.0)
        ]
        return np.array(grid)

    def coefficients(self, theta, frame):
        value, slope, log_rho = (theta[..., i] for i in range(3))
        alpha = slope * np.exp(log_rho)
        with np.errstate(over="ignore"):
            return {
                "E": -np.exp(value) * np.expm1(-log_rho),
                "A": np.exp(value - log_rho + alpha * frame.log_centre),
                "alpha": alpha,
            }


LAWS: dict[str, Law] = {law.name: law for law in (LogLaw(), PowerLaw())}

LOWER_IS_BETTER = frozenset({"cross_entropy", "loss", "perplexity", "ter", "wer"})


def law_of_metric(metric: str) -> Law:
    """The paper's choice: Eq. 3 for cross-entropy (and other losses), Eq. 1 for scores."""
    return LAWS["power" if metric in LOWER_IS_BETTER else "log"]
