"""The answer of a study in three parts: what pretraining buys, which data, how far a law sees.

Each is for the fullest pool of each task and for its score, or cross-entropy where the score
decides nothing (`selection`); gains and differences are with intervals (`evidence`).
"""

import math
from dataclasses import dataclass
from statistics import median

from t5scaling.analysis.conclusions.advice import Advice
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer, Decision, worth_it
from t5scaling.analysis.conclusions.evidence import Range, at_largest
from t5scaling.analysis.conclusions.exchange import Transfer
from t5scaling.analysis.conclusions.representatives import means
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.metrics import LOSS, better
from t5scaling.analysis.results.places import Place


@dataclass(frozen=True)
class Gain:
    """What pretraining on the best matching data of a task buys at its largest size.

    pretrain: that size. gain: over no pretraining, positive where it is better. transfer: its worth
    in finetuning data, in the same pool (in_pool) or in the largest where it was measured; None
    where the pools do not measure it.
    """

    place: Place
    metric: str
    pretrain: float
    gain: Decision
    transfer: Transfer | None
    in_pool: bool


@dataclass(frozen=True)
class BestData:
    """The best pretraining data of a task at the largest size, and the next best.

    ahead: by how much the first is better than the second, None if that has no interval. answer:
    whether the first is the better one.
    """

    place: Place
    metric: str
    second: Place
    ahead: Range | None
    answer: Answer


@dataclass(frozen=True)
class Accuracy:
    """How far laws of a metric, fitted to all sizes but the largest, are off at that one: relative
    errors over the curves that have a shape for a law."""

    metric: str
    median: float
    worst: float
    curves: int


@dataclass(frozen=True)
class Reach:
    """How far laws see. decades: mean distance of the largest size from the one before it, None
    where no law was checked. curves, predictable, without_law: numbers of curves."""

    accuracies: tuple[Accuracy, ...]
    decades: float | None
    curves: int
    predictable: int
    without_law: int
    largest: float


@dataclass(frozen=True)
class Headline:
    """gains: one per task with runs without pretraining. choices: one per task with two or more
    data sets."""

    gains: tuple[Gain, ...]
    choices: tuple[BestData, ...]
    reach: Reach


def headline(selection: Selection, advice: Advice | None) -> Headline:
    """The three answers of a study."""
    best = [curve_fit for task in selection.tasks for curve_fit in selection.headline(task)[:1]]
    gains = tuple(
        Gain(
            curve_fit.curve.place, curve_fit.curve.metric, largest_of(curve_fit), gain,
            *_transfer(curve_fit, advice),
        )
        for curve_fit in best
        if (gain := worth_it(curve_fit)).value is not None
    )  # fmt: skip
    groups = [selection.headline(task) for task in selection.tasks]
    choices = tuple(_best(curves) for curves in groups if len(curves) > 1)
    return Headline(gains, choices, _reach(selection))


def largest_of(curve_fit: CurveFit) -> float:
    """The largest measured size of a curve."""
    return max(p.x for p in curve_fit.curve.points)


def _transfer(curve_fit: CurveFit, advice: Advice | None) -> tuple[Transfer | None, bool]:
    found = {
        one.pool: one
        for one in (advice.transfers if advice else ())
        if one.place == curve_fit.curve.place.beside_pool
    }
    if not found:
        return None, False
    pool = curve_fit.curve.facts.get("finetune_tokens")
    return (found[pool], True) if pool in found else (found[max(found)], False)


def _best(curves: list[CurveFit]) -> BestData:
    largest = min(max(means(curve_fit.curve)) for curve_fit in curves)
    metric = curves[0].curve.metric

    def at(curve_fit: CurveFit) -> float:
        course = means(curve_fit.curve)
        return better(metric) * course[min(course, key=lambda x: abs(x - largest))]

    first, second, *_ = sorted(curves, key=at, reverse=True)
    ahead = at_largest(first, second)
    answer = Answer.YES if ahead and ahead.sure else Answer.OPEN
    return BestData(first.curve.place, metric, second.curve.place, ahead, answer)


def _reach(selection: Selection) -> Reach:
    accuracies, shown, decades = [], [], []
    scores = [score for task in selection.tasks if (score := selection.score(task))]
    for metric in (LOSS, *dict.fromkeys(scores)):
        errors = []
        for task in selection.tasks:
            if metric not in (LOSS, selection.metric(task)):
                continue
            for curve_fit in selection.of(task, metric):
                shown.append(curve_fit)
                if curve_fit.check.predictions and not curve_fit.verdict.has_no_law:
                    errors.append(abs(curve_fit.check.farthest.relative_error))
                    decades.append(curve_fit.check.farthest.decades)
        if errors:
            accuracies.append(Accuracy(metric, median(errors), max(errors), len(errors)))
    return Reach(
        tuple(accuracies), math.fsum(decades) / len(decades) if decades else None, len(shown),
        sum(curve_fit.verdict.shape is Shape.PREDICTABLE for curve_fit in shown),
        sum(curve_fit.verdict.has_no_law for curve_fit in shown),
        max(largest_of(curve_fit) for curve_fit in selection.curve_fits),
    )  # fmt: skip
