"""Which family of laws a set of curves follows, judged by what it has not seen.

What is fitted and what is predicted: `protocol`. Families are ranked by the root mean square of
their errors in log values, over the predictions that all of them could make. The first is called
the winner only if a paired test can tell it from the second. Ranking and test have one measure, the
squared log errors: what is tested is the sum of (second - first), which is never negative as the
first has the smaller sum, so that a small p speaks for the first and can speak for no other.

Errors of one curve are not independent, as it is one curve with its own bends. So the signs of
whole blocks are turned (a permutation test; Good 2005): under the hypothesis that both families are
equally good, the sum of a block is as likely to have either sign. Blocks are the curves where there
are FEWEST_BLOCKS of them, else runs of RUN neighbouring predictions: errors of predictions one step
ahead are uncorrelated if the forecasts are good ones (Diebold and Mariano 1995), and near ones are
kept together for those that are not.

Fit errors play no part: the family with the most coefficients has the smallest.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fitting.fit import check_positive
from t5scaling.analysis.fitting.problem import Problem, precision
from t5scaling.analysis.fitting.protocol import check_protocol
from t5scaling.analysis.fitting.rollout import Prediction, fit_each, predictions, rms_log_error
from t5scaling.analysis.fitting.significance import SIGNIFICANCE
from t5scaling.analysis.laws.base import Law
from t5scaling.errors import UserError

ONE_SIDED = 0.8  # a law overshoots if this share of its predictions are too high
FEWEST_BLOCKS = 6  # with fewer no order of two families is significant
RUN = 2
TURNS = 10_000  # of signs, where there are too many to try them all


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
        return len(self.predictions) >= 3 and bool(above >= ONE_SIDED) and self.bias > 0


@dataclass(frozen=True)
class Comparison:
    """families: by rising error. p_value: of the test that the first two are equally good, None for
    one family or too few predictions to test. winner: the first, if the data can tell."""

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


def compare(
    curves: Sequence[tuple[np.ndarray, ...]],
    laws: Sequence[Law],
    *,
    protocol: str = "rollout",
    delta: float | None = None,
    first: int | None = None,
    with_aicc: bool = True,
) -> Comparison:
    """Ranks `laws` over `curves`, each (x, y), or (x, y, standard errors of y).

    Args:
      first: least number of sizes to fit; None: one more than the law with the most coefficients
        has, but 4 in the paper's protocol, which fits 4.
      with_aicc: whether the families get an AICc, which takes a fit to all points; else it is nan.

    Raises:
      UserError: an unknown protocol, values that are not positive, or no curve that is long enough
        for a prediction by all of them; it says how many sizes that takes.
    """
    check_protocol(protocol)
    largest = max(laws, key=lambda law: law.num_parameters)
    if first is None:
        first = max(largest.num_parameters + (protocol != "paper"), 3)
    found: dict[str, list[Prediction]] = {law.name: [] for law in laws}
    for i, (x, y, *errors) in enumerate(curves):
        check_positive(laws[0], np.asarray(x, float), np.asarray(y, float), "x", "y")
        of_curve = {
            law.name: predictions(
                law, x, y, protocol=protocol, first=first, delta=delta, curve=i,
                errors=errors[0] if errors else None,
            )
            for law in laws
        }  # fmt: skip
        common = set.intersection(
            *({(p.k, p.x, p.x2) for p in of_law} for of_law in of_curve.values())
        )
        for name, of_law in of_curve.items():
            found[name] += [p for p in of_law if (p.k, p.x, p.x2) in common]
    if not all(found.values()):
        longest = max(len(np.unique(np.atleast_2d(x)[0])) for x, *_ in curves)
        if protocol == "paper":
            needed = (
                f"the paper's protocol fits 4, and the {largest.title} has "
                f"{largest.num_parameters} coefficients"
            )
        else:
            needed = f"{first + 1} are needed ({first} to fit, one to predict)"
        raise UserError(
            f"no curve has more than {longest} sizes: to compare with the {largest.title} {needed}"
        )
    families = [
        Family(law, tuple(found[law.name]), rms_log_error(found[law.name]),
               _aicc(law, curves, delta) if with_aicc else math.nan) for law in laws
    ]  # fmt: skip
    families.sort(key=lambda family: family.error)
    return Comparison(tuple(families), p_value(families), protocol)


def p_value(families: Sequence[Family]) -> float | None:
    """Of the two-sided test that the first two are equally good; None where even the clearest order
    could not be significant. The first has the smaller error."""
    if len(families) < 2:
        return None
    losses = np.array(
        [[min(abs(p.log_error), 1e3) ** 2 for p in family.predictions] for family in families[:2]]
    )
    sums = _sums_of_blocks(losses[1] - losses[0], [p.curve for p in families[0].predictions])
    if 2 * 0.5 ** len(sums) >= SIGNIFICANCE:
        return None
    if not sums.any():
        return 1.0
    if len(sums) <= 13:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (TURNS, len(sums)))
        signs = np.vstack([np.ones(len(sums)), 2.0 * drawn - 1])
    reached = np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-9)
    return float(reached.mean())


def _sums_of_blocks(differences: np.ndarray, curves: Sequence[int]) -> np.ndarray:
    """Sums over curves, or over runs of predictions where the curves are few."""
    labels = np.asarray(curves)
    if len(np.unique(labels)) < FEWEST_BLOCKS:
        along = np.concatenate([np.arange((labels == c).sum()) for c in dict.fromkeys(curves)])
        labels = labels * len(differences) + along // RUN
    _, block = np.unique(labels, return_inverse=True)
    return np.bincount(block, differences)


def _aicc(law: Law, curves, delta: float | None) -> float:
    total = 0.0
    for x, y, *errors in curves:
        x, y = np.asarray(x, float), np.asarray(y, float)
        count, parameters = len(y), law.num_parameters + 1  # and the noise
        if count <= parameters + 1:
            return math.inf
        scale = precision(np.asarray(errors[0], float), y) if errors else None
        problem = Problem.of(law, x, y, delta, scale=scale)
        thetas, _ = fit_each(problem, [np.ones(count, bool)])
        residuals = problem.log_y - problem.log_values(thetas[0])
        if scale is not None:
            residuals = residuals * scale  # the sum of their logs is one for all laws
        total += count * math.log(max(float(np.mean(residuals**2)), 1e-300)) + 2 * parameters
        total += 2 * parameters * (parameters + 1) / (count - parameters - 1)
    return total
