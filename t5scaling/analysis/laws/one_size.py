"""Rivals of the paper's laws: what the learning-curve literature fits to one curve.

They stand beside the log-law and the power law with floor, so that held-out points can say which
family a curve follows. u = log D - log D_c is the log size from the centre of the fitted points.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws import bent
from t5scaling.analysis.laws.base import Coefficient, Frame, Law, sigmoid

_FAR = 500.0  # a logit beyond which a float64 cannot tell its sigmoid from 1


def _root(a: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """z with a * softplus(z) - softplus(-z) = goal, for a >= 0; arrays of shapes that go together.

    The left side is z below 0 and a * z above, plus (a - 1) * log(1 + e^-|z|). From the root of the
    first part alone Newton's steps go to one side only, towards the root: the left side rises and
    is concave for a < 1, convex for a > 1.
    """
    z = np.where(goal < 0, goal, goal / np.maximum(a, 1e-9))
    z = np.clip(z, -np.inf, _FAR)
    for _ in range(100):
        shrink = np.exp(-np.abs(z))
        below = z < 0
        miss = np.where(below, z, a * z) + (a - 1) * np.log1p(shrink) - goal
        slope = np.where(below, 1 + a * shrink, shrink + a) / (1 + shrink)
        step = miss / np.maximum(slope, 1e-300)
        new = np.clip(z - step, -np.inf, _FAR)
        moved = np.abs(new - z) > 1e-10 * (1 + np.abs(new))
        z = new
        if not moved.any():
            break
    return z


class PurePower(Law):
    """L(D) = b * D^-c, a straight line in logs (M1 of Alabdulmohsin et al., arXiv 2209.06640).

    theta = (log L(D_c), c)
    """

    name = "m1"
    title = "pure power law"
    formula = "L(D) = b / D^c"
    direction = -1
    huber_delta = 1e-3
    theta_names = ("log value at the centre", "exponent")
    coefficient_table = (
        Coefficient("b", "value at D = 1", "metric * D^c"),
        Coefficient("c", "exponent", "1"),
    )
    at_bound: ClassVar = {("exponent", "low"): "the fitted value does not fall with D"}

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return theta[..., 0, None] - theta[..., 1, None] * (log_x - frame.log_centre)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        shape = (*theta.shape[:-1], len(log_x))
        u = np.broadcast_to(log_x - frame.log_centre, shape)
        return np.stack([np.ones(shape), -u], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return np.array([frame.log_low - width, 1e-6]), np.array([frame.log_high + width, 10.0])

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        return np.array([(log_y.mean(), steepness * f) for f in (0.1, 0.5, 1.0, 1.5)])

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, c = theta[..., 0], theta[..., 1]
        with np.errstate(over="ignore"):
            return {"b": np.exp(value + c * frame.log_centre), "c": c}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["b"] / x ** c["c"]


class BrokenPower(Law):
    """L(D) = a + b * D^-c0 * (1 + (D/d1)^(1/f1))^(-c1 f1): one break (Caballero, arXiv 2210.14891).

    Exponent c0 before the size d1, c0 + c1 after it; f1 is how many e-folds of D the change takes.

        theta = (log L(D_c), early exponent, late exponent, log d1 - log D_c, log f1, log rho)
        rho = L(D_c) / (L(D_c) - a),  as for the power law with floor
    """

    name = "bnsl"
    title = "broken power law"
    formula = "L(D) = a + b * D^-c0 * (1 + (D/d1)^(1/f1))^(-c1 f1)"
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "early exponent", "late exponent", "break", "log f1", "log rho",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("a", "floor: value for unlimited D", "metric"),
        Coefficient("b", "factor of the reducible part", "metric * D^c0"),
        Coefficient("c0", "exponent before the break", "1"),
        Coefficient("c1", "change of the exponent at the break", "1"),
        Coefficient("d1", "size at which the break lies", "D"),
        Coefficient("f1", "width of the break, in e-folds of D", "1"),
    )
    at_bound: ClassVar = {
        ("early exponent", "low"): "the curve is flat before its break",
        ("late exponent", "low"): "the curve is flat after its break",
        ("log f1", "low"): "the break is sharper than the points can show",
        ("log f1", "high"): "no break is visible in the fitted points",
        ("log rho", "low"): "no floor is visible in the fitted points (a = 0 fits best)",
    }

    def _parts(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
        value, early, late, at, log_f, log_rho = (theta[..., i, None] for i in range(6))
        u, width = log_x - frame.log_centre, np.exp(log_f)
        bend = width * (np.logaddexp(0.0, (u - at) / width) - np.logaddexp(0.0, -at / width))
        decay = early * u + (late - early) * bend
        log_floor = np.log(np.maximum(-np.expm1(-log_rho), 1e-300))
        return value, early, late, at, width, log_rho, u, bend, decay, log_floor

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, *_, log_rho, _, _, decay, log_floor = self._parts(theta, log_x, frame)
        return value + np.logaddexp(log_floor, -log_rho - decay)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        parts = self._parts(theta, log_x, frame)
        _, early, late, at, width, log_rho, u, bend, decay, log_floor = parts
        share = sigmoid(-log_rho - decay - log_floor)  # of the reducible part in the value
        here, centre = sigmoid((u - at) / width), sigmoid(-at / width)
        by_at = -(here - centre)
        by_width = bend / width - here * (u - at) / width - centre * at / width
        floor_share = (1 - share) * np.exp(-log_rho - log_floor)  # d log_floor / d log_rho = that
        return np.stack(
            [
                np.ones_like(decay),
                -share * (u - bend),
                -share * bend,
                -share * (late - early) * by_at,
                -share * (late - early) * by_width * width,
                floor_share - share,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        reach = 1.5 * (frame.log_centre - frame.log_min) + 0.1
        return (
            np.array([frame.log_low - width, 0.0, 0.0, -reach, np.log(0.05), 0.0]),
            np.array([frame.log_high + width, 10.0, 10.0, reach, np.log(3.0), np.log(1e3)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        reach = frame.log_centre - frame.log_min
        grid = [
            (log_y.mean(), steepness * early, steepness * late, reach * at, np.log(f), log_rho)
            for early, late in ((0.3, 1.7), (1.7, 0.3), (1.0, 1.0), (3.0, 1.5))
            for at in (-0.6, 0.0, 0.6)
            for f in (0.2, 1.0)
            for log_rho in (0.0, 0.8)
        ]
        return np.clip(np.array(grid), *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, early, late, at, log_f, log_rho = (theta[..., i] for i in range(6))
        width = np.exp(log_f)
        with np.errstate(over="ignore"):
            return {
                "a": -np.exp(value) * np.expm1(-log_rho),
                "b": np.exp(
                    value - log_rho + early * frame.log_centre
                    + (late - early) * width * np.logaddexp(0.0, -at / width)
                ),
                "c0": early,
                "c1": late - early,
                "d1": np.exp(at + frame.log_centre),
                "f1": width,
            }  # fmt: skip

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        bend = (1 + (x / c["d1"]) ** (1 / c["f1"])) ** (-c["c1"] * c["f1"])
        return c["a"] + c["b"] * x ** -c["c0"] * bend


class Sigmoidal(Law):
    """(L(D) - e) / (e0 - L(D))^a = b * D^-c (M4 of Alabdulmohsin et al., arXiv 2209.06640).

    From e0 for little data over a power law to the floor e; L(D) is its root, found by bisection.

        theta = (log L(D_c), slope = -d log L / d log D at D_c, log rho, log tau, kappa)
        e = L(D_c) * (1 - 1/rho),  e0 = (largest fitted value) * (1 + tau)
        a = kappa * (e0 - L(D_c)) / (L(D_c) - e),  c = slope * rho * (1 + kappa)

    kappa, not a, as points far below e0 show only a / e0.
    """

    name = "m4"
    title = "sigmoidal power law"
    formula = "(L(D) - e) / (e0 - L(D))^a = b / D^c"
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "slope at the centre", "log rho", "log tau", "kappa",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("e", "floor: value for unlimited D", "metric"),
        Coefficient("e0", "value for little D", "metric"),
        Coefficient("a", "how sharply the curve leaves e0; 0: a power law with floor", "1"),
        Coefficient("b", "factor of the middle part", "metric^(1-a) * D^c"),
        Coefficient("c", "exponent of the middle part", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not fall with D",
        ("log rho", "low"): "no floor is visible in the fitted points (e = 0 fits best)",
        ("kappa", "low"): "no plateau at small D is visible (a = 0 fits best)",
        ("log tau", "high"): "e0 lies far above all fitted points",
    }

    def _natural(self, theta: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
        """L(D_c), e, e0, L(D_c) - e, e0 - L(D_c), a, c; each (..., 1)."""
        value, slope, log_rho, log_tau, kappa = (theta[..., i, None] for i in range(5))
        centre = np.exp(value)
        over = centre * np.exp(-log_rho)
        e0 = np.exp(frame.log_high) * (1 + np.exp(log_tau))
        under = e0 - centre
        a, c = kappa * under / over, slope * np.exp(log_rho) * (1 + kappa)
        return centre, centre - over, e0, over, under, a, c

    def _logit(
        self, theta: np.ndarray, log_x: np.ndarray, frame: Frame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log((L - e) / (e0 - L)), shape (..., N); e, e0."""
        _, e, e0, over, under, a, c = self._natural(theta, frame)
        width = e0 - e
        goal = np.log(over / width) - a * np.log(under / width) - c * (log_x - frame.log_centre)
        return _root(a, goal), e, e0

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        z, e, e0 = self._logit(theta, log_x, frame)
        return np.log(e + (e0 - e) * sigmoid(z))

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        z, e, e0 = self._logit(theta, log_x, frame)
        centre, _, _, over, under, a, c = self._natural(theta, frame)
        _, slope, log_rho, log_tau, kappa = (theta[..., i, None] for i in range(5))
        u, rho, tau = log_x - frame.log_centre, np.exp(log_rho), np.exp(frame.log_high + log_tau)
        above = (e0 - e) * sigmoid(z)  # L - e
        y = e + above
        # log(y-e) - a log(e0-y) = log(over) - a log(under) - c u, differentiated implicitly.
        ratio = a * np.exp(z)
        by_e, by_e0, by_goal = 1 / (1 + ratio), ratio / (1 + ratio), above / (1 + ratio)
        by_a = by_goal * (np.log((e0 - e) / under) - np.logaddexp(0.0, z))
        columns = [
            by_e * e + by_goal * (1 + a * centre / under) - by_a * a * (1 + centre / under),
            -by_goal * u * rho * (1 + kappa),
            by_e * over - by_goal * (1 + u * c) + by_a * a,
            by_e0 * tau - by_goal * a * tau / under + by_a * a * tau / under,
            -by_goal * u * slope * rho + by_a * under / over,
        ]
        return np.stack([np.broadcast_to(column / y, y.shape) for column in columns], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 0.0, np.log(1e-3), 0.0]),
            np.array([frame.log_high, 10.0, np.log(1e3), np.log(1e2), 20.0]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x, log_y, 1)[0], 1e-3)
        grid = [
            (log_y.mean(), steepness * factor, log_rho, np.log(tau), kappa)
            for factor in (0.5, 1.0, 1.5)
            for log_rho in (0.1, 0.8, 2.0)
            for tau in (0.05, 1.0)
            for kappa in (0.1, 1.0)
        ]
        return np.clip(np.array(grid), *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        _, e, e0, over, under, a, c = (x[..., 0] for x in self._natural(theta, frame))
        with np.errstate(over="ignore", under="ignore"):
            b = np.exp(np.log(over) - a * np.log(under) + c * frame.log_centre)
        return {"e": e, "e0": e0, "a": a, "b": b, "c": c}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        low, high = np.full(np.shape(x), c["e"]), np.full(np.shape(x), c["e0"])
        for _ in range(200):
            y = (low + high) / 2
            with np.errstate(divide="ignore"):
                above = np.log(y - c["e"]) - c["a"] * np.log(c["e0"] - y)
            too_high = above > np.log(c["b"]) - c["c"] * np.log(x)
            low, high = np.where(too_high, low, y), np.where(too_high, y, high)
        return (low + high) / 2


class Ceiling(Law):
    """f(D) = C - A / D^alpha: a score that saturates (pow3 of Domhan et al., IJCAI 2015).

    Held at the smallest fitted size and one span of log sizes above it:

        theta = (log f(D_min), log G, log k),  v = (log D - log D_min) / span
        f(D) = f(D_min) * (1 + G * (1 - e^(-k v)) / (1 - e^-k)),  alpha = k / span

    G is the gain over the span, relative to f(D_min). k = 0 would be linear in log D: the log-law
    with beta = 1.
    """

    name = "ceiling"
    title = "power law with ceiling"
    formula = "f(D) = C - A / D^alpha"
    direction = 1
    huber_delta = 0.1
    theta_names = ("log value at the smallest size", "log gain", "log curvature")
    coefficient_table = (
        Coefficient("C", "ceiling: score for unlimited D", "metric"),
        Coefficient("A", "size of what is missing to the ceiling", "metric * D^alpha"),
        Coefficient("alpha", "exponent of what is missing", "1"),
    )
    at_bound: ClassVar = {
        ("log gain", "low"): "the fitted score does not rise with D",
        ("log curvature", "low"): "no ceiling is visible in the fitted points",
        ("log curvature", "high"): "the fitted curve rises at once and is flat afterwards",
    }

    @staticmethod
    def _range(frame: Frame) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Where v is 0, and the span in which it grows by 1."""
        return frame.log_min, 2 * (frame.log_centre - frame.log_min)

    def _place(self, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        start, span = self._range(frame)
        return (log_x - start) / span

    def _shape(
        self, theta: np.ndarray, log_x: np.ndarray, frame: Frame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k, v = np.exp(theta[..., 2, None]), self._place(log_x, frame)
        with np.errstate(over="ignore"):
            return k, v, np.expm1(-k * v) / np.expm1(-k)

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        _, _, s = self._shape(theta, log_x, frame)
        inside = np.exp(theta[..., 1, None]) * s
        with np.errstate(divide="ignore"):
            return theta[..., 0, None] + np.log1p(np.maximum(inside, -1.0))

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        k, v, s = self._shape(theta, log_x, frame)
        gain = np.exp(theta[..., 1, None])
        by_k = (v * np.exp(-k * v) * -np.expm1(-k) + np.expm1(-k * v) * np.exp(-k)) / (
            np.expm1(-k) ** 2
        )
        share = gain / (1 + gain * s)
        return np.stack([np.ones_like(s), share * s, share * k * by_k], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 2.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, -9.0, np.log(1e-2)]),
            np.array([frame.log_high + width, 9.0, np.log(50.0)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        at_min = log_y[log_x == log_x.min()].mean()
        gain = max(np.exp(log_y[log_x == log_x.max()].mean() - at_min) - 1, 1e-3)
        grid = [
            (at_min, np.log(gain * factor), np.log(k))
            for factor in (0.3, 1.0, 2.0)
            for k in (0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
        ]
        return np.clip(np.array(grid), *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, log_gain, log_k = (theta[..., i] for i in range(3))
        start, span = self._range(frame)
        k = np.exp(log_k)
        missing = np.exp(value + log_gain) / -np.expm1(-k)
        limit, rate = np.exp(value) + missing, k / span
        with np.errstate(over="ignore"):
            factor = missing * np.exp(rate * start)
        names = (c.name for c in self.coefficient_table)
        return dict(zip(names, (limit, factor, rate), strict=True))

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["C"] - c["A"] / x ** c["alpha"]


class Hill(Law):
    """f(D) = C / (1 + (D_half / D)^k): a sigmoid in log D (Hill; Domhan et al., IJCAI 2015).

        theta = (log f(D_c), slope = d log f / d log D at D_c, w),  k = slope / sigmoid(w)
        log f(D) = theta_0 + softplus(w) - softplus(w - k u)

    For w -> infinity this is a pure power of D; the ceiling is C = f(D_c) * (1 + e^w).
    """

    name = "hill"
    title = "sigmoid in log D"
    formula = "f(D) = C / (1 + (D_half/D)^k)"
    direction = 1
    huber_delta = 0.1
    theta_names = ("log value at the centre", "slope at the centre", "w")
    coefficient_table = (
        Coefficient("C", "ceiling: score for unlimited D", "metric"),
        Coefficient("D_half", "size at which half of it is reached", "D"),
        Coefficient("k", "steepness", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted score does not rise with D",
        ("w", "high"): "no ceiling is visible in the fitted points",
        ("w", "low"): "the fitted curve is flat at its ceiling",
    }

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, slope, w = (theta[..., i, None] for i in range(3))
        steep = slope / sigmoid(w)
        return (
            value + np.logaddexp(0.0, w) - np.logaddexp(0.0, w - steep * (log_x - frame.log_centre))
        )

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        _, slope, w = (theta[..., i, None] for i in range(3))
        share, u = sigmoid(w), log_x - frame.log_centre
        steep = slope / share
        here = sigmoid(w - steep * u)
        return np.stack(
            [np.ones_like(here), here * u / share, share - here * (1 + u * steep * (1 - share))],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 2.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-5, -6.0]),
            np.array([frame.log_high + width, 20.0, 9.0]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(np.polyfit(log_x, log_y, 1)[0], 1e-2)
        grid = [
            (log_y.mean(), steepness * factor, w)
            for factor in (0.3, 1.0, 2.0)
            for w in (-4.0, -2.5, -1.0, 0.0, 1.0, 2.0, 4.0, 7.0)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, w = (theta[..., i] for i in range(3))
        steep = slope / sigmoid(w)
        with np.errstate(over="ignore"):
            return {
                "C": np.exp(value + np.logaddexp(0.0, w)),
                "D_half": np.exp(frame.log_centre + w / steep),
                "k": steep,
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["C"] / (1 + (c["D_half"] / x) ** c["k"])


LAWS: tuple[Law, ...] = (
    PurePower(), *bent.LAWS, Sigmoidal(), BrokenPower(), Ceiling(), Hill(),
)  # fmt: skip
