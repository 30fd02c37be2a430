"""Laws of what grows as a power of compute: the best size of a model, the best amount of data.

N*(C) = b * C^c is how approaches 1 and 2 of Hoffmann et al. (arXiv 2203.15556) write the optima
that they measure, with c near 0.5. It is a law of decline read from the other side: of 1/C instead
of C.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law
from t5scaling.analysis.laws.one_size import PurePower
from t5scaling.analysis.laws.paper import PowerLaw


def _mirrored(frame: Frame) -> Frame:
    """The frame of the same points over 1/C."""
    return replace(frame, log_min=-frame.log_min, log_centre=-frame.log_centre)


class _Mirrored(Law):
    """A law that falls, read from right to left: of 1 / C. Its class comes before the law's."""

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return super().log_value(theta, -log_x, _mirrored(frame))

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return super().jacobian(theta, -log_x, _mirrored(frame))

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        return super().starts(-log_x, log_y, _mirrored(frame))


class RisingPower(_Mirrored, PurePower):
    """y(C) = b * C^c, a straight line in logs that rises.

    theta = (log y(C_c), c)
    """

    name = "rising"
    title = "rising power law"
    formula = "y(C) = b * C^c"
    sizes = ("C",)
    direction = 1
    coefficient_table = (
        Coefficient("b", "value at C = 1", "y / C^c"),
        Coefficient("c", "exponent", "1"),
    )
    at_bound: ClassVar = {("exponent", "low"): "the fitted value does not rise with C"}

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        return super().coefficients(theta, _mirrored(frame))

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["b"] * x ** c["c"]


class RisingFromFloor(_Mirrored, PowerLaw):
    """y(C) = e + b * C^c: a rising power law above the value e that no compute gives.

    theta = (log y(C_c), slope = d log y / d log C at C_c, log rho),  rho = y(C_c) / (y(C_c) - e)
    """

    name = "rising-floor"
    title = "rising power law with floor"
    formula = "y(C) = e + b * C^c"
    sizes = ("C",)
    direction = 1
    coefficient_table = (
        Coefficient("e", "floor: value without compute", "y"),
        Coefficient("b", "size of what is above it at C = 1", "y / C^c"),
        Coefficient("c", "exponent", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not rise with C",
        ("log rho", "low"): "no floor is visible in the fitted points (e = 0 fits best)",
        ("log rho", "high"): "the fitted values rise at the end alone",
    }

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        found = super().coefficients(theta, _mirrored(frame))
        return {"e": found["E"], "b": found["A"], "c": found["alpha"]}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["e"] + c["b"] * x ** c["c"]


LAWS: tuple[Law, ...] = (RisingPower(), RisingFromFloor())
