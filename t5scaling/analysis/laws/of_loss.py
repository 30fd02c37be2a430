"""Laws of a downstream score against a loss: x is the loss, not a size."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law
from t5scaling.analysis.laws.one_size import Ceiling


class ScoreOfLoss(Law):
    """f(L) = C * e^(k L), k < 0: a score against the cross-entropy (Gordon et al., EMNLP 2021).

    theta = (log f(L_c), -k L_c), with L_c the loss at the centre of the fitted points.
    """

    name = "gordon"
    title = "exponential of the loss"
    formula = "f(L) = C * e^(k L)"
    direction = -1
    of_loss = True
    huber_delta = 0.1
    theta_names = ("log value at the centre", "decay")
    coefficient_table = (
        Coefficient("C", "score at loss 0", "metric"),
        Coefficient("k", "change of the log score with the loss", "1/loss"),
    )
    at_bound: ClassVar = {("decay", "low"): "the fitted score does not fall with the loss"}

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        share = np.expm1(log_x - frame.log_centre)
        return theta[..., 0, None] - theta[..., 1, None] * share

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        shape = (*theta.shape[:-1], len(log_x))
        share = np.broadcast_to(np.expm1(log_x - frame.log_centre), shape)
        return np.stack([np.ones(shape), -share], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 2.0 + frame.log_high - frame.log_low
        return np.array([frame.log_low - width, 1e-6]), np.array([frame.log_high + width, 1e3])

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        share = np.expm1(log_x - frame.log_centre)
        steepness = max(-np.polyfit(share, log_y, 1)[0], 1e-3)
        return np.array([(log_y.mean(), steepness * f) for f in (0.1, 0.5, 1.0, 1.5)])

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, decay = theta[..., 0], theta[..., 1]
        with np.errstate(over="ignore"):
            return {"C": np.exp(value + decay), "k": -decay / np.exp(frame.log_centre)}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["C"] * np.exp(c["k"] * x)


class ErrorOfLoss(Ceiling):
    """Err(L) = e - k * e^(-g L): a task's error against the loss (Gadre et al., arXiv 2403.08540).

    As the power law with ceiling, with the loss itself in place of log D.
    """

    name = "gadre"
    title = "saturating exponential of the loss"
    formula = "Err(L) = e - k * e^(-g L)"
    of_loss = True
    theta_names = ("log value at the smallest loss", "log gain", "log curvature")
    coefficient_table = (
        Coefficient("e", "error for unlimited loss", "metric"),
        Coefficient("k", "size of what is missing to it", "metric"),
        Coefficient("g", "how fast it is approached", "1/loss"),
    )
    at_bound: ClassVar = {
        ("log gain", "low"): "the fitted error does not rise with the loss",
        ("log curvature", "low"): "no limit is visible in the fitted points",
        ("log curvature", "high"): "the fitted curve rises at once and is flat afterwards",
    }

    @staticmethod
    def _range(frame: Frame) -> tuple[float | np.ndarray, float | np.ndarray]:
        start = np.exp(frame.log_min)
        return start, 2 * (np.exp(frame.log_centre) - start)

    def _place(self, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return super()._place(np.exp(log_x), frame)

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["e"] - c["k"] * np.exp(-c["g"] * x)


LAWS: tuple[Law, ...] = (ScoreOfLoss(), ErrorOfLoss())
