"""Laws of two sizes: pretraining and finetuning data, or model and data.

x has two rows, named by `sizes`; a fit takes (2, N). u_i = log size_i - its log centre over the
fitted points. All fall with both sizes (the effective data transferred rises) and, where they have
a floor, end at it. As for the laws of one size, `theta` holds what the points pin down: the value
and the slopes at the centre.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law, sigmoid


def _slope(log_x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """Slopes of the least-squares plane in logs, (2,)."""
    columns = np.column_stack([np.ones(len(log_y)), *log_x])
    return np.linalg.lstsq(columns, log_y, rcond=None)[0][1:]


class Multiplicative(Law):
    """L = E + A / (D_p^a * D_f^b): the two data sizes multiply (Zhang et al., arXiv 2402.17193).

    theta = (log L_c, slope in D_p, slope in D_f, log rho),  rho = L_c / (L_c - E)
    L = L_c * (1 - 1/rho + e^-(rho (slope_p u_p + slope_f u_f)) / rho),  a = slope_p * rho
    """

    name = "zhang"
    title = "multiplicative joint law"
    formula = "L(D_p, D_f) = E + A / (D_p^a * D_f^b)"
    sizes = ("D_p", "D_f")
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "slope in the first size", "slope in the second size", "log rho",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited data", "metric"),
        Coefficient("A", "size of the reducible part", "metric * D_p^a * D_f^b"),
        Coefficient("a", "exponent of the pretraining data", "1"),
        Coefficient("b", "exponent of the finetuning data", "1"),
    )
    at_bound: ClassVar = {
        ("slope in the first size", "low"): "the fitted value does not fall with the first size",
        ("slope in the second size", "low"): "the fitted value does not fall with the second size",
        ("log rho", "low"): "no floor is visible in the fitted points (E = 0 fits best)",
        ("log rho", "high"): "the fitted values drop at once and are flat afterwards",
    }

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, first, second, log_rho = (theta[..., i, None] for i in range(4))
        u = log_x - frame.log_centre
        decay = np.exp(log_rho) * (first * u[0] + second * u[1])
        with np.errstate(divide="ignore"):
            return value + np.logaddexp(np.log1p(-np.exp(-log_rho)), -log_rho - decay)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        first, second = theta[..., 1, None], theta[..., 2, None]
        rho, u = np.exp(theta[..., 3, None]), log_x - frame.log_centre
        decay = rho * (first * u[0] + second * u[1])
        reducible = np.exp(np.clip(-decay, -500, 500)) / rho
        total = 1 - 1 / rho + reducible
        return np.stack(
            [
                np.ones_like(decay),
                -reducible * rho * u[0] / total,
                -reducible * rho * u[1] / total,
                (1 / rho - reducible * (1 + decay)) / total,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 1e-6, 0.0]),
            np.array([frame.log_high + width, 10.0, 10.0, np.log(1e3)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        first, second = np.maximum(-_slope(log_x, log_y), 1e-3)
        grid = [
            (log_y.mean(), first * p, second * q, log_rho)
            for p in (0.3, 1.0)
            for q in (0.3, 1.0)
            for log_rho in (0.0, 0.4, 0.8, 1.2, 2.0, 3.5)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, first, second, log_rho = (theta[..., i] for i in range(4))
        rho, centre = np.exp(log_rho), np.ravel(frame.log_centre)
        a, b = first * rho, second * rho
        with np.errstate(over="ignore"):
            numbers = (
                -np.exp(value) * np.expm1(-log_rho),
                np.exp(value - log_rho + a * centre[0] + b * centre[1]),
                a,
                b,
            )
        return dict(zip((c.name for c in self.coefficient_table), numbers, strict=True))

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        floor, part, first, second = (c[k.name] for k in self.coefficient_table)
        return floor + part / (x[0] ** first * x[1] ** second)


class Additive(Law):
    """L = E + A / D_p^a + B / D_f^b: each size has a part of its own (Zhang et al., 2402.17193).

    theta = (log L_c, logit of the floor's share of L_c, logit of the first part's share of the
    rest, log a, log b)
    """

    name = "zhang-additive"
    title = "additive joint law"
    formula = "L(D_p, D_f) = E + A / D_p^a + B / D_f^b"
    sizes = ("D_p", "D_f")
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "logit of the floor", "logit of the first part", "log a",
        "log b",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited data", "metric"),
        Coefficient("A", "size of the pretraining data's part", "metric * D_p^a"),
        Coefficient("B", "size of the finetuning data's part", "metric * D_f^b"),
        Coefficient("a", "exponent of the pretraining data", "1"),
        Coefficient("b", "exponent of the finetuning data", "1"),
    )
    at_bound: ClassVar = {
        ("logit of the floor", "low"): "no floor is visible in the fitted points",
        ("logit of the floor", "high"): "the fitted values hardly leave their floor",
        ("logit of the first part", "low"): "the first size makes no visible difference",
        ("logit of the first part", "high"): "the second size makes no visible difference",
        ("log a", "low"): "the fitted value hardly falls with the first size",
        ("log b", "low"): "the fitted value hardly falls with the second size",
        ("log a", "high"): "the first size's part is gone after its smallest points",
        ("log b", "high"): "the second size's part is gone after its smallest points",
    }

    @staticmethod
    def _shares(
        theta: np.ndarray, log_x: np.ndarray, frame: Frame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Shares of L_c at the centre, (..., 1), and the parts that move, (..., N)."""
        floor, first = (sigmoid(theta[..., i, None]) for i in (1, 2))
        a, b = np.exp(theta[..., 3, None]), np.exp(theta[..., 4, None])
        u = log_x - frame.log_centre
        falls = [np.exp(np.clip(-e * u[i], -500, 500)) for i, e in enumerate((a, b))]
        return floor, first, (1 - floor) * first * falls[0], (1 - floor) * (1 - first) * falls[1]

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, _, one, two = self._shares(theta, log_x, frame)
        return theta[..., 0, None] + np.log(floor + one + two)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, first, one, two = self._shares(theta, log_x, frame)
        a, b = np.exp(theta[..., 3, None]), np.exp(theta[..., 4, None])
        u, total = log_x - frame.log_centre, floor + one + two
        return np.stack(
            [
                np.ones_like(total),
                floor * (1 - floor - one - two) / total,
                (one * (1 - first) - two * first) / total,
                -one * a * u[0] / total,
                -two * b * u[1] / total,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, -12.0, -12.0, np.log(1e-3), np.log(1e-3)]),
            np.array([frame.log_high + width, 7.0, 12.0, np.log(5.0), np.log(5.0)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        grid = [
            (log_y.mean(), floor, first, np.log(a), np.log(b))
            for floor in (-4.0, -0.5, 1.5)
            for first in (-1.5, 0.0, 1.5)
            for a in (0.1, 0.4)
            for b in (0.1, 0.4)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, floor, first = (theta[..., i] for i in range(3))
        floor, first = sigmoid(floor), sigmoid(first)
        a, b = np.exp(theta[..., 3]), np.exp(theta[..., 4])
        centre = np.ravel(frame.log_centre)
        with np.errstate(over="ignore"):
            numbers = (
                np.exp(value) * floor,
                np.exp(value + a * centre[0]) * (1 - floor) * first,
                np.exp(value + b * centre[1]) * (1 - floor) * (1 - first),
                a,
                b,
            )
        return dict(zip((c.name for c in self.coefficient_table), numbers, strict=True))

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        floor, first, second, a, b = (c[k.name] for k in self.coefficient_table)
        return floor + first / x[0] ** a + second / x[1] ** b


class Chinchilla(Additive):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556, approach 3).

    The additive law with the model's parameters N as the first size.
    """

    name = "chinchilla"
    title = "Chinchilla law"
    formula = "L(N, D) = E + A / N^alpha + B / D^beta"
    sizes = ("N", "D")
    coefficient_table = (
        Coefficient("E", "floor: loss for unlimited model and data", "metric"),
        Coefficient("A", "size of the model's part", "metric * N^alpha"),
        Coefficient("B", "size of the data's part", "metric * D^beta"),
        Coefficient("alpha", "exponent of the model's size", "1"),
        Coefficient("beta", "exponent of the data", "1"),
    )


class Kaplan(Law):
    """L(N, D) = ((Nc / N)^(aN / aD) + Dc / D)^aD (Kaplan et al., arXiv 2001.08361, Eq. 1.5).

    Two power laws without floor; the smaller size is the bottleneck.

        theta = (log L_c, logit of the N term's share at the centre, log aN, log aD)
    """

    name = "kaplan"
    title = "Kaplan law"
    formula = "L(N, D) = ((Nc / N)^(aN / aD) + Dc / D)^aD"
    sizes = ("N", "D")
    direction = -1
    huber_delta = 1e-3
    theta_names = ("log value at the centre", "logit of the N term", "log aN", "log aD")
    coefficient_table = (
        Coefficient("Nc", "scale of the model's size", "N"),
        Coefficient("Dc", "scale of the data", "D"),
        Coefficient("aN", "exponent of the model's size, with data in plenty", "1"),
        Coefficient("aD", "exponent of the data, with a model large enough", "1"),
    )
    at_bound: ClassVar = {
        ("logit of the N term", "low"): "the model's size makes no visible difference",
        ("logit of the N term", "high"): "the data make no visible difference",
        ("log aN", "low"): "the fitted value hardly falls with the model's size",
        ("log aD", "low"): "the fitted value hardly falls with the data",
    }

    @staticmethod
    def _terms(
        theta: np.ndarray, log_x: np.ndarray, frame: Frame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        share = sigmoid(theta[..., 1, None])
        by_model, by_data = np.exp(theta[..., 2, None]), np.exp(theta[..., 3, None])
        u = log_x - frame.log_centre
        model = share * np.exp(np.clip(-by_model / by_data * u[0], -500, 500))
        data = (1 - share) * np.exp(np.clip(-u[1], -500, 500))
        return share, by_model, by_data, u, model, data

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        _, _, by_data, _, model, data = self._terms(theta, log_x, frame)
        return theta[..., 0, None] + by_data * np.log(model + data)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        share, by_model, by_data, u, model, data = self._terms(theta, log_x, frame)
        total = model + data
        slope = by_model * model * u[0] / total
        return np.stack(
            [
                np.ones_like(total),
                by_data * (model * (1 - share) - data * share) / total,
                -slope,
                by_data * np.log(total) + slope,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, -12.0, np.log(1e-3), np.log(1e-3)]),
            np.array([frame.log_high + width, 12.0, np.log(5.0), np.log(5.0)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        grid = [
            (log_y.mean(), share, np.log(a), np.log(b))
            for share in (-2.0, 0.0, 2.0)
            for a in (0.03, 0.1, 0.4)
            for b in (0.03, 0.1, 0.4)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, logit = theta[..., 0], theta[..., 1]
        by_model, by_data = np.exp(theta[..., 2]), np.exp(theta[..., 3])
        centre = np.ravel(frame.log_centre)
        bracket = value / by_data  # log of the bracket at the centre
        model, data = bracket - np.logaddexp(0, -logit), bracket - np.logaddexp(0, logit)
        with np.errstate(over="ignore"):
            return {
                "Nc": np.exp(centre[0] + model * by_data / by_model),
                "Dc": np.exp(centre[1] + data),
                "aN": by_model,
                "aD": by_data,
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return ((c["Nc"] / x[0]) ** (c["aN"] / c["aD"]) + c["Dc"] / x[1]) ** c["aD"]


class Transferred(Law):
    """D_T = k * D_F^a * N^b: data that pretraining is worth (Hernandez et al., arXiv 2102.01293).

    D_T is how much more finetuning data a model without pretraining needs for the same loss
    (`conclusions.exchange.transfers` reads it off measured pools). No limits: a plane in logs.

        theta = (log D_T at the centre, a, b)
    """

    name = "hernandez"
    title = "effective data transferred"
    formula = "D_T(D_F, N) = k * D_F^a * N^b"
    sizes = ("D_F", "N")
    direction = 1
    huber_delta = 0.1
    theta_names = ("log value at the centre", "a", "b")
    coefficient_table = (
        Coefficient("k", "factor: how close pretraining and task are", "D_T / (D_F^a * N^b)"),
        Coefficient("a", "exponent of the finetuning data", "1"),
        Coefficient("b", "exponent of the model's size", "1"),
    )
    at_bound: ClassVar = {}

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        u = log_x - frame.log_centre
        return theta[..., 0, None] + theta[..., 1, None] * u[0] + theta[..., 2, None] * u[1]

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        u = log_x - frame.log_centre
        columns = [np.ones_like(u[0]), u[0], u[1]]
        shape = (*theta.shape[:-1], u.shape[1])
        return np.stack([np.broadcast_to(column, shape) for column in columns], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 2.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, -5.0, -5.0]),
            np.array([frame.log_high + width, 5.0, 5.0]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        return np.clip([[log_y.mean(), *_slope(log_x, log_y)]], *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, a, b = (theta[..., i] for i in range(3))
        centre = np.ravel(frame.log_centre)
        with np.errstate(over="ignore"):
            return {"k": np.exp(value - a * centre[0] - b * centre[1]), "a": a, "b": b}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["k"] * x[0] ** c["a"] * x[1] ** c["b"]


class Repeated(Law):
    """L(D, U) = E + B / D_eff^beta for D tokens of which U are unique (Muennighoff, 2305.16264).

    D_eff = U * (1 + R* (1 - e^(-R / R*))) with R = D / U - 1 repetitions: each repetition is worth
    less than the one before, and all of them together R* times U. The paper has R* = 15.39 for
    language models. One model size.

        theta = (log L_c, slope at the centre, log rho, log R*),  as the power law with floor
    """

    name = "muennighoff"
    title = "law of repeated data"
    formula = "L(D, U) = E + B / (U * (1 + R* (1 - e^(-(D/U - 1) / R*))))^beta"
    sizes = ("D", "U")
    direction = -1
    huber_delta = 1e-3
    theta_names = ("log value at the centre", "slope at the centre", "log rho", "log R*")
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited unique data", "metric"),
        Coefficient("B", "size of the reducible part", "metric * D^beta"),
        Coefficient("beta", "exponent of the effective data", "1"),
        Coefficient("R*", "how many repetitions all repetitions together are worth", "1"),
    )
    at_bound: ClassVar = {
        ("slope at the centre", "low"): "the fitted value does not fall with the data",
        ("log rho", "low"): "no floor is visible in the fitted points (E = 0 fits best)",
        ("log R*", "low"): "repeated data are worth nothing in the fitted points",
        ("log R*", "high"): "repeated data are worth as much as new ones in the fitted points",
    }

    @staticmethod
    def _effective(theta: np.ndarray, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log D_eff, and its derivative by log R*."""
        limit = np.exp(theta[..., 3, None])
        repeats = np.maximum(np.exp(log_x[0] - log_x[1]) - 1, 0.0)
        ratio = repeats / limit
        gone = -np.expm1(-ratio)
        worth = 1 + limit * gone
        return log_x[1] + np.log(worth), limit * (gone - ratio * np.exp(-ratio)) / worth

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, slope, log_rho = (theta[..., i, None] for i in range(3))
        u = self._effective(theta, log_x)[0] - np.ravel(frame.log_centre)[0]
        with np.errstate(divide="ignore"):
            return value + np.logaddexp(
                np.log1p(-np.exp(-log_rho)), -log_rho - slope * np.exp(log_rho) * u
            )

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        slope, rho = theta[..., 1, None], np.exp(theta[..., 2, None])
        effective, by_limit = self._effective(theta, log_x)
        u = effective - np.ravel(frame.log_centre)[0]
        decay = slope * rho * u
        reducible = np.exp(np.clip(-decay, -500, 500)) / rho
        total = 1 - 1 / rho + reducible
        return np.stack(
            [
                np.ones_like(decay),
                -reducible * rho * u / total,
                (1 / rho - reducible * (1 + decay)) / total,
                -reducible * slope * rho * by_limit / total,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 0.0, np.log(0.1)]),
            np.array([frame.log_high + width, 10.0, np.log(1e3), np.log(1e3)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        steepness = max(-np.polyfit(log_x[0], log_y, 1)[0], 1e-3)
        grid = [
            (log_y.mean(), steepness * factor, log_rho, np.log(limit))
            for factor in (0.3, 1.0, 1.5)
            for log_rho in (0.0, 0.8, 1.5, 3.0)
            for limit in (2.0, 15.39, 60.0)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, log_rho = (theta[..., i] for i in range(3))
        beta = slope * np.exp(log_rho)
        with np.errstate(over="ignore"):
            return {
                "E": -np.exp(value) * np.expm1(-log_rho),
                "B": np.exp(value - log_rho + beta * np.ravel(frame.log_centre)[0]),
                "beta": beta,
                "R*": np.exp(theta[..., 3]),
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        worth = 1 + c["R*"] * -np.expm1(-(x[0] / x[1] - 1) / c["R*"])
        return c["E"] + c["B"] / (x[1] * worth) ** c["beta"]


LAWS: tuple[Law, ...] = (
    Multiplicative(), Additive(), Chinchilla(), Kaplan(), Transferred(), Repeated(),
)  # fmt: skip
