"""Whether a score and the cross-entropy agree.

The central warning of Isik et al. (arXiv 2402.04177): where pretraining data do not match the task,
the downstream score may fluctuate or fall while the cross-entropy keeps falling as if all were
well. The paper judges that by eye. The rules here are OURS:

- They disagree if the cross-entropy improves (`Shape.improves`) and the score gets worse, improves
  and worsens again, or does not change (`Shape.has_no_law`). They agree if both improve. Else
  nothing can be said.
- The score is an exponential of the cross-entropy (Gordon et al., EMNLP 2021) if it improves with
  pretraining, falls with the cross-entropy, and the law's residuals are no larger than twice the
  noise of the score's points, or EXPONENTIAL of the score, whichever is more.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.metrics import LOWER_IS_BETTER, metric_name
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import number
from t5scaling.errors import UserError

EXPONENTIAL = 0.05


@dataclass(frozen=True)
class Relation:
    """A score and a loss over the same runs.

    agree: None if that is open. tau: Kendall's rank correlation of the score with minus the
    loss, over the means per size; nan if one of them is constant. fit: the score as an exponential
    of the loss over all points, with its residuals' standard deviation in logs; None if it could
    not be fitted. exponential: whether that law holds; None without a fit.
    """

    score: CurveFit
    loss: CurveFit
    agree: bool | None
    tau: float
    fit: Fit | None
    exponential: bool | None

    @property
    def sentence(self) -> str:
        name, loss = (metric_name(c.curve.metric) for c in (self.score, self.loss))
        words = f"{loss} is {self.loss.verdict.word}, {name} is {self.score.verdict.word}"
        rank = "" if math.isnan(self.tau) else f" (rank correlation {self.tau:+.2f})"
        if self.agree:
            return f"{name} and {loss} agree: both improve with pretraining{rank}."
        if self.agree is None:
            return f"Whether {name} and {loss} agree is open: {words}{rank}."
        return f"{name} and {loss} DISAGREE: {words}{rank}. {loss} is no guide to {name} here: " + (
            "the score is too coarse at these sizes, or the pretraining data do not help it."
            if self.score.verdict.shape is Shape.TRENDLESS
            else "the pretraining data may not match the task."
        )

    @property
    def relation_sentence(self) -> str:
        name, loss = (metric_name(c.curve.metric) for c in (self.score, self.loss))
        if self.fit is None:
            return f"{name} against {loss}: too few points for a law."
        k = self.fit.coefficients["k"]
        said = f"{name} = C * e^(k * {loss}) with k = {number(k[0])} ({number(k[1])} to "
        said += f"{number(k[2])}), residuals {self.fit.sigma:.1%}"
        return said + (": an exponential." if self.exponential else ": NOT an exponential.")


def relations(curve_fits: Sequence[CurveFit]) -> list[Relation]:
    """Every score of a place beside its loss; curves of one place differ in the metric alone."""
    by_place: dict[Place, list[CurveFit]] = {}
    for curve_fit in curve_fits:
        by_place.setdefault(curve_fit.curve.place, []).append(curve_fit)
    found = []
    for members in by_place.values():
        losses = [t for t in members if t.curve.metric in LOWER_IS_BETTER]
        for score in members:
            if losses and score.curve.metric not in LOWER_IS_BETTER:
                found.append(relate(score, losses[0]))
    return found


def relate(score: CurveFit, loss: CurveFit) -> Relation:
    """Both over the same runs."""
    agree = None
    if loss.verdict.improves and score.verdict.is_clear:
        agree = score.verdict.improves
    fit, exponential = None, None
    x, y = by_run(score, loss)
    if len(x):
        with suppress(UserError):
            fit = fit_curve(LAWS["gordon"], x, y, hold_out=0, x_name="loss", y_name="score")
    if fit:
        noise = score.verdict.noise / float(np.mean(y))
        falls = fit.coefficients["k"][2] < 0 and not fit.at_bound
        falls = falls and not score.verdict.has_no_law
        exponential = bool(falls and fit.sigma <= max(2 * noise, EXPONENTIAL))
    return Relation(score, loss, agree, agreement(score.curve, loss.curve), fit, exponential)


def by_run(score: CurveFit, loss: CurveFit) -> tuple[np.ndarray, np.ndarray]:
    """(loss, score) of the runs that have both, (N,) each; by run, or by size without names."""

    def values(curve_fit: CurveFit) -> dict:
        found: dict = {}
        for p in curve_fit.curve.points:
            found.setdefault(p.run or (p.x, p.seed), []).append(p.value)
        return {place: float(np.mean(v)) for place, v in found.items()}

    scores, losses = values(score), values(loss)
    both = [place for place in scores if place in losses]
    return np.array([losses[p] for p in both]), np.array([scores[p] for p in both])


def agreement(score: Curve, loss: Curve) -> float:
    """Kendall's tau-b of the mean scores of the sizes and of their negative mean losses; nan of
    fewer than three sizes, or where all means of one kind are equal."""
    means = []
    for curve in (score, loss):
        by_size: dict[float, list[float]] = {}
        for p in curve.points:
            by_size.setdefault(p.x, []).append(p.value)
        means.append({x: float(np.mean(v)) for x, v in by_size.items()})
    sizes = [x for x in means[0] if x in means[1]]
    if len(sizes) < 3:
        return math.nan
    # scipy.stats.kendalltau is the same, but its import would take most of a report's time.
    scores, losses = (np.array([of_size[x] for x in sizes]) for of_size in means)
    better = np.sign(np.subtract.outer(scores, scores))
    lower = np.sign(np.subtract.outer(-losses, -losses))
    pairs = math.sqrt(float(np.sum(better**2) * np.sum(lower**2)))
    return float(np.sum(better * lower)) / pairs if pairs else math.nan
