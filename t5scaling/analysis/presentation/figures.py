"""Figures: a metric against D_p with its law. PNG, SVG, and the numbers behind them as CSV.

The curves of one figure differ in one thing: the finetuning pool (Isik et al., arXiv 2402.04177,
figures 2, 3, 6 and 7), the pretraining data (figures 1 and 4) or the model (figure 9). The same
input gives the same bytes: no dates, no random ids, fonts drawn as paths.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from t5scaling import storage
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import metric_of, resolution_of
from t5scaling.analysis.presentation.style import (
    STYLE,
    look,
    save,
    save_rows,
    size_axis,
    stem_of,
)
from t5scaling.analysis.results.places import Place

CURVES = 36  # of one figure; more are drawn in several
# The y axis follows a law that leaves the points by this share of their range, no further.
RUNAWAY = 0.25
CROWDED = 9  # curves; of more, the bands would cover each other and the points
MANY_POINTS = 30  # of one curve; more have smaller markers
LEGEND_COLUMNS, LEGEND_ROWS = 3, 5  # rows that the page has room for
WORDS = {
    "finetune_examples": "finetuning pool",
    "pretrain_data": "pretraining data",
    "model": "model",
}


@dataclass(frozen=True)
class StudyFigure:
    """A drawn figure: its title in words, and its files without their ending. by: the column in
    which its curves differ. curve_fits: what it shows; empty for figures of another kind."""

    title: str
    stem: Path
    curve_fits: tuple[CurveFit, ...] = ()
    by: str = "finetune_examples"
    caption: str = ""

    @property
    def svg(self) -> Path:
        return self.stem.with_name(self.stem.name + ".svg")


def draw_all(
    curve_fits: Iterable[CurveFit], folder: Path, colour_of: Callable[[Place], str] | None = None
) -> list[StudyFigure]:
    """Draws every figure of metrics against D_p into `folder` as .png, .svg and .csv.

    colour_of: of a place by its pretraining data; None: colours in the order of the curves.
    """
    figures = list(_figures(list(curve_fits), folder))
    for figure in figures:
        save(_draw(figure, colour_of), figure.stem)
        save_rows(_numbers(figure), figure.stem)
    return figures


def _figures(curve_fits: Sequence[CurveFit], folder: Path) -> Iterator[StudyFigure]:
    """Those that compare something; and of a curve that none of them shows, one of its own."""
    taken: dict[str, str] = {}
    in_study = [c for c in curve_fits if "finetune_examples" in c.curve.place.key]
    by = list(WORDS) if in_study else [next(iter(curve_fits[0].curve.place.key), "")]
    for column in by:
        groups: dict[tuple, list[CurveFit]] = {}
        for curve_fit in in_study or curve_fits:
            key = curve_fit.curve.place.key
            names = ("model", "task", "pretrain_data", "finetune_examples") if in_study else key
            place = tuple(key[name] for name in names if name != column)
            groups.setdefault((*place, curve_fit.curve.metric), []).append(curve_fit)
        for place, members in sorted(groups.items(), key=lambda group: _rank(group[0])):
            if len(members) < 2 and (column != by[0] or _compared(members[0], curve_fits)):
                continue
            *rest, metric = place
            if column == "finetune_examples":
                model, task, data = rest
                parts = (metric, task, data, model)
                title = f"{metric} of {task}, model {model}, pretrained on {data}"
            else:
                parts = (metric, *(["by", column] if column else []), *map(str, rest))
                title = f"{metric} of {', '.join(map(str, rest)) or 'the table'}"
                title += f", by {WORDS.get(column, column)}" if column else ""
            for number, start in enumerate(range(0, len(members), CURVES), 1):
                part = tuple(members[start : start + CURVES])
                whole = len(part) == len(members)
                yield StudyFigure(
                    title if whole else f"{title}, part {number}",
                    stem_of(folder, parts if whole else (*parts, f"part{number}"), taken),
                    part, column,
                )  # fmt: skip


def _compared(curve_fit: CurveFit, others: Sequence[CurveFit]) -> bool:
    """Whether a figure by pretraining data or by model shows a study's curve."""
    key = {**curve_fit.curve.place.key, "metric": curve_fit.curve.metric}
    if "finetune_examples" not in key:
        return False
    for other in others:
        theirs = {**other.curve.place.key, "metric": other.curve.metric}
        apart = {name for name in key if key[name] != theirs.get(name)}
        if apart in ({"pretrain_data"}, {"model"}):
            return True
    return False


def _rank(place: tuple) -> tuple:
    """Cross-entropy before scores: it is where laws show first."""
    *rest, metric = place
    return *map(str, rest), metric != "cross_entropy", metric


def _looks(figure: StudyFigure, colour_of: Callable[[Place], str] | None) -> list[tuple[str, str]]:
    """(colour, marker) of each curve."""
    looks = look(len(figure.curve_fits))
    if not colour_of or figure.by != "pretrain_data":
        return looks
    return [
        (colour_of(curve_fit.curve.place), marker)
        for curve_fit, (_, marker) in zip(figure.curve_fits, looks, strict=True)
    ]


def _draw(figure: StudyFigure, colour_of: Callable[[Place], str] | None = None) -> Figure:
    members, looks = figure.curve_fits, _looks(figure, colour_of)
    with matplotlib.rc_context(STYLE):
        rows = math.ceil((len(members) + LEGEND_COLUMNS) / LEGEND_COLUMNS)
        height = 5.0 + 0.22 * max(0, rows - LEGEND_ROWS)
        page = Figure(figsize=(6.4, height), layout="constrained")
        axes = page.add_subplot()
        limits, starred = [], _some_at_edge(members)
        for curve_fit, (colour, marker) in zip(members, looks, strict=True):
            limits += _draw_curve(
                axes, curve_fit, colour, marker, starred=starred, crowded=len(members) > CROWDED
            )
        axes.set_xscale("log")
        size_axis(axes, sorted({p.x for curve_fit in members for p in curve_fit.curve.points}))
        metric = members[0].curve.metric
        axes.set_ylim(*_value_range(min(limits), max(limits), resolution_of(metric)))
        axes.set_xlabel(_x_label(members[0]))
        axes.set_ylabel(metric_of(metric).axis, fontsize=10)
        axes.set_title(_title(figure), fontsize=11, loc="left")
        _legend(page, figure, looks)
    return page


def _value_range(low: float, high: float, resolution: float) -> tuple[float, float]:
    """Limits of the y axis: never so narrow that differences without a meaning fill the page."""
    missing = max(0.0, 2 * resolution - (high - low))
    below = min(missing / 2, low) if low >= 0 else missing / 2
    low, high = low - below, high + missing - below
    margin = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return (0.0 if 0 <= low < margin else low - margin), high + margin


def _some_at_edge(members: Sequence[CurveFit]) -> bool:
    """Whether best rates at an edge of those tried set a few points apart: stars on most of them
    would hide the curves, and the report counts them."""
    edges = [p.at_edge for curve_fit in members for p in curve_fit.curve.points]
    return 0 < sum(edges) <= len(edges) / 2


def _x_label(curve_fit: CurveFit) -> str:
    if curve_fit.curve.x_name == "pretrain_tokens":
        return f"pretraining size D_p ({curve_fit.curve.unit}, log scale)"
    return f"{curve_fit.curve.x_name} (log scale)"


def _title(figure: StudyFigure) -> str:
    key = figure.curve_fits[0].curve.place.key
    if "task" not in key or "finetune_examples" not in key:
        return (
            ""
            if len(key) < 2
            else ", ".join(f"{name} {value}" for name, value in key.items() if name != figure.by)
        )
    parts = {
        "pretrain_data": f"pretrained on {key['pretrain_data']}",
        "model": f"model {key['model']}",
        "finetune_examples": f"pool of {key['finetune_examples']:,}",
    }
    alone = len(figure.curve_fits) == 1  # nothing else says where it was measured
    shown = (text for name, text in parts.items() if alone or name != figure.by)
    return f"{key['task']}\n" + ", ".join(shown)


def _label(curve_fit: CurveFit, by: str) -> str:
    value = curve_fit.curve.place.key[by]
    return f"pool of {value:,}" if by == "finetune_examples" else str(value)


def print_json(
    figures: Sequence[StudyFigure], folder: storage.AnyPath, warnings: Sequence[str]
) -> None:
    """What `figures --json` prints of figures that were drawn into a folder."""
    listed = [
        {
            "title": figure.title,
            "caption": figure.caption,
            **{kind: f"{folder / figure.stem.name}.{kind}" for kind in ("png", "svg", "csv")},
        }
        for figure in figures
    ]
    print(json.dumps({"figures": listed, "warnings": warnings}, indent=1, ensure_ascii=False))


def _draw_curve(
    axes: Axes, curve_fit: CurveFit, colour: str, marker: str, *, starred: bool, crowded: bool
) -> list[float]:
    """Draws one curve, without its band if the figure is crowded; returns the values that the y
    axis must show: the measured ones, and the law's as far as it stays near them."""
    curve = curve_fit.curve
    shown = [p.value for p in curve.points]
    if curve.baseline_value is not None:
        shown.append(curve.baseline_value)
    low_end, high_end = min(shown), max(shown)
    beyond = RUNAWAY * (high_end - low_end)
    if curve_fit.fit:
        x = _grid(curve_fit, curve_fit.fit)
        y, (low, high) = curve_fit.predict(x), curve_fit.band(x)
        if not crowded:
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        inside = x <= curve_fit.fit.x.max() * (1 + 1e-9)
        axes.plot(x[inside], y[inside], color=colour)
        axes.plot(x[~inside], y[~inside], color=colour, linestyle=(0, (4, 2)))
        shown += np.clip(y[np.isfinite(y)], low_end - beyond, high_end + beyond).tolist()
    size = 4 if crowded or len(curve.points) > MANY_POINTS else 8
    for held_out in (False, True):
        points = [p for p in curve.points if curve_fit.held_out(p) == held_out]
        axes.plot(
            [p.x for p in points], [p.value for p in points], marker=marker, color=colour,
            markersize=size, linestyle="none", markerfacecolor="white" if held_out else colour,
            markeredgewidth=1.8 if size == 8 else 1.0,
        )  # fmt: skip
    for x in sorted({p.x for p in curve.points if p.at_edge and starred}):
        top = max(p.value for p in curve.points if p.x == x)
        axes.annotate("*", (x, top), (0, 5), textcoords="offset points", ha="center", fontsize=14)
    if curve.baseline_value is not None:
        axes.axhline(curve.baseline_value, color=colour, linestyle=(0, (1, 1.5)), linewidth=1.6)
    return [value for value in shown if np.isfinite(value)]


def _grid(curve_fit: CurveFit, fit: Fit) -> np.ndarray:
    """80 sizes over all points of the curve; the last fitted size is one of them."""
    sizes = [p.x for p in curve_fit.curve.points]
    ends = np.geomspace(min(sizes), max(sizes), 80)
    return np.unique(np.append(ends, fit.x.max()))


def _legend(page: Figure, figure: StudyFigure, looks: Sequence[tuple[str, str]]) -> None:
    members = figure.curve_fits
    handles: list[Artist] = []
    if len(members) > 1:
        for curve_fit, (colour, marker) in zip(members, looks, strict=True):
            handles.append(
                Line2D([], [], color=colour, marker=marker, linestyle="none",
                       markersize=8, label=_label(curve_fit, figure.by))
            )  # fmt: skip
    grey = "#444444" if len(members) > 1 else looks[0][0]
    fits = [curve_fit.fit for curve_fit in members if curve_fit.fit]
    handles.append(
        Line2D([], [], color=grey, marker="o", linestyle="none", markersize=8,
               label="fitted" if fits else "measured")
    )  # fmt: skip
    if any(fit.held_out for fit in fits):
        handles.append(
            Line2D([], [], color=grey, marker="o", linestyle="none", markersize=8,
                   markerfacecolor="white", markeredgewidth=1.8, label="held out")
        )  # fmt: skip
    if fits:
        laws = {curve_fit.law.title for curve_fit in members if curve_fit.fit}
        label = laws.pop() if len(laws) == 1 else "a law for each curve"
        handles.append(Line2D([], [], color=grey, label=label))
        if any(fit.held_out for fit in fits):
            handles.append(
                Line2D([], [], color=grey, linestyle=(0, (4, 2)), label="its extrapolation")
            )
        if len(members) <= CROWDED:
            handles.append(
                Patch(color=grey, alpha=0.13, linewidth=0, label=f"{LEVEL:.0%} interval")
            )
    if any(curve_fit.curve.baseline for curve_fit in members):
        handles.append(Line2D([], [], color=grey, linestyle=(0, (1, 1.5)), label="not pretrained"))
    if _some_at_edge(members):
        handles.append(
            Line2D([], [], color="black", marker="*", linestyle="none",
                   label="rate at grid's edge")
        )  # fmt: skip
    page.legend(
        handles=handles,
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        fontsize=10,
        columnspacing=1.4,
    )


def _numbers(figure: StudyFigure) -> Iterator[Sequence]:
    """Rows (what sets the curve apart, kind, x, value, low, high): points, baseline, law."""
    members = figure.curve_fits
    yield [figure.by or "curve", "kind", members[0].curve.x_name, "value", "low", "high"]
    for curve_fit in members:
        name = curve_fit.curve.place.key[figure.by] if figure.by else curve_fit.curve.metric
        seen = "fitted" if curve_fit.fit else "measured"
        for p in curve_fit.curve.points:
            kind = "held out" if curve_fit.held_out(p) else seen
            yield [name, kind, p.x, repr(p.value), "", ""]
        for p in curve_fit.curve.baseline:
            yield [name, "not pretrained", 0, repr(p.value), "", ""]
        if curve_fit.fit:
            x = _grid(curve_fit, curve_fit.fit)
            low, high = curve_fit.band(x)
            for row in zip(x, curve_fit.predict(x), low, high, strict=True):
                yield [name, "law", *(f"{v:.10g}" for v in row)]
