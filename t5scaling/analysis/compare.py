"""Which family of laws a set of curves follows, judged by what it has not seen.

The protocol is a rollout: fit the first k sizes, predict the next one, for growing k. Families are
ranked by the root mean square of these errors in log values, over the predictions that all of them
could make. The first is called the winner only if a paired test can tell it from the second
(Wilcoxon's signed-rank test of the absolute errors, 5 %): errors of one curve at one k are made on
the same points. Fit errors play no part: the family with the most coefficients has the smallest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fit import best_theta, check_positive
from t5scaling.analysis.law import Frame, Law
from t5scaling.errors import UserError

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Step:
    """One prediction of a rollout.

    k: sizes that were fitted. x: the size predicted. decades: of x from the last fitted size.
    log_error: log of predicted over measured (the mean of the points there); inf where the law
    predicts 0. converged: of the fit.
    """

    k: int
    x: float
    decades: float
    log_error: float
    converged: bool


@dataclass(frozen=True)
class Family:
    """A law over all curves. steps: those that every family could make, in the same order.

    error: root mean square of their log errors. aicc: the small-sample information criterion of
    the fits to all points, summed over the curves, with normal errors in log values; inf where a
    curve has too few points for it. smaller is better for both.
    """

    law: Law
    steps: tuple[Step, ...]
    error: float
    aicc: float


@dataclass(frozen=True)
class Comparison:
    """families: by rising error. p_value: that the first two are equally good, None for one family
    or too few predictions to test. winner: the first, if the data can tell."""

    families: tuple[Family, ...]
    p_value: float | None

    @property
    def winner(self) -> Law | None:
        told = self.p_value is not None and self.p_value < SIGNIFICANCE
        return self.families[0].law if told else None

    @property
    def sentence(self) -> str:
        first = self.families[0]
        best = f"{first.law.title} predicts best (RMS error of log values {first.error:.3g} over "
        best += f"{len(first.steps)} predictions)"
        if len(self.families) == 1:
            return best
        second = self.families[1]
        rest = f"the {second.law.title} ({second.error:.3g})"
        if self.p_value is None:
            return f"{best}, before {rest}; too few predictions to test that"
        if self.winner:
            return f"{best}, better than {rest} (p = {self.p_value:.2g})"
        return f"{best}, but cannot be told from {rest} (p = {self.p_value:.2g})"


def rollout(
    law: Law, x: np.ndarray, y: np.ndarray, *, first: int | None = None, delta: float | None = None
) -> list[Step]:
    """Fits the k smallest sizes and predicts the next, for k from `first` (one more than the law
    has coefficients) to all but one. Empty for fewer sizes. Raises UserError for values that are
    not positive."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    check_positive(law, x, y, "x", "y")
    delta = law.huber_delta if delta is None else delta
    sizes = np.unique(x)
    steps = []
    for k in range(first or law.num_parameters + 1, len(sizes)):
        fitted, at = x <= sizes[k - 1], sizes[k]
        frame = Frame.of(x[fitted], y[fitted])
        theta, _, converged = best_theta(law, frame, np.log(x[fitted]), np.log(y[fitted]), delta)
        predicted = float(law.log_value(theta, np.log([at]), frame)[0])
        error = predicted - math.log(y[x == at].mean())
        steps.append(
            Step(k, float(at), float(np.log10(at / sizes[k - 1])), abs(error) if math.isinf(error)
                 else error, converged)
        )  # fmt: skip
    return steps


def compare(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    laws: Sequence[Law],
    *,
    delta: float | None = None,
) -> Comparison:
    """Ranks `laws` over `curves`, each (x, y).

    Raises UserError if no curve is long enough for a prediction by all of them; it says how many
    sizes that takes.
    """
    first = max(law.num_parameters for law in laws) + 1
    found: Mapping[str, list[Step]] = {
        law.name: [s for x, y in curves for s in rollout(law, x, y, first=first, delta=delta)]
        for law in laws
    }
    if not all(found.values()):
        longest = max(len(np.unique(x)) for x, _ in curves)
        largest = max(laws, key=lambda law: law.num_parameters)
        raise UserError(
            f"no curve has more than {longest} sizes: to compare with the {largest.title} "
            f"{first + 1} are needed ({first} to fit, one to predict)"
        )
    families = [
        Family(law, tuple(found[law.name]), _rms(found[law.name]), _aicc(law, curves, delta))
        for law in laws
    ]
    families.sort(key=lambda family: family.error)
    return Comparison(tuple(families), _p_value(families))


def _rms(steps: Sequence[Step]) -> float:
    return math.sqrt(sum(step.log_error**2 for step in steps) / len(steps))


def _p_value(families: Sequence[Family]) -> float | None:
    """None where even the clearest order could not be significant."""
    if len(families) < 2 or 2 * 0.5 ** len(families[0].steps) >= SIGNIFICANCE:
        return None
    from scipy.stats import wilcoxon

    errors = [[min(abs(s.log_error), 1e3) for s in family.steps] for family in families[:2]]
    if errors[0] == errors[1]:
        return 1.0
    return float(wilcoxon(*errors).pvalue)


def _aicc(law: Law, curves, delta: float | None) -> float:
    total = 0.0
    for x, y in curves:
        x, y = np.asarray(x, float), np.asarray(y, float)
        count, parameters = len(x), law.num_parameters + 1  # and the noise
        if count <= parameters + 1:
            return math.inf
        frame = Frame.of(x, y)
        theta, _, _ = best_theta(
            law, frame, np.log(x), np.log(y), law.huber_delta if delta is None else delta
        )
        residuals = np.log(y) - law.log_value(theta, np.log(x), frame)
        total += count * math.log(max(float(np.mean(residuals**2)), 1e-300)) + 2 * parameters
        total += 2 * parameters * (parameters + 1) / (count - parameters - 1)
    return total
