"""Laws of transfer: what pretraining leaves to be learned, and laws of a model's two parts.

The transfer gap is a law of both data sizes, the rectified law one of the finetuning data of a
checkpoint; the last two are of sizes of a model. `theta` holds the value at the centre of the
points and the shares of its parts there, as for the additive law of two sizes.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law, sigmoid
from t5scaling.analysis.laws.two_sizes import Multiplicative

FAR = 500.0  # an exponent whose power a float64 still holds


class TransferGap(Law):
    """L(D_p, D_f) = (A D_p^-alpha + G) D_f^-beta + E (Barnett, arXiv 2408.16947).

    G is the transfer gap: the part of the loss, at D_f = 1, that no amount of these pretraining
    data takes away, only finetuning data do. Without a gap it is the multiplicative joint law.

        theta = (log L_c, logit of the floor's share of L_c, logit of the gap's share of the rest,
                 log alpha, log beta)
        L = L_c (f + (1 - f) (g + (1 - g) e^(-alpha u_p)) e^(-beta u_f))
    """

    name = "barnett"
    title = "law of the transfer gap"
    formula = "L(D_p, D_f) = (A / D_p^alpha + G) / D_f^beta + E"
    sizes = ("D_p", "D_f")
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "logit of the floor", "logit of the gap", "log alpha",
        "log beta",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited finetuning data", "metric"),
        Coefficient("G", "transfer gap: what pretraining data cannot buy", "metric * D_f^beta"),
        Coefficient("A", "size of the part that they can", "metric * D_p^alpha * D_f^beta"),
        Coefficient("alpha", "exponent of the pretraining data", "1"),
        Coefficient("beta", "exponent of the finetuning data", "1"),
    )
    at_bound: ClassVar = {
        ("logit of the floor", "low"): "no floor is visible in the fitted points",
        ("logit of the floor", "high"): "the fitted values hardly leave their floor",
        ("logit of the gap", "low"): "no transfer gap is visible in the fitted points",
        ("logit of the gap", "high"): "the pretraining data make no visible difference",
        ("log alpha", "low"): "the fitted value hardly falls with the pretraining data",
        ("log beta", "low"): "the fitted value hardly falls with the finetuning data",
        ("log alpha", "high"): "what pretraining can buy is bought by its smallest size",
        ("log beta", "high"): "the floor is reached after the smallest finetuning sizes",
    }

    @staticmethod
    def _parts(theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
        """floor, gap (..., 1); alpha u_p, beta u_f; e^ of minus each, (..., N)."""
        floor, gap = sigmoid(theta[..., 1, None]), sigmoid(theta[..., 2, None])
        u = log_x - frame.log_centre
        decays = [np.exp(theta[..., 3 + i, None]) * u[i] for i in (0, 1)]
        return floor, gap, *decays, *(np.exp(np.clip(-d, -FAR, FAR)) for d in decays)

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, gap, _, _, pre, fine = self._parts(theta, log_x, frame)
        return theta[..., 0, None] + np.log(floor + (1 - floor) * (gap + (1 - gap) * pre) * fine)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, gap, decay_pre, decay_fine, pre, fine = self._parts(theta, log_x, frame)
        inner = gap + (1 - gap) * pre
        rest = (1 - floor) * inner * fine
        total = floor + rest
        return np.stack(
            [
                np.ones_like(total),
                floor * (1 - floor) * (1 - inner * fine) / total,
                (1 - floor) * gap * (1 - gap) * (1 - pre) * fine / total,
                -(1 - floor) * (1 - gap) * decay_pre * pre * fine / total,
                -decay_fine * rest / total,
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
            (log_y.mean(), floor, gap, np.log(a), np.log(b))
            for floor in (-4.0, -0.5, 1.5)
            for gap in (-4.0, 0.0, 2.0)
            for a in (0.1, 0.5)
            for b in (0.1, 0.4)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, floor, gap = theta[..., 0], sigmoid(theta[..., 1]), sigmoid(theta[..., 2])
        rest = sigmoid(-theta[..., 1])
        alpha, beta = np.exp(theta[..., 3]), np.exp(theta[..., 4])
        centre = np.ravel(frame.log_centre)
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(value) * floor,
                "G": np.exp(value + beta * centre[1]) * rest * gap,
                "A": np.exp(value + alpha * centre[0] + beta * centre[1])
                * rest
                * sigmoid(-theta[..., 2]),
                "alpha": alpha,
                "beta": beta,
            }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return (c["A"] / x[0] ** c["alpha"] + c["G"]) / x[1] ** c["beta"] + c["E"]


class Rectified(Law):
    """L(D_f) = B / (D_l + D_f^beta) + E, D_f finetuning data (Lin et al., arXiv 2402.02314).

    D_l is the pre-learned size, what a checkpoint already knows of the task, in units of D_f^beta:
    where D_f^beta is small against it, finetuning hardly helps yet; the power law with floor is
    D_l = 0.

        theta = (log L_c, logit of the floor's share of L_c, logit of q, log beta)
        q = D_l / (D_l + D_c^beta),  L = L_c (f + (1 - f) / (q + (1 - q) e^(beta u)))
    """

    name = "lin"
    title = "rectified law"
    formula = "L(D_f) = B / (D_l + D_f^beta) + E"
    sizes = ("D_f",)
    direction = -1
    huber_delta = 1e-3
    theta_names = (
        "log value at the centre", "logit of the floor", "logit of the pre-learned", "log beta",
    )  # fmt: skip
    coefficient_table = (
        Coefficient("E", "floor: value for unlimited finetuning data", "metric"),
        Coefficient("B", "size of the reducible part", "metric * D_f^beta"),
        Coefficient("D_l", "pre-learned size", "D_f^beta"),
        Coefficient("beta", "exponent of the data", "1"),
    )
    at_bound: ClassVar = {
        ("logit of the floor", "low"): "no floor is visible in the fitted points",
        ("logit of the floor", "high"): "the fitted values hardly leave their floor",
        ("logit of the pre-learned", "low"): "no pre-learned size is visible in the fitted points",
        ("logit of the pre-learned", "high"): "the fitted value does not fall with D_f yet",
        ("log beta", "low"): "the fitted value hardly falls with D_f",
        ("log beta", "high"): "the fitted curve drops at once and is flat afterwards",
    }

    @staticmethod
    def _parts(theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
        """floor, q (..., 1), beta u, e^(beta u) and what the reducible part is divided by."""
        floor, known = sigmoid(theta[..., 1, None]), sigmoid(theta[..., 2, None])
        growth = np.exp(theta[..., 3, None]) * (log_x - frame.log_centre)
        power = np.exp(np.clip(growth, -FAR, FAR))
        return floor, known, growth, power, known + sigmoid(-theta[..., 2, None]) * power

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, _, _, _, divisor = self._parts(theta, log_x, frame)
        return theta[..., 0, None] + np.log(floor + (1 - floor) / divisor)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, known, growth, power, divisor = self._parts(theta, log_x, frame)
        total = floor + (1 - floor) / divisor
        bent = (1 - floor) / divisor**2 / total
        return np.stack(
            [
                np.ones_like(total),
                floor * (1 - floor) * (1 - 1 / divisor) / total,
                -bent * known * (1 - known) * (1 - power),
                -bent * (1 - known) * growth * power,
            ],
            axis=-1,
        )

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, -12.0, -12.0, np.log(1e-3)]),
            np.array([frame.log_high + width, 7.0, 12.0, np.log(5.0)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        grid = [
            (log_y.mean(), floor, known, np.log(beta))
            for floor in (-4.0, -0.5, 1.5)
            for known in (-4.0, 0.0, 2.0)
            for beta in (0.1, 0.4, 1.0)
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, odds, beta = theta[..., 0], theta[..., 2], np.exp(theta[..., 3])
        grown = beta * frame.log_centre
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(value) * sigmoid(theta[..., 1]),
                "B": np.exp(value + grown) * sigmoid(-theta[..., 1]) / sigmoid(-odds),
                "D_l": np.exp(odds + grown),
                "beta": beta,
            }

    def floor(self, theta: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        value, share = np.exp(theta[..., 0]), sigmoid(theta[..., 1])
        none = np.zeros_like(share)
        by_share = value * share * (1 - share)
        return value * share, np.stack([value * share, by_share, none, none], axis=-1)

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        return c["B"] / (c["D_l"] + x ** c["beta"]) + c["E"]


class EncoderDecoder(Multiplicative):
    """L(N_e, N_d) = E + A / (N_e^p_e N_d^p_d), parameters of encoder and decoder (Ghorbani et al.,
    arXiv 2109.07740, Eq. 2, where A is alpha * Nbar_e^p_e * Nbar_d^p_d).
    """

    name = "ghorbani"
    title = "law of encoder and decoder"
    formula = "L(N_e, N_d) = E + A / (N_e^p_e * N_d^p_d)"
    sizes = ("N_e", "N_d")
    coefficient_table = (
        Coefficient("E", "floor: loss for an unlimited model", "metric"),
        Coefficient("A", "size of the reducible part", "metric * N_e^p_e * N_d^p_d"),
        Coefficient("p_e", "exponent of the encoder's size", "1"),
        Coefficient("p_d", "exponent of the decoder's size", "1"),
    )


class Routed(Law):
    """log L = a log N + b log E + c log N log E + d: N parameters, E experts (Clark et al., arXiv
    2202.01169, Eq. 1, and the notebook beside their data), without the paper's saturation of E at
    both ends. Logs are natural: the paper's c, in logs of base 10, is ln 10 times as large, its d
    is d / ln 10; a and b are the same.

    With c > 0 experts help larger models less, and at N = e^(-b / c) no longer; beyond, the law
    rises with E.

        theta = (log L_c, slope in N, slope in E, c)
        log L = theta_0 - slope_N u_N - slope_E u_E + c u_N u_E
    """

    name = "clark"
    title = "law of routed models"
    formula = "log L(N, E) = a log N + b log E + c log N log E + d"
    sizes = ("N", "E")
    direction = -1
    huber_delta = 1e-3
    theta_names = ("log value at the centre", "slope in N", "slope in E", "c")
    coefficient_table = (
        Coefficient("a", "exponent of the parameters, with one expert", "1"),
        Coefficient("b", "exponent of the experts, at one parameter", "1"),
        Coefficient("c", "how experts lose their use as the model grows", "1"),
        Coefficient("d", "natural log of the loss at N = E = 1", "log metric"),
    )
    at_bound: ClassVar = {
        ("slope in N", "low"): "the fitted value does not fall with the parameters",
        ("slope in E", "low"): "the fitted value does not fall with the experts",
    }

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return np.einsum("...p,np->...n", theta, self._columns(log_x, frame))

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        columns = self._columns(log_x, frame)
        return np.broadcast_to(columns, (*theta.shape[:-1], *columns.shape))

    @staticmethod
    def _columns(log_x: np.ndarray, frame: Frame) -> np.ndarray:
        u = log_x - frame.log_centre
        return np.stack([np.ones_like(u[0]), -u[0], -u[1], u[0] * u[1]], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        return (
            np.array([frame.log_low - width, 1e-6, 1e-6, -1.0]),
            np.array([frame.log_high + width, 10.0, 10.0, 1.0]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        columns = self._columns(log_x, frame)
        plane = np.linalg.lstsq(columns, log_y, rcond=None)[0]
        return np.clip([plane, [log_y.mean(), 0.1, 0.1, 0.0]], *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, by_model, by_experts, c = (theta[..., i] for i in range(4))
        model, experts = np.ravel(frame.log_centre)
        return {
            "a": -by_model - c * experts,
            "b": -by_experts - c * model,
            "c": c,
            "d": value + by_model * model + by_experts * experts + c * model * experts,
        }

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        model, experts = np.log(x)
        return np.exp(c["a"] * model + c["b"] * experts + c["c"] * model * experts + c["d"])


LAWS: tuple[Law, ...] = (TransferGap(), Rectified(), EncoderDecoder(), Routed())
