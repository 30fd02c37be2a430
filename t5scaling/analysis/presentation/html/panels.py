"""The main figure: a metric against D_p, a small panel for each task and metric, in HTML and SVG.

Panels keep their text at one size whatever their width: SVG draws lines and points in percent of
the panel, HTML sets the words around them. A line joins the means over seeds of one pretraining
data set; a point held out from its law is hollow, and a dashed line shows what the law said there.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import means
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.metrics import BLEU, CHRF, LOSS, metric_name, resolution_of
from t5scaling.analysis.presentation.style import TEXT_COLOURS, role_colour
from t5scaling.analysis.results.roles import OTHER, ROLES
from t5scaling.analysis.wording import number, short_size, size

BASELINE = "#5A5A5A"
LABEL_GAP = 15.0  # percent of the panel's height that a line of text takes on a phone
WORDS = {LOSS: "cross-entropy"}


def main_figure(selection: Selection) -> str:
    """One panel per task for cross-entropy and one for its score, in its fullest pool."""
    return _key(selection) + _grid(selection, selection.pools)


def other_pools(selection: Selection) -> list[tuple[str, str]]:
    """(pools in words, the same figure) of the other pools."""
    return [
        (selection.pool_words(pools), _grid(selection, pools)) for pools in selection.other_pools()
    ]


def _grid(selection: Selection, pools: Mapping[str, int]) -> str:
    panels, columns = [], 0
    for task, pool in pools.items():
        pair = [
            _panel(selection, task, selection.of(task, metric, pool))
            for metric in (LOSS, selection.score(task, pool))
        ]
        if any(pair):
            columns += 1
            panels += [one or '<div class="panel none">not measured</div>' for one in pair]
    # Tasks stand side by side, their two metrics above each other; one task alone, or many, row by
    # row.
    rows = " rows" if columns == 1 or columns > 4 else ""
    style = f"--columns:{columns if 1 < columns <= 4 else 2 if columns == 1 else 4}"
    return f'<div class="panels{rows}" style="{style}">{"".join(panels)}</div>'


def _key(selection: Selection) -> str:
    """The roles by their colours, and what the lines mean."""
    shown: dict[str, str] = {}
    for task in selection.tasks:
        for this in selection.of(task, LOSS) + selection.of(task, selection.score(task)):
            kind = selection.roles.kind(this.curve.place)
            if kind != OTHER:
                shown.setdefault(kind, role_colour(selection.roles, this.curve.place))
    items = [
        f'<span style="color:{TEXT_COLOURS.get(shown[kind], shown[kind])}"><i style="background:'
        f'{shown[kind]}"></i>{escape(kind)}</span>'
        for kind in ROLES
        if kind in shown
    ]
    items.append(f'<span style="color:{BASELINE}"><b>- -</b> not pretrained</span>')
    if any(this.fit and this.fit.held_out for this in selection.curve_fits):
        items.append('<span><i class="hollow"></i>held out from the law</span>')
    return f'<p class="key">{"".join(items)}</p>'


def _panel(selection: Selection, task: str, curves: Sequence[CurveFit]) -> str:
    """Empty if there is nothing to draw."""
    curves = [this for this in curves if this.curve.points]
    if not curves:
        return ""
    metric = curves[0].curve.metric
    courses = {i: means(this.curve) for i, this in enumerate(curves)}
    base = next((this.curve.baseline_value for this in curves if this.curve.baseline), None)
    sizes = [x for course in courses.values() for x in course if x]
    shown = [v for course in courses.values() for x, v in course.items() if x]
    shown += [base] if base is not None else []
    axis = _Axis(min(sizes), max(sizes), *_range(shown, metric))
    marks, labels, courses_said = [], [], []
    if base is not None:
        y = axis.y(base)
        marks.append(
            f'<line x1="0" x2="100%" y1="{y:.1f}%" y2="{y:.1f}%" stroke="{BASELINE}" '
            f'stroke-width="1.5" stroke-dasharray="5 4"><title>not pretrained: {number(base)}'
            "</title></line>"
        )
        labels.append((y, "none", BASELINE))
    lines, points = [], []
    for i, this in enumerate(curves):
        colour, course = role_colour(selection.roles, this.curve.place), courses[i]
        course = {x: v for x, v in course.items() if x}
        lines.append(_polyline([(axis.x(x), axis.y(v)) for x, v in course.items()], colour))
        lines.append(_law(this, axis, colour))
        points += [_point(selection, this, x, v, axis, colour) for x, v in course.items()]
        last = list(course.values())[-1]
        name = selection.roles.role(this.curve.place).label
        labels.append((axis.y(last), name, TEXT_COLOURS.get(colour, colour)))
        courses_said.append(
            f"{selection.roles.words(this.curve.place)} from "
            f"{number(next(iter(course.values())))} at {size(min(course))} to {number(last)} at "
            f"{size(max(course))}"
        )
    title, metric_words = selection.roles.pairs.get(task, task), WORDS.get(metric)
    metric_words = metric_words or metric_name(metric)
    if metric == CHRF and selection.of(task, BLEU):
        metric_words += " (BLEU is noise)"
    alt = f"{title}, test {metric_words} against D_p: {'; '.join(courses_said)}"
    alt += f"; not pretrained {number(base)}" if base is not None else ""
    ticks = "".join(
        f'<span class="y" style="top:{axis.y(v):.1f}%">{number(v)}</span>' for v in axis.ticks
    )
    grid = "".join(
        f'<line x1="0" x2="100%" y1="{axis.y(v):.1f}%" y2="{axis.y(v):.1f}%" stroke="#E3E3E3"/>'
        for v in axis.ticks
    )
    ends = "".join(
        f'<span class="end" style="top:{top:.1f}%;color:{colour}">{escape(name)}</span>'
        for top, name, colour in _apart(labels)
    )
    xs = "".join(
        f'<span class="x" style="left:{axis.x(x):.1f}%">{short_size(x)}</span>'
        for x in sorted({min(sizes), max(sizes)})
    )
    return (
        f'<figure class="panel" role="img" aria-label="{escape(alt)}">'
        f"<figcaption><b>{escape(title)}</b> {escape(metric_words)}</figcaption>"
        f'<div class="plot">{ticks}{ends}{xs}<svg width="100%" height="100%">{grid}'
        f"{''.join(marks)}"
        '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f"{''.join(lines)}</svg>{''.join(points)}</svg></div></figure>"
    )


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


def _polyline(places: Sequence[tuple[float, float]], colour: str, dash: str = "") -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{dash}" stroke-width="1.2"' if dash else ' stroke-width="1.7"'
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}"{dashes} '
        'vector-effect="non-scaling-stroke"/>'
    )


def _law(this: CurveFit, axis: _Axis, colour: str) -> str:
    """What the law said of the sizes that it was not shown; no line where none should be read."""
    if not this.fit or not this.fit.held_out or this.verdict.has_no_law:
        return ""
    x = np.geomspace(this.fit.x.max(), max(p.x for p in this.fit.held_out), 9)
    values = this.fit.predict(x)
    places = [
        (axis.x(a), min(max(axis.y(v), -200.0), 300.0))
        for a, v in zip(x, values, strict=True)
        if math.isfinite(v)
    ]
    return _polyline(places, colour, "3 3")


def _point(selection: Selection, this: CurveFit, x, value, axis: _Axis, colour: str) -> str:
    held_out = bool(this.fitted_sizes) and x not in this.fitted_sizes
    seeds = [p.value for p in this.curve.points if p.x == x]
    said = f"{selection.roles.words(this.curve.place)}, D_p = {size(x)}: {number(value)}"
    if len(seeds) > 1:
        said += f" ({len(seeds)} seeds: {', '.join(number(v) for v in seeds)})"
    said += ", held out from the law" if held_out else ""
    fill = "#fff" if held_out else colour
    return (
        f'<circle cx="{axis.x(x):.1f}%" cy="{axis.y(value):.1f}%" r="3" fill="{fill}" '
        f'stroke="{colour}" stroke-width="1.6"><title>{escape(said)}</title></circle>'
    )


def _apart(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The labels moved up and down until they do not lie over each other."""
    placed = sorted(labels)
    gap = min(LABEL_GAP, 108.0 / max(len(placed), 1))
    tops = [top for top, _, _ in placed]
    for i in range(1, len(tops)):
        tops[i] = max(tops[i], tops[i - 1] + gap)
    lowest = 97.0  # below stands the size of the last point
    for i in reversed(range(len(tops))):
        tops[i] = min(tops[i], lowest)
        lowest = tops[i] - gap
    return [(top, name, colour) for top, (_, name, colour) in zip(tops, placed, strict=True)]
