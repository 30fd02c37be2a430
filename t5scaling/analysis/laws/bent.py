"""Power laws that bend once: where D is large, as curves that level off do, or where it is small,
as curves do that start from what finetuning data teach.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law, sigmoid

ONSET_REACH = 3.0


class _Bent(Law):
    """A power law in D that bends once: held at the centre, u = log D - log D_c,

        theta = (log L(D_c), slope = -d log L / d log D at D_c, log g)
        log L(D) = theta_0 + side * c * log((e^(-side * u) + g) / (1 + g)), c = slope * (1 + g)

    side is 1 where it bends at the large sizes and -1 where it does at the small ones; g = 0 is the
    pure power law.
    """

    direction = -1
    huber_delta = 1e-3
    side: ClassVar[float]

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, slope, log_g = (theta[..., i, None] for i in range(3))
        g, u = np.exp(log_g), log_x - frame.log_centre
        drop = np.log(np.exp(-self.side * u) + g) - np.logaddexp(0.0, log_g)
        return value + self.side * slope * (1 + g) * drop

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        _, slope, log_g = (theta[..., i, None] for i in range(3))
        g, u = np.exp(log_g), log_x - frame.log_centre
        total = np.exp(-self.side * u) + g
        drop = self.side * (np.log(total) - np.logaddexp(0.0, log_g))
        share = self.side * (g / total - sigmoid(log_g))  # derivative of `drop` by log g
        return np.stack(
            [np.ones_like(drop), (1 + g) * drop, slope * (g * drop + (1 + g) * share)], axis=-1
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        grid = [
            (log_y.mean(), steepness * factor, log_g)
            for factor in (0.1, 0.4, 1.0, 1.5)
            for log_g in (-6.0, -4.0, -2.5, -1.0, 0.0, 1.0)
        ]
        return np.array(grid)

    def _bounds(self, frame: Frame, most: float) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, -12.0]),
            np.array([frame.log_high + width, 10.0, most]),
        )


class ShiftedPower(_Bent):
    """L(D) = b * (1/D + g)^c, c, g >= 0 (M3 of Alabdulmohsin et al., arXiv 2209.06640).

    A power law that levels off at b * g^c once D passes 1/g. Internally g is g * D_c.
    """

    name = "m3"
    title = "shifted power law"
    formula = "L(D) = b * (1/D + g)^c"
    side = 1.0
    theta_names = ("log value at the centre", "slope at the centre", "log g")
    coefficient_table = (
        Coefficient("b", "factor", "metric * D^c"),
        Coefficient("g", "inverse of the size at which the curve levels off", "1/D"),
        Coefficient("c", "exponent", "1"),
        Coefficient("floor", "b * g^c: value for unlimited D", "metric"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not fall with D",
        ("log g", "low"): "no levelling off is visible in the fitted points (g = 0 fits best)",
        ("log g", "high"): "the fitted curve levels off before its centre",
    }

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        return self._bounds(frame, 6.0)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, log_g = (theta[..., i] for i in range(3))
        power = slope * (1 + np.exp(log_g))
        with np.errstate(over="ignore"):
            return {
                "b": np.exp(value - power * (np.logaddexp(0.0, log_g) - frame.log_centre)),
                "g": np.exp(log_g - frame.log_centre),
                "c": power,
                "floor": np.exp(value + power * (log_g - np.logaddexp(0.0, log_g))),
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["b"] * (1 / x + c["g"]) ** c["c"]


class Onset(_Bent):
    """L(D) = b / (1 + D/d)^c, b, c, d >= 0: what pretraining adds to a model that is finetuned.

    b is the value without pretraining, and d what the finetuning data are worth in tokens of
    pretraining: the loss is a power law of both together, as in the effective data of Hernandez et
    al. (arXiv 2102.01293). The curve falls slowly where D is small beside d, which no law with a
    floor does. Internally d is d / D_c; no more than ONSET_REACH times the largest of evenly spread
    sizes, beyond which the points show no power law that could be gone on with.
    """

    name = "onset"
    title = "power law with an onset"
    formula = "L(D) = b / (1 + D/d)^c"
    side = -1.0
    theta_names = ("log value at the centre", "slope at the centre", "log d")
    coefficient_table = (
        Coefficient("b", "value at D = 0, without pretraining", "metric"),
        Coefficient("d", "size that the finetuning data are worth", "D"),
        Coefficient("c", "exponent", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not fall with D",
        ("log d", "low"): "no onset is visible in the fitted points (d = 0 fits best)",
        ("log d", "high"): "the fitted points are all of the onset, and show no power law yet",
    }

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        reach = float(frame.log_centre - frame.log_min)
        return self._bounds(frame, reach + np.log(ONSET_REACH))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, log_d = (theta[..., i] for i in range(3))
        power = slope * (1 + np.exp(log_d))
        with np.errstate(over="ignore"):
            return {
                "b": np.exp(value + power * (np.logaddexp(0.0, log_d) - log_d)),
                "d": np.exp(log_d + frame.log_centre),
                "c": power,
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["b"] / (1 + x / c["d"]) ** c["c"]


LAWS: tuple[Law, ...] = (ShiftedPower(), Onset())
