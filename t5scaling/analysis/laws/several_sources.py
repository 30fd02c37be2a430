"""Laws of several sources: a loss against the tokens of each language in the pretraining data.

x has a row for each source, the target's first; tokens of a source may be 0. A law of this kind is
made for the sources at hand (`laws.of_sources`). The weights of effective data are prices: how many
tokens of the target a token of another source is worth. `log_x` is -inf where there are no tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from t5scaling.analysis.laws.base import Coefficient, Frame, Law, sigmoid
from t5scaling.errors import UserError

FAR = 500.0  # an exponent whose power a float64 still holds
ONE_SIZE = 1.1  # totals that differ by less than this factor are one size


class OfSources(Law):
    """What laws of several sources share. sources: their names, that of the target first."""

    direction = -1
    huber_delta = 1e-3
    sources: tuple[str, ...]

    def __init__(self, sources: Sequence[str]):
        """Raises UserError for fewer than two sources, or two of one name."""
        self.sources = self.sizes = tuple(sources)
        if len(set(self.sources)) < max(2, len(self.sources)):
            raise UserError(
                f"sources {','.join(self.sources)}: expected two or more different names"
            )

    def frame(self, x: np.ndarray, y: np.ndarray) -> Frame:
        """The centre is the mean mixture, at the mean of the logs of the totals."""
        total = self.total(x)
        shares = (x / total).mean(1)
        centre = np.log(np.maximum(shares, 1e-12))[:, None] + np.log(np.unique(total)).mean()
        least = np.log(np.where(x > 0, x, np.inf).min(1, keepdims=True))
        log_y = np.log(y)
        return Frame(least, centre, float(log_y.min()), float(log_y.max()))

    def total(self, x: np.ndarray) -> np.ndarray:
        """Tokens of all sources together, (N,)."""
        return x[: len(self.sources)].sum(0)

    def main_size(self, x: np.ndarray) -> np.ndarray:
        """The totals to two digits: runs that were meant to be of one size differ by little."""
        total = self.total(np.asarray(x, float))
        unit = 10 ** (np.floor(np.log10(np.maximum(total, 1e-300))) - 1)
        return np.round(total / unit) * unit

    def check_sizes(self, x: np.ndarray, x_name: str) -> None:
        if not np.all(x >= 0):
            raise UserError(f"{x[~(x >= 0)][0]:g} tokens of a source: expected 0 or more")
        if not np.all(self.total(x) > 0):
            raise UserError(
                f"a point without tokens of any of {', '.join(self.sources)}: leave out a baseline "
                "without pretraining, it is not a point of the law"
            )

    def check_design(self, places: np.ndarray, besides: str = "") -> None:
        tokens = places[: len(self.sources)]
        if places.shape[1] < self.num_parameters:
            raise UserError(
                f"{places.shape[1]} distinct points to fit: too few for the {self.title}, which "
                f"needs {self.num_parameters}{besides}"
            )
        seen = [source for source, row in zip(self.sources, tokens, strict=True) if row.any()]
        if len(seen) < len(self.sources):
            absent = next(source for source in self.sources if source not in seen)
            raise UserError(f"no fitted point has tokens of {absent}: leave it out")
        if np.linalg.matrix_rank(tokens / self.total(tokens), tol=1e-3) < len(self.sources):
            raise UserError(
                f"{', '.join(self.sources)}: the fitted mixtures keep some of these in fixed "
                "proportions, and nothing can tell them apart; measure other mixtures"
            )

    def _slope(self, log_x: np.ndarray, log_y: np.ndarray) -> float:
        """How steeply the values fall with the totals, at least a little."""
        total = np.log(self.total(np.exp(log_x)))
        return max(-np.polyfit(total, log_y, 1)[0], 1e-2) if np.ptp(total) > 1e-3 else 0.1


class EffectiveData(OfSources):
    """L = E + A / D_eff^alpha, D_eff = D_1 + sum of w_i D_i, w_i >= 0: the effective data of
    Longpre et al. (arXiv 2510.22037), for one model size and data seen once.

    theta = (log L_c, slope, log rho, log w_i...), as the power law with floor in D_eff; its centre
    D_eff_c is that of the mean mixture, and moves with the weights.
    """

    name = "sources"
    title = "law of effective data"
    formula = "L = E + A / D_eff^alpha, D_eff = D_target + sum of w_i D_i"

    def __init__(self, sources: Sequence[str]):
        super().__init__(sources)
        target, *others = self.sources
        self._weights = tuple(f"w_{name}" for name in others)
        self.theta_names = (
            "log value at the centre", "slope at the centre", "log rho",
            *(f"log {name}" for name in self._weights),
        )  # fmt: skip
        self.coefficient_table = (
            Coefficient("E", "floor: value for unlimited data", "metric"),
            Coefficient("A", "size of the reducible part", "metric * D^alpha"),
            Coefficient("alpha", "exponent of the effective data", "1"),
            *(
                Coefficient(f"w_{name}", f"a token of {name} in tokens of {target}", "1")
                for name in others
            ),
        )
        self.at_bound = {
            ("slope at the centre", "low"): "the fitted value does not fall with the data",
            ("log rho", "low"): "no floor is visible in the fitted points (E = 0 fits best)",
            ("log rho", "high"): "the fitted values drop at once and are flat afterwards",
        }
        for name in others:
            self.at_bound[f"log w_{name}", "low"] = f"tokens of {name} are worth nothing"
            self.at_bound[f"log w_{name}", "high"] = (
                f"tokens of {target} are worth nothing beside those of {name}: no price can be "
                f"given in them"
            )

    def _features(self, tokens: np.ndarray) -> np.ndarray:
        """What the weights are of, (m, N), the target's tokens first."""
        return tokens

    def _effective(self, theta: np.ndarray, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log D_eff (..., N), and its derivatives by the parameters after log rho (..., N, m-1)."""
        features = self._features(np.exp(log_x))
        others = np.exp(theta[..., 3 : 2 + len(features)])
        size = features[0] + others @ features[1:]
        return np.log(size), others[..., None, :] * features[1:].T / size[..., None]

    def _decay(
        self, theta: np.ndarray, log_x: np.ndarray, frame: Frame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rho slope u, and the derivatives of u, the log effective size from its centre."""
        size, by_rest = self._effective(theta, log_x)
        centre, centre_by_rest = self._effective(theta, np.asarray(frame.log_centre))
        slope, rho = theta[..., 1, None], np.exp(theta[..., 2, None])
        return size - centre, slope * rho * (size - centre), by_rest - centre_by_rest

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        value, log_rho = theta[..., 0, None], theta[..., 2, None]
        with np.errstate(divide="ignore"):
            _, decay, _ = self._decay(theta, log_x, frame)
            return value + np.logaddexp(np.log1p(-np.exp(-log_rho)), -log_rho - decay)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        slope, rho = theta[..., 1, None], np.exp(theta[..., 2, None])
        u, decay, by_rest = self._decay(theta, log_x, frame)
        reducible = np.exp(np.clip(-decay, -FAR, FAR)) / rho
        total = 1 - 1 / rho + reducible
        own = [
            np.ones_like(decay),
            -reducible * rho * u / total,
            (1 / rho - reducible * (1 + decay)) / total,
        ]
        falls = (-reducible * slope * rho / total)[..., None] * by_rest
        return np.concatenate([np.stack(own, axis=-1), falls], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        low, high = [frame.log_low - width, 1e-6, 0.0], [frame.log_high + width, 10.0, np.log(1e3)]
        weights = self.num_parameters - 3
        return (
            np.array(low + weights * [np.log(1e-6)]),
            np.array(high + weights * [np.log(1e4)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        slope, count = self._slope(log_x, log_y), self.num_parameters - 3
        weights = [np.full(count, np.log(w)) for w in (0.03, 0.3, 1.0, 3.0)]
        for i in range(count):
            for w in (0.02, 4.0):
                weights.append(np.where(np.arange(count) == i, np.log(w), np.log(0.5)))
        grid = [
            (log_y.mean(), slope * factor, log_rho, *w)
            for factor in (0.6, 1.5)
            for log_rho in (0.1, 0.8, 2.0)
            for w in weights
        ]
        return np.clip(np.array(grid), *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        value, slope, log_rho = (theta[..., i] for i in range(3))
        alpha = slope * np.exp(log_rho)
        centre = self._effective(theta, np.asarray(frame.log_centre))[0][..., 0]
        with np.errstate(over="ignore"):
            found = {
                "E": -np.exp(value) * np.expm1(-log_rho),
                "A": np.exp(value - log_rho + alpha * centre),
                "alpha": alpha,
            }
        rest = [c.name for c in self.coefficient_table[3:]]
        return found | {name: np.exp(theta[..., 3 + i]) for i, name in enumerate(rest)}

    def floor(self, theta: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        value, log_rho = np.exp(theta[..., 0]), theta[..., 2]
        floor = -value * np.expm1(-log_rho)
        by_theta = np.zeros((*np.shape(floor), self.num_parameters))
        by_theta[..., 0], by_theta[..., 2] = floor, value * np.exp(-log_rho)
        return floor, by_theta

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        features = self._features(x)
        size = features[0] + sum(
            c[k.name] * row for k, row in zip(self.coefficient_table[3:], features[1:], strict=True)
        )
        return c["E"] + c["A"] / size ** c["alpha"]


class Paired(EffectiveData):
    """The same with a gain from both sides of a language pair together: the first two sources, with
    w_pair D_1 D_2 / D of effective data, D being the total.

    The form is that of the alignment score of Isik et al. (arXiv 2402.04177, Eq. 2), P_s P_t +
    0.7 P_s + 0.8 P_t: taken as effective data, its weights are 0.7 / 0.8 and w_pair 1 / 0.8.
    """

    name = "sources-pair"
    title = "law of effective data of a pair"
    formula = "L = E + A / D_eff^alpha, D_eff = D_target + sum of w_i D_i + w_pair D_1 D_2 / D"

    def __init__(self, sources: Sequence[str]):
        super().__init__(sources)
        pair = "+".join(self.sources[:2])
        meaning = f"tokens of {self.sources[0]} that the product of both shares of {pair} is worth"
        self.theta_names = (*self.theta_names, "log w_pair")
        self.coefficient_table = (*self.coefficient_table, Coefficient("w_pair", meaning, "1"))
        alone = {("log w_pair", "low"): f"no gain from {pair} together is visible"}
        self.at_bound = {**self.at_bound, **alone}

    def _features(self, tokens: np.ndarray) -> np.ndarray:
        both = tokens[0] * tokens[1] / tokens.sum(0)
        return np.concatenate([tokens, both[None]])


class Saturating(EffectiveData):
    """The same where data are seen more than once: D_eff = S(D_1, U_1) + sum of w_i S(D_i, U_i)
    (Longpre et al., arXiv 2510.22037), with one lambda for all sources.

    S(D, U) = D up to U, the source's unique tokens, and then U (1 + (1 - e^(-lambda (D/U - 1))) /
    lambda). x has the tokens of each source and then the unique tokens of each.
    """

    name = "sources-repeated"
    title = "law of repeated effective data"
    formula = "L = E + A / D_eff^alpha, D_eff = S(D_target, U_target) + sum of w_i S(D_i, U_i)"

    def __init__(self, sources: Sequence[str]):
        super().__init__(sources)
        self.sizes = (*self.sources, *(f"unique {name}" for name in self.sources))
        meaning = "how fast repeated tokens lose their worth"
        self.theta_names = (*self.theta_names, "log lambda")
        self.coefficient_table = (*self.coefficient_table, Coefficient("lambda", meaning, "1"))
        repeated = {
            ("log lambda", "low"): "repeated tokens are worth as much as new ones",
            ("log lambda", "high"): "repeated tokens are worth nothing",
        }
        self.at_bound = {**self.at_bound, **repeated}

    def frame(self, x: np.ndarray, y: np.ndarray) -> Frame:
        """The centre has as many unique tokens as tokens: it repeats nothing."""
        count = len(self.sources)
        frame = super().frame(x[:count], y)
        twice = np.concatenate([frame.log_centre, frame.log_centre])
        return Frame(twice, twice, frame.log_low, frame.log_high)

    def check_sizes(self, x: np.ndarray, x_name: str) -> None:
        count = len(self.sources)
        super().check_sizes(x[:count], x_name)
        for name, tokens, unique in zip(self.sources, x[:count], x[count:], strict=True):
            if np.any((tokens > 0) & ~(unique > 0)):
                raise UserError(f"tokens of {name} at a point where none of them are unique")

    @staticmethod
    def _seen(
        tokens: np.ndarray, unique: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """S and its derivative by log lambda, for lambda (..., 1)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            repeats = np.maximum(np.where(unique > 0, tokens / unique, 0.0) - 1, 0.0)
        gone = -np.expm1(-rate * repeats)
        once = np.minimum(tokens, unique)
        return once + unique * gone / rate, unique * (
            repeats * np.exp(-rate * repeats) - gone / rate
        )

    def _effective(self, theta: np.ndarray, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count, rate = len(self.sources), np.exp(theta[..., -1, None])
        tokens, unique = np.exp(log_x[:count]), np.exp(log_x[count:])
        others = np.exp(theta[..., 3 : 2 + count])
        seen = [self._seen(*rows, rate) for rows in zip(tokens, unique, strict=True)]
        worth = [others[..., i, None] * seen[i + 1][0] for i in range(count - 1)]
        size = seen[0][0] + sum(worth)
        by_rate = seen[0][1] + sum(others[..., i, None] * seen[i + 1][1] for i in range(count - 1))
        shape = np.shape(size)
        rows = [np.broadcast_to(row / size, shape) for row in (*worth, by_rate)]
        return np.log(size), np.stack(rows, axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        low, high = super().bounds(frame)
        low[-1], high[-1] = np.log(1e-3), np.log(30.0)
        return low, high

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        count, rate = len(self.sources), np.asarray(c["lambda"])[..., None]
        seen = [self._seen(x[i], x[count + i], rate)[0] for i in range(count)]
        size = seen[0] + sum(
            c[name] * row for name, row in zip(self._weights, seen[1:], strict=True)
        )
        return c["E"] + c["A"] / size ** c["alpha"]


class Mixture(OfSources):
    """L = c + k e^(sum of t_i h_i), h_i the shares, at one size (Ye et al., arXiv 2403.16952).

    As the shares add up to 1, a constant can move between k and all t_i: here the target's t is 0,
    and t_i is against it.

        theta = (log L_c, logit of the floor's share of L_c, t_i...), L_c at the mean mixture
    """

    name = "ye"
    title = "mixture law at one size"
    formula = "L = c + k * e^(sum of t_i h_i), t_target = 0"

    def __init__(self, sources: Sequence[str]):
        super().__init__(sources)
        target, *others = self.sources
        self.theta_names = (
            "log value at the centre", "logit of the floor", *(f"t_{name}" for name in others),
        )  # fmt: skip
        self.coefficient_table = (
            Coefficient("c", "value that no mixture gets below", "metric"),
            Coefficient("k", f"what {target} alone is above it", "metric"),
            *(
                Coefficient(f"t_{n}", f"harm (or use, below 0) of {n} against {target}", "1")
                for n in others
            ),
        )
        self.at_bound = {
            ("logit of the floor", "low"): "no floor is visible in the fitted points",
            ("logit of the floor", "high"): "the mixtures make no visible difference",
        }

    def check_sizes(self, x: np.ndarray, x_name: str) -> None:
        super().check_sizes(x, x_name)
        total = self.total(x)
        if total.max() > ONE_SIZE * total.min():
            raise UserError(
                f"the {self.title} compares mixtures of one total, but these go from "
                f"{total.min():g} to {total.max():g} tokens: fit one size alone, or another law"
            )

    def main_size(self, x: np.ndarray) -> np.ndarray:
        """One size: nothing can be held out along it."""
        return np.ones(np.shape(x)[1])

    def _shares(self, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """Shares of the others less those of the mean mixture, (k - 1, N)."""
        own, centre = (np.exp(log) / np.exp(log).sum(0) for log in (log_x, frame.log_centre))
        return (own - centre)[1:]

    def _moving(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        return np.exp(np.clip(theta[..., 2:] @ self._shares(log_x, frame), -FAR, FAR))

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, moving = sigmoid(theta[..., 1, None]), self._moving(theta, log_x, frame)
        return theta[..., 0, None] + np.log(floor + (1 - floor) * moving)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, moving = sigmoid(theta[..., 1, None]), self._moving(theta, log_x, frame)
        total = floor + (1 - floor) * moving
        own = [np.ones_like(total), floor * (1 - floor) * (1 - moving) / total]
        by_share = ((1 - floor) * moving / total)[..., None] * self._shares(log_x, frame).T
        return np.concatenate([np.stack(own, axis=-1), by_share], axis=-1)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width = 1.0 + frame.log_high - frame.log_low
        others = self.num_parameters - 2
        return (
            np.array([frame.log_low - width, -12.0, *others * [-50.0]]),
            np.array([frame.log_high + width, 7.0, *others * [50.0]]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        shares = self._shares(log_x, frame)
        columns = np.column_stack([np.ones(len(log_y)), *shares])
        plane = np.linalg.lstsq(columns, log_y, rcond=None)[0][1:]
        grid = [
            (log_y.mean(), floor, *(factor * plane))
            for floor in (-4.0, -0.5, 1.0, 2.5)
            for factor in (0.5, 1.0, 2.0, 5.0, 10.0)
        ]
        return np.clip(np.array(grid), *self.bounds(frame))

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        centre = np.exp(frame.log_centre) / np.exp(frame.log_centre).sum(0)
        shift = (theta[..., 2:] @ centre[1:])[..., 0]
        found = {
            "c": np.exp(theta[..., 0]) * sigmoid(theta[..., 1]),
            "k": np.exp(theta[..., 0] - shift) * sigmoid(-theta[..., 1]),
        }
        names = [c.name for c in self.coefficient_table[2:]]
        return found | {name: theta[..., 2 + i] for i, name in enumerate(names)}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        shares = x / x.sum(0)
        names = [k.name for k in self.coefficient_table[2:]]
        return c["c"] + c["k"] * np.exp(
            sum(c[name] * row for name, row in zip(names, shares[1:], strict=True))
        )


class MixtureAndSize(OfSources):
    """L = E + 1 / (sum of C_i h_i^gamma_i) + B / D^beta (the additive law of Shukor et al., arXiv
    2507.09404, for one model size): the shares h_i and the total D have parts of their own, so that
    the best mixture is the same at every size.

        theta = (log L_c, logit of the floor's share of L_c, logit of the mixture's share of the
                 rest, log beta, logits of the C_i h_i^gamma_i..., log gamma_i...)
    """

    name = "shukor"
    title = "additive law of mixture and size"
    formula = "L = E + 1 / (sum of C_i h_i^gamma_i) + B / D^beta"

    def __init__(self, sources: Sequence[str]):
        super().__init__(sources)
        self.theta_names = (
            "log value at the centre", "logit of the floor", "logit of the mixture", "log beta",
            *(f"logit of {name}" for name in self.sources[1:]),
            *(f"log gamma_{name}" for name in self.sources),
        )  # fmt: skip
        self.coefficient_table = (
            Coefficient("E", "floor: value for unlimited data of the best kind", "metric"),
            Coefficient("B", "size of the data's part", "metric * D^beta"),
            Coefficient("beta", "exponent of the total", "1"),
            *(Coefficient(f"C_{name}", f"use of {name}", "1/metric") for name in self.sources),
            *(Coefficient(f"gamma_{name}", f"exponent of {name}", "1") for name in self.sources),
        )
        self.at_bound = {
            ("logit of the floor", "low"): "no floor is visible in the fitted points",
            ("logit of the floor", "high"): "the fitted values hardly leave their floor",
            ("logit of the mixture", "low"): "the mixture makes no visible difference",
            ("logit of the mixture", "high"): "the total makes no visible difference",
        }

    def _parts(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
        """floor, mixture's share (..., 1), and of the mixture its value and its terms at the points
        (..., N) and (..., k, N); beta u and the data's part (..., N)."""
        count = len(self.sources)
        total = np.log(np.exp(log_x).sum(0))
        centre = np.log(np.exp(frame.log_centre).sum(0))
        relative = (log_x - total) - (frame.log_centre - centre)  # log h_i / h_i of the centre
        gamma = np.exp(theta[..., 3 + count :, None])
        terms = self._uses(theta)[..., None] * np.exp(np.clip(gamma * relative, -FAR, FAR))
        terms = np.where(np.isneginf(log_x), 0.0, terms)
        growth = np.exp(theta[..., 3, None]) * (total - centre)
        return (
            sigmoid(theta[..., 1, None]), sigmoid(theta[..., 2, None]), 1 / terms.sum(-2), terms,
            np.where(np.isneginf(relative), 0.0, gamma * relative), growth,
            np.exp(np.clip(-growth, -FAR, FAR)),
        )  # fmt: skip

    def _uses(self, theta: np.ndarray) -> np.ndarray:
        """C_i h_i^gamma_i at the centre, as shares that add up to 1, (..., k)."""
        logits = theta[..., 4 : 3 + len(self.sources)]
        odds = np.exp(np.concatenate([np.zeros_like(logits[..., :1]), logits], axis=-1))
        return odds / odds.sum(-1, keepdims=True)

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, mixed, mixture, _, _, _, data = self._parts(theta, log_x, frame)
        rest = mixed * mixture + (1 - mixed) * data
        return theta[..., 0, None] + np.log(floor + (1 - floor) * rest)

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        floor, mixed, mixture, terms, bent, growth, data = self._parts(theta, log_x, frame)
        rest = mixed * mixture + (1 - mixed) * data
        total = floor + (1 - floor) * rest
        own = [
            np.ones_like(total),
            floor * (1 - floor) * (1 - rest) / total,
            (1 - floor) * mixed * (1 - mixed) * (mixture - data) / total,
            -(1 - floor) * (1 - mixed) * growth * data / total,
        ]
        pull = ((1 - floor) * mixed * mixture**2 / total)[..., None, :]
        uses = self._uses(theta)[..., None]
        by_logit = -pull * (terms - uses * terms.sum(-2, keepdims=True))
        by_gamma = -pull * terms * bent
        rows = np.concatenate([np.stack(own, axis=-2), by_logit[..., 1:, :], by_gamma], axis=-2)
        return np.swapaxes(rows, -1, -2)

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        width, count = 1.0 + frame.log_high - frame.log_low, len(self.sources)
        low = [frame.log_low - width, -12.0, -12.0, np.log(1e-3)]
        high = [frame.log_high + width, 7.0, 12.0, np.log(5.0)]
        return (
            np.array(low + (count - 1) * [-12.0] + count * [np.log(1e-2)]),
            np.array(high + (count - 1) * [12.0] + count * [np.log(5.0)]),
        )

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        count = len(self.sources)
        leanings = [np.zeros(count - 1), *(s * row for s in (-2, 2) for row in np.eye(count - 1))]
        grid = [
            (log_y.mean(), floor, mixed, np.log(beta), *leaning, *np.full(count, np.log(gamma)))
            for floor in (-3.0, 0.5)
            for mixed in (-2.0, 0.0)
            for beta, gamma in ((0.1, 0.2), (0.4, 0.6))
            for leaning in leanings[: 3 if floor > 0 else None]
        ]
        return np.array(grid)

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        count, value = len(self.sources), theta[..., 0]
        centre = np.exp(frame.log_centre)
        shares = np.log(centre / centre.sum(0))[:, 0]
        beta, gamma = np.exp(theta[..., 3]), np.exp(theta[..., 3 + count :])
        with np.errstate(over="ignore"):
            part = np.exp(value) * sigmoid(-theta[..., 1]) * sigmoid(theta[..., 2])
            uses = self._uses(theta) * np.exp(-gamma * shares) / part[..., None]
            found = {
                "E": np.exp(value) * sigmoid(theta[..., 1]),
                "B": np.exp(value + beta * np.log(centre.sum()))
                * sigmoid(-theta[..., 1]) * sigmoid(-theta[..., 2]),
                "beta": beta,
            }  # fmt: skip
        found |= {f"C_{name}": uses[..., i] for i, name in enumerate(self.sources)}
        return found | {f"gamma_{name}": gamma[..., i] for i, name in enumerate(self.sources)}

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        total = x.sum(0)
        use = sum(
            c[f"C_{name}"] * (row / total) ** c[f"gamma_{name}"]
            for name, row in zip(self.sources, x, strict=True)
        )
        return c["E"] + 1 / use + c["B"] / total ** c["beta"]


KINDS: dict[str, type[OfSources]] = {
    kind.name: kind for kind in (EffectiveData, Paired, Saturating, Mixture, MixtureAndSize)
}
