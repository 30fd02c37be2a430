"""The main figure: a metric against D_p, a small panel for each task and metric, in HTML and SVG.

Panels keep their text at one size whatever their width: SVG draws lines and points in percent of
the panel, HTML sets the words around them. On a phone, where six panels share 390 pixels, a figure
by matplotlib shrinks its text with itself until nobody can read it: that is why these are drawn
here and not there. A line joins the means over seeds of one pretraining data set; a point held out
from its law is hollow, and a dashed line shows what the law said there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import means
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.metrics import BLEU, CHRF, LOSS, metric_name, resolution_of
from t5scaling.analysis.presentation.html.render import render
from t5scaling.analysis.presentation.style import TEXT_COLOURS, role_colour
from t5scaling.analysis.results.roles import OTHER, ROLES
from t5scaling.analysis.wording import number, short_size, size

BASELINE = "#5A5A5A"
LABEL_GAP = 15.0  # percent of the panel's height that a line of text takes on a phone
WORDS = {LOSS: "cross-entropy"}


def main_figure(selection: Selection) -> Markup:
    """One panel per task for cross-entropy and one for its score, in its fullest pool."""
    return _grid(selection, selection.pools, _key(selection))


def other_pools(selection: Selection) -> list[tuple[str, Markup]]:
    """(pools in words, the same figure) of the other pools."""
    return [
        (selection.pool_words(pools), _grid(selection, pools)) for pools in selection.other_pools()
    ]


def _grid(
    selection: Selection, pools: Mapping[str, int], key: dict[str, Any] | None = None
) -> Markup:
    panels, columns = [], 0
    for task, pool in pools.items():
        pair = [
            _panel(selection, task, selection.of(task, metric, pool))
            for metric in (LOSS, selection.score(task, pool))
        ]
        if any(pair):
            columns += 1
            panels += pair
    # Tasks stand side by side, their two metrics above each other; one task alone, or many, row by
    # row.
    return render(
        "panels.html",
        key=key,
        panels=panels,
        rows=columns == 1 or columns > 4,
        columns=columns if 1 < columns <= 4 else 2 if columns == 1 else 4,
    )


def _key(selection: Selection) -> dict[str, Any]:
    """The roles by their colours, and what the lines mean."""
    shown: dict[str, str] = {}
    for task in selection.tasks:
        for curve_fit in selection.of(task, LOSS) + selection.of(task, selection.score(task)):
            kind = selection.roles.kind(curve_fit.curve.place)
            if kind != OTHER:
                shown.setdefault(kind, role_colour(selection.roles, curve_fit.curve.place))
    return {
        "roles": [
            {"text": kind, "colour": shown[kind],
             "text_colour": TEXT_COLOURS.get(shown[kind], shown[kind])}
            for kind in ROLES
            if kind in shown
        ],
        "baseline_colour": BASELINE,
        "predicted": any(map(_has_prediction, selection.curve_fits)),
    }  # fmt: skip


def _panel(selection: Selection, task: str, curves: Sequence[CurveFit]) -> dict[str, Any] | None:
    """None if there is nothing to draw."""
    curves = [curve_fit for curve_fit in curves if curve_fit.curve.points]
    if not curves:
        return None
    metric = curves[0].curve.metric
    courses = {i: means(curve_fit.curve) for i, curve_fit in enumerate(curves)}
    base = next(
        (curve_fit.curve.baseline_value for curve_fit in curves if curve_fit.curve.baseline), None
    )
    sizes = [x for course in courses.values() for x in course if x]
    shown = [v for course in courses.values() for x, v in course.items() if x]
    shown += [base] if base is not None else []
    axis = _Axis(min(sizes), max(sizes), *_range(shown, metric))
    labels, lines, points, courses_said, baseline = [], [], [], [], None
    if base is not None:
        y = axis.y(base)
        text = f"not pretrained: {number(base)}"
        baseline = {"y": f"{y:.1f}", "colour": BASELINE, "text": text}
        labels.append((y, "none", BASELINE))
    for i, curve_fit in enumerate(curves):
        colour, course = role_colour(selection.roles, curve_fit.curve.place), courses[i]
        course = {x: v for x, v in course.items() if x}
        lines.append(_polyline([(axis.x(x), axis.y(v)) for x, v in course.items()], colour))
        points += [_point(selection, curve_fit, x, v, axis, colour) for x, v in course.items()]
        points += _prediction(curve_fit, axis, colour)
        last = list(course.values())[-1]
        name = selection.roles.role(curve_fit.curve.place).label
        labels.append((axis.y(last), name, TEXT_COLOURS.get(colour, colour)))
        courses_said.append(
            f"{selection.roles.words(curve_fit.curve.place)} from "
            f"{number(next(iter(course.values())))} at {size(min(course))} to {number(last)} at "
            f"{size(max(course))}"
        )
    title, metric_words = selection.roles.pairs.get(task, task), WORDS.get(metric)
    metric_words = metric_words or metric_name(metric)
    if metric == CHRF and selection.of(task, BLEU):
        metric_words += " (BLEU is noise)"
    alt = f"{title}, test {metric_words} against D_p: {'; '.join(courses_said)}"
    alt += f"; not pretrained {number(base)}" if base is not None else ""
    return {
        "title": title,
        "metric": metric_words,
        "alt": alt,
        "ticks": [{"y": f"{axis.y(v):.1f}", "text": number(v)} for v in axis.ticks],
        "ends": [
            {"y": f"{top:.1f}", "text": name, "colour": colour}
            for top, name, colour in _apart(labels)
        ],
        "sizes": [
            {"x": f"{axis.x(x):.1f}", "text": short_size(x)}
            for x in sorted({min(sizes), max(sizes)})
        ],
        "baseline": baseline,
        "lines": lines,
        "points": points,
    }


class _Axis:
    """From D_p and values to percent of the panel; y runs down."""

    def __init__(self, first: float, last: float, low: float, high: float):
        self._first, self._span = math.log(first), max(math.log(last / first), 1e-9)
        self._one = first == last
        self._low, self._high = low, high
        self.ticks = _ticks(low, high)

    def x(self, value: float) -> float:
        if self._one:
            return 50.0
        return 3 + 94 * (math.log(value) - self._first) / self._span

    def y(self, value: float) -> float:
        return 100 * (self._high - value) / (self._high - self._low)


def _range(values: Sequence[float], metric: str) -> tuple[float, float]:
    """Never so narrow that differences without a meaning fill the panel."""
    low, high = min(values), max(values)
    missing = max(0.0, 2 * resolution_of(metric) - (high - low))
    low, high = low - missing / 2, high + missing / 2
    margin = 0.07 * (high - low) or 0.07 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """2 to 4 round values between."""
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (5 * step, 2 * step, step, step / 2, step / 5, step / 10)
                if math.floor(high / s) - math.ceil(low / s) >= 1)  # fmt: skip
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _polyline(
    places: Sequence[tuple[float, float]], colour: str, dashed: bool = False
) -> dict[str, Any]:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return {"points": points, "colour": colour, "dashed": dashed}


def _has_prediction(curve_fit: CurveFit) -> bool:
    return bool(curve_fit.check.predictions) and not curve_fit.verdict.has_no_law


def _prediction(curve_fit: CurveFit, axis: _Axis, colour: str) -> list[dict[str, str]]:
    """What the law says of the largest size from those before it; nothing where it has no meaning,
    or lies outside the panel."""
    if not _has_prediction(curve_fit):
        return []
    last = curve_fit.check.farthest
    y = axis.y(last.predicted)
    if not 0 <= y <= 100:
        return []
    text = (
        f"predicted at D_p = {size(last.x)} from {last.k} smaller sizes: {number(last.predicted)}"
    )
    return [{"x": f"{axis.x(last.x):.1f}", "y": f"{y:.1f}", "colour": colour, "fill": "#fff",
             "text": text}]  # fmt: skip


def _point(
    selection: Selection, curve_fit: CurveFit, x: float, value: float, axis: _Axis, colour: str
) -> dict[str, str]:
    seeds = [p.value for p in curve_fit.curve.points if p.x == x]
    text = f"{selection.roles.words(curve_fit.curve.place)}, D_p = {size(x)}: {number(value)}"
    if len(seeds) > 1:
        text += f" ({len(seeds)} seeds: {', '.join(number(v) for v in seeds)})"
    return {
        "x": f"{axis.x(x):.1f}",
        "y": f"{axis.y(value):.1f}",
        "colour": colour,
        "fill": colour,
        "text": text,
    }


def _apart(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The labels moved up and down until they do not lie over each other."""
    placed = sorted(labels)
    gap = min(LABEL_GAP, 108.0 / max(len(placed), 1))
    tops = [top for top, _, _ in placed]
    for i in range(1, len(tops)):
        tops[i] = max(tops[i], tops[i - 1] + gap)
    lowest = 97.0  # below it is the size of the last point
    for i in reversed(range(len(tops))):
        tops[i] = min(tops[i], lowest)
        lowest = tops[i] - gap
    return [(top, name, colour) for top, (_, name, colour) in zip(tops, placed, strict=True)]
