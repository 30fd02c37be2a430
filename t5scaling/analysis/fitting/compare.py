"""Which family of laws a set of curves follows, judged by what it has not seen.

Three protocols say what is fitted and what is predicted:

- "rollout": the first k sizes, and the next one from them, for growing k (the default);
- "smallest": the 4 smallest sizes, and all others from them (Isik et al., arXiv 2402.04177);
- "last": all but the last size, and that one from them (Alabdulmohsin et al., arXiv 2209.06640).

Families are ranked by the root mean square of these errors in log values, over the predictions that
all of them could make. The first is called the winner only if a paired test can tell it from the
second (Wilcoxon's signed-rank test of the absolute errors, 5 %): errors of one curve at one k are
made on the same points. Fit errors play no part: the family with the most coefficients has the
smallest. Curves of two sizes are held out along the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fitting.fit import FITTED_SIZES, check_positive, fit_curve
from t5scaling.analysis.fitting.problem import Problem, best_theta
from t5scaling.analysis.fitting.significance import SIGNIFICANCE
from t5scaling.analysis.laws.base import Law
from t5scaling.errors import UserError, nearest

PROTOCOLS = ("rollout", "smallest", "last")
ONE_SIDED = 0.8  # a law overshoots if this share of its predictions are too high


@dataclass(frozen=True)
class Prediction:
    """One prediction of a protocol.

    curve: its number. k: sizes that were fitted. x: the size predicted (x2: its second size).
    decades: of x from the last fitted size. measured: mean of the points there. low, high: the
    interval for a new measurement; nan without intervals. converged: of the fit.
    """

    curve: int
    k: int
    x: float
    decades: float
    measured: float
    predicted: float
    low: float = math.nan
    high: float = math.nan
    converged: bool = True
    x2: float | None = None

    @property
    def log_error(self) -> float:
        """Log of predicted over measured; inf where the law predicts 0."""
        return math.log(self.predicted / self.measured) if self.predicted > 0 else math.inf

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Family:
    """A law over all curves. predictions: those that every family could make, in the same order.

    error: root mean square of their log errors. aicc: the small-sample information criterion of
    the fits to all points, summed over the curves, with normal errors in log values; inf where a
    curve has too few points for it. smaller is better for both.
    """

    law: Law
    predictions: tuple[Prediction, ...]
    error: float
    aicc: float

    @property
    def relative_error(self) -> float:
        """Mean of |predicted - measured| / measured."""
        return float(np.mean([abs(p.predicted / p.measured - 1) for p in self.predictions]))

    @property
    def bias(self) -> float:
        """Mean of (predicted - measured) / measured."""
        return float(np.mean([p.predicted / p.measured - 1 for p in self.predictions]))

    @property
    def coverage(self) -> float | None:
        """Share of the measured values within their interval; None without intervals."""
        if any(math.isnan(p.low) for p in self.predictions):
            return None
        return float(np.mean([p.inside for p in self.predictions]))

    @property
    def decades(self) -> float:
        """The farthest extrapolation."""
        return max(p.decades for p in self.predictions)

    @property
    def overshoots(self) -> bool:
        """Whether it nearly always predicts too much."""
        above = np.mean([p.predicted > p.measured for p in self.predictions])
        return len(self.predictions) >= 3 and above >= ONE_SIDED and self.bias > 0


@dataclass(frozen=True)
class Comparison:
    """families: by rising error. p_value: that the first two are equally good, None for one family
    or too few predictions to test. winner: the first, if the data can tell."""

    families: tuple[Family, ...]
    p_value: float | None
    protocol: str = "rollout"

    @property
    def winner(self) -> Law | None:
        differ = self.p_value is not None and self.p_value < SIGNIFICANCE
        return self.families[0].law if differ else None

    @property
    def sentence(self) -> str:
        first = self.families[0]
        best = f"{first.law.title} predicts best (RMS error of log values {first.error:.3g} over "
        best += f"{len(first.predictions)} predictions)"
        if len(self.families) == 1:
            return best
        second = self.families[1]
        rest = f"the {second.law.title} ({second.error:.3g})"
        if self.p_value is None:
            return f"{best}, before {rest}; too few predictions to test that"
        if self.winner:
            return f"{best}, better than {rest} (p = {self.p_value:.2g})"
        return f"{best}, but cannot be distinguished from {rest} (p = {self.p_value:.2g})"

    @property
    def warnings(self) -> list[str]:
        """What the signs of the errors say."""
        said = []
        for family in self.families:
            if family.overshoots and family.law.direction > 0:
                said.append(
                    f"the {family.law.title} overshoots: its predictions are {family.bias:.1%} too "
                    "high on average, as happens where scores saturate"
                )
            elif family.overshoots:
                said.append(
                    f"the {family.law.title} is too pessimistic: its predictions are "
                    f"{family.bias:.1%} too high on average"
                )
        return said


def predictions(
    law: Law,
    x: np.ndarray,
    y: np.ndarray,
    *,
    protocol: str = "rollout",
    first: int | None = None,
    delta: float | None = None,
    with_intervals: bool = False,
    curve: int = 0,
) -> list[Prediction]:
    """What the protocol makes the law predict. Empty for a curve that is too short.

    Args:
      first: least number of sizes to fit; None: one more than the law has coefficients, and 2 for
        a law of two sizes.
      with_intervals: costs a bootstrap for each fit.

    Raises:
      UserError: values that are not positive, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r}: unknown{nearest(protocol, PROTOCOLS)}")
    x, y = np.asarray(x, float), np.asarray(y, float)
    check_positive(law, x, y, "x", "y")
    main = law.main_size(x)
    sizes = np.unique(main)
    if first is None:
        first = law.num_parameters + 1 if x.ndim == 1 else 1 if law.sources else 2
    if protocol == "rollout":
        plan = [(k, sizes[k : k + 1]) for k in range(first, len(sizes))]
    elif protocol == "smallest":
        k = max(FITTED_SIZES, first)
        plan = [(k, sizes[k:])] if k < len(sizes) else []
    else:
        plan = [(len(sizes) - 1, sizes[-1:])] if len(sizes) > first else []
    found = []
    for k, wanted in plan:
        fitted = main <= sizes[k - 1]
        if x.ndim == 2 and np.unique(x[:, fitted], axis=1).shape[1] <= law.num_parameters:
            continue
        places = np.unique(x[..., np.isin(main, wanted)], axis=-1)
        if with_intervals:
            fit = fit_curve(law, x[..., fitted], y[fitted], hold_out=0, delta=delta)
            predicted, (low, high), converged = fit.predict(places), fit.band(places), fit.converged
        else:
            problem = Problem.of(law, x[..., fitted], y[fitted], delta)
            theta, _, converged = best_theta(problem)
            with np.errstate(divide="ignore"):  # no tokens of a source
                log_places = np.log(places)
            predicted = np.exp(law.log_value(theta, log_places, problem.frame))
            low = high = np.full(len(predicted), math.nan)
        for i in range(places.shape[-1]):
            at = places[..., i]
            here = np.all(np.atleast_2d(x) == np.ravel(at)[:, None], axis=0)
            size, second = law.main_size(at[..., None])[0], [] if law.sources else np.ravel(at)[1:]
            found.append(
                Prediction(
                    curve=curve, k=k, x=float(size), decades=float(np.log10(size / sizes[k - 1])),
                    measured=float(y[here].mean()), predicted=float(predicted[i]),
                    low=float(low[i]), high=float(high[i]), converged=converged,
                    x2=float(second[0]) if len(second) else None,
                )
            )  # fmt: skip
    return found


def compare(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    laws: Sequence[Law],
    *,
    protocol: str = "rollout",
    delta: float | None = None,
    with_intervals: bool = False,
) -> Comparison:
    """Ranks `laws` over `curves`, each (x, y).

    Raises UserError if no curve is long enough for a prediction by all of them; it says how many
    sizes that takes.
    """
    first = max(law.num_parameters for law in laws) + 1 if len(laws[0].sizes) == 1 else None
    found: dict[str, list[Prediction]] = {law.name: [] for law in laws}
    for i, (x, y) in enumerate(curves):
        of_curve = {
            law.name: predictions(
                law, x, y, protocol=protocol, first=first, delta=delta,
                with_intervals=with_intervals, curve=i,
            )
            for law in laws
        }  # fmt: skip
        common = set.intersection(
            *({(p.k, p.x, p.x2) for p in of_law} for of_law in of_curve.values())
        )
        for name, of_law in of_curve.items():
            found[name] += [p for p in of_law if (p.k, p.x, p.x2) in common]
    if not all(found.values()):
        longest = max(len(np.unique(np.atleast_2d(x)[0])) for x, _ in curves)
        largest = max(laws, key=lambda law: law.num_parameters)
        least = first or 2
        raise UserError(
            f"no curve has more than {longest} sizes: to compare with the {largest.title} "
            f"{least + 1} are needed ({least} to fit, one to predict)"
        )
    families = [
        Family(law, tuple(found[law.name]), _rms(found[law.name]), _aicc(law, curves, delta))
        for law in laws
    ]
    families.sort(key=lambda family: family.error)
    return Comparison(tuple(families), p_value(families), protocol)


def _rms(found: Sequence[Prediction]) -> float:
    return math.sqrt(sum(p.log_error**2 for p in found) / len(found))


def p_value(families: Sequence[Family]) -> float | None:
    """That the first two are equally good, by their errors; None where even the clearest order
    could not be significant."""
    if len(families) < 2 or 2 * 0.5 ** len(families[0].predictions) >= SIGNIFICANCE:
        return None
    from scipy.stats import wilcoxon

    errors = [[min(abs(p.log_error), 1e3) for p in f.predictions] for f in families[:2]]
    if errors[0] == errors[1]:
        return 1.0
    return float(wilcoxon(*errors).pvalue)


def _aicc(law: Law, curves, delta: float | None) -> float:
    total = 0.0
    for x, y in curves:
        x, y = np.asarray(x, float), np.asarray(y, float)
        count, parameters = len(y), law.num_parameters + 1  # and the noise
        if count <= parameters + 1:
            return math.inf
        problem = Problem.of(law, x, y, delta)
        theta, _, _ = best_theta(problem)
        residuals = problem.log_y - problem.log_values(theta)
        total += count * math.log(max(float(np.mean(residuals**2)), 1e-300)) + 2 * parameters
        total += 2 * parameters * (parameters + 1) / (count - parameters - 1)
    return total
