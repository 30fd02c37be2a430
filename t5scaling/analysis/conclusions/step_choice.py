"""Whether what a score says of pretraining depends on which step and learning rate are counted.

Scores count at the last step of all runs, cross-entropy where validation has the lowest
(`results.curves`). Here each score's curve stands beside itself at every learning rate, and at the
steps of cross-entropy: where that turns before the score does, as in small finetuning pools, these
come earlier the more was pretrained, and the score falls with D_p because less was finetuned.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.fitting.significance import student_half_width
from t5scaling.analysis.metrics import LOSS
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
    step where validation cross-entropy is lowest. not_pretrained: its mean without pretraining,
    None if unknown. smallest, largest: its means at the ends of D_p. slope: what a tenfold D_p adds
    to the score, by least squares over all points; low, high: its 90 % interval, by Student's t.
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
    """A score's curve counted in several ways: first as everywhere else, last at the steps and
    rates of cross-entropy.

    runs: those of the cross-entropy's curve. better_later: those that score higher at their last
    step, and ratio: the median of how many times as high (1 where no score is positive).
    """

    place: Place
    metric: str
    ways: tuple[Counted, ...]
    runs: int
    better_later: int
    ratio: float


def choices_of_step(
    curve_fits: Sequence[CurveFit], rows: Sequence[Mapping[str, Any]], scores: Collection[str]
) -> list[StepChoice]:
    """Of these scores, where runs were evaluated at several steps and at FEWEST_SIZES or more
    D_p, and cross-entropy does not count at the last step everywhere."""
    losses = {one.curve.place: one.curve for one in curve_fits if one.curve.metric == LOSS}
    values: dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        values[row["metric"], row["split"]][row["run"], row["steps"]] = row
    found = []
    for curve in (one.curve for one in curve_fits if one.curve.metric in scores):
        if curve.place in losses:
            own = values[curve.metric, curve.facts.get("split", "test")]
            choice = _choice(curve, losses[curve.place], own)
            if choice:
                found.append(choice)
    return found


def _choice(
    curve: Curve, loss: Curve, rows: Mapping[tuple[str, int], Mapping[str, Any]]
) -> StepChoice | None:
    """`rows`: of the curve's metric and split, by run and step."""
    place = curve.place
    last: dict[str, Mapping[str, Any]] = {}
    for (run, step), row in rows.items():
        of_curve = (row["model"], row["task"], row["finetune_examples"]) == (
            place.model, place.task, place.pool
        ) and (not row["pretrain_tokens"] or row["pretrain_data"] == place.data)  # fmt: skip
        later = run not in last or step > last[run]["steps"]
        if of_curve and later and math.isfinite(row["value"]):
            last[run] = row
    pairs = [
        (rows[point.run, point.step]["value"], last[point.run]["value"])
        for point in loss.points
        if point.step is not None and point.run in last and (point.run, point.step) in rows
    ]
    if all(point.run in last and point.step == last[point.run]["steps"] for point in loss.points):
        return None
    ways = [_way(None, True, curve.points, [p.value for p in curve.baseline])]
    for rate in sorted({r["learning_rate"] for r in last.values() if r["learning_rate"]}):
        here = [row for row in last.values() if row["learning_rate"] == rate]
        ways.append(_way(rate, True, *_points(here)))
    early = [
        rows[point.run, point.step]
        for point in (*loss.baseline, *loss.points)
        if point.step is not None and (point.run, point.step) in rows
    ]
    ways.append(_way(None, False, *_points(early)))
    known = [way for way in ways if way]
    if not ways[0] or not ways[-1]:
        return None
    ratios = [late / soon for soon, late in pairs if soon > 0]
    return StepChoice(
        place=place,
        metric=curve.metric,
        ways=tuple(known),
        runs=len(pairs),
        better_later=sum(late > soon for soon, late in pairs),
        ratio=median(ratios) if ratios else 1.0,
    )


def _points(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Point], list[float]]:
    """The points with pretraining, and the values without."""
    points = [
        Point(x=row["pretrain_tokens"], value=row["value"])
        for row in rows
        if row["pretrain_tokens"]
    ]
    return points, [row["value"] for row in rows if not row["pretrain_tokens"]]


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
