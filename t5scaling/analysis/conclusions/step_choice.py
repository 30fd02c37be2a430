"""Whether what a score says of pretraining depends on which step and learning rate are counted.

Validation cross-entropy chooses both (`results.curves`). Where it turns before a score does, as in
small finetuning pools, the step that it chooses is early, and comes earlier the more was
pretrained: the score then falls with D_p because less was finetuned. Here each score's curve
stands beside itself at the last step of all runs, at each learning rate.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.fitting.significance import student_half_width
from t5scaling.analysis.metrics import better
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.places import Place

FEWEST_SIZES = 4  # of D_p, for a slope


@dataclass(frozen=True)
class MeanAt:
    """The mean of a score at one D_p."""

    x: float
    value: float


@dataclass(frozen=True)
class Counted:
    """A score against D_p, one step and one rate of each run being counted.

    learning_rate: None for the one that validation chooses at each D_p. at_last_step: else at the
    step that validation chooses. not_pretrained: its mean without pretraining, None if unknown.
    smallest, largest: its means at the ends of D_p. slope: what a tenfold D_p adds to the score, by
    least squares over all points; low, high: its 90 % interval, by Student's t.
    """

    learning_rate: float | None
    at_last_step: bool
    not_pretrained: float | None
    smallest: MeanAt
    largest: MeanAt
    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class StepChoice:
    """A score's curve counted in several ways, the first as everywhere else in the report.

    runs: whose values it counts. better_later: those that score higher at their last step, and
    ratio: the median of how many times as high (1 where no score is positive).
    """

    place: Place
    metric: str
    ways: tuple[Counted, ...]
    runs: int
    better_later: int
    ratio: float


def choices_of_step(
    curve_fits: Sequence[CurveFit], rows: Sequence[Mapping[str, Any]]
) -> list[StepChoice]:
    """Of every score among the curves whose runs were evaluated at several steps, and at
    FEWEST_SIZES or more D_p. Losses are chosen by their own minimum, so there is nothing to ask."""
    by_curve: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        key = (row["model"], row["task"], row["finetune_examples"], row["metric"], row["split"])
        by_curve[key].append(row)
    found = []
    for curve_fit in curve_fits:
        curve = curve_fit.curve
        if better(curve.metric) < 0:
            continue
        place = curve.place
        split = curve.facts.get("split", "test")
        own = by_curve[place.model, place.task, place.pool, curve.metric, split]
        choice = _choice(curve, own)
        if choice:
            found.append(choice)
    return found


def _choice(curve: Curve, rows: Sequence[Mapping[str, Any]]) -> StepChoice | None:
    """`rows`: of the curve's metric, for all pretraining data and none."""
    data = curve.place.data
    rows = [
        row
        for row in rows
        if (not row["pretrain_tokens"] or row["pretrain_data"] == data)
        and math.isfinite(row["value"])
    ]
    last: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["run"] not in last or row["steps"] > last[row["run"]]["steps"]:
            last[row["run"]] = row
    counted = [p for p in curve.points if p.run in last]
    if not any(p.step is not None and p.step < last[p.run]["steps"] for p in counted):
        return None
    ways = [_way(None, False, curve.points, [p.value for p in curve.baseline])]
    for rate in sorted({row["learning_rate"] for row in rows if row["learning_rate"] is not None}):
        here = [row for row in last.values() if row["learning_rate"] == rate]
        points = [
            Point(x=row["pretrain_tokens"], value=row["value"])
            for row in here
            if row["pretrain_tokens"]
        ]
        none = [row["value"] for row in here if not row["pretrain_tokens"]]
        ways.append(_way(rate, True, points, none))
    known = [way for way in ways if way]
    if not ways[0] or len(known) < 2:
        return None
    ratios = [last[p.run]["value"] / p.value for p in counted if p.value > 0]
    return StepChoice(
        place=curve.place,
        metric=curve.metric,
        ways=tuple(known),
        runs=len(counted),
        better_later=sum(last[p.run]["value"] > p.value for p in counted),
        ratio=median(ratios) if ratios else 1.0,
    )


def _way(
    rate: float | None, at_last_step: bool, points: Sequence[Point], none: Sequence[float]
) -> Counted | None:
    """None for too few D_p."""
    means: dict[float, list[float]] = defaultdict(list)
    for point in points:
        means[point.x].append(point.value)
    if len(means) < FEWEST_SIZES:
        return None
    x = np.log10([point.x for point in points])
    y = np.array([point.value for point in points])
    centred = x - x.mean()
    squares = float(centred @ centred)
    slope = float(centred @ y) / squares
    left = y - y.mean() - slope * centred
    degrees = len(points) - 2
    half = student_half_width(math.sqrt(float(left @ left) / degrees / squares), degrees)
    return Counted(
        learning_rate=rate,
        at_last_step=at_last_step,
        not_pretrained=math.fsum(none) / len(none) if none else None,
        smallest=_mean_at(min(means), means),
        largest=_mean_at(max(means), means),
        slope=slope,
        low=slope - half,
        high=slope + half,
    )


def _mean_at(x: float, values: Mapping[float, Sequence[float]]) -> MeanAt:
    return MeanAt(x, math.fsum(values[x]) / len(values[x]))
