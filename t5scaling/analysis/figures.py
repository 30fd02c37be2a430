"""Figures: a metric against D_p with its law. PNG, SVG, and the numbers behind them as CSV.

One figure per (model, pretraining data, task, metric); its curves are the finetuning pools. The
same input gives the same bytes: no dates, no random ids, fonts drawn as paths.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.harvest import write_atomically
from t5scaling.analysis.intervals import LEVEL
from t5scaling.analysis.tables import size
from t5scaling.analysis.verdict import resolution_of

# Okabe and Ito's palette: told apart by colour-blind readers; markers differ for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "t5scaling",
    "path.simplify": False,
}
UNITS = {
    "cross_entropy": "test cross-entropy (nats per target token)",
    "bleu": "test BLEU",
    "chrf": "test chrF",
}


@dataclass(frozen=True)
class StudyFigure:
    """A drawn figure: its title in words, and its files without their ending."""

    title: str
    stem: Path
    curve_fits: tuple[CurveFit, ...]

    @property
    def svg(self) -> Path:
        return self.stem.with_name(self.stem.name + ".svg")


def draw_all(curve_fits: Iterable[CurveFit], folder: Path) -> list[StudyFigure]:
    """Draws every figure of a study into `folder` as .png, .svg and .csv."""
    groups: dict[tuple, list[CurveFit]] = {}
    for this in curve_fits:
        key = this.curve.key
        place = (key["model"], key["task"], key["pretrain_data"], this.curve.metric)
        groups.setdefault(place, []).append(this)
    figures = []
    for (model, task, data, metric), members in sorted(groups.items(), key=lambda g: _rank(g[0])):
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{metric}--{task}--{data}--{model}")
        figure = StudyFigure(
            f"{metric} of {task}, model {model}, pretrained on {data}",
            folder / name,
            tuple(members),
        )
        _save(_draw(figure), figure.stem)
        write_atomically(figure.stem.with_name(name + ".csv"), _numbers(members))
        figures.append(figure)
    return figures


def _rank(place: tuple) -> tuple:
    """Cross-entropy before scores: it is where laws show first."""
    model, task, data, metric = place
    return model, task, data, metric != "cross_entropy", metric


def _draw(figure: StudyFigure) -> Figure:
    members = figure.curve_fits
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=(6.4, 5.0), layout="constrained")
        axes = page.add_subplot()
        limits, starred = [], _some_at_edge(members)
        for i, this in enumerate(members):
            colour = COLOURS[i % len(COLOURS)]
            limits += _draw_curve(axes, this, colour, MARKERS[i % len(MARKERS)], starred)
        axes.set_xscale("log")
        _size_axis(axes, sorted({p.x for this in members for p in this.curve.points}))
        metric = members[0].curve.metric
        axes.set_ylim(*_value_range(min(limits), max(limits), resolution_of(metric)))
        axes.set_xlabel("pretraining size D_p (text tokens, log scale)")
        axes.set_ylabel(UNITS.get(metric, f"test {metric}"), fontsize=10)
        axes.set_title(_title(figure), fontsize=11, loc="left")
        _legend(page, members)
    return page


def _value_range(low: float, high: float, resolution: float) -> tuple[float, float]:
    """Limits of the y axis: never so narrow that differences without a meaning fill the page."""
    missing = max(0.0, 2 * resolution - (high - low))
    below = min(missing / 2, low) if low >= 0 else missing / 2
    low, high = low - below, high + missing - below
    margin = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return (0.0 if 0 <= low < margin else low - margin), high + margin


def _some_at_edge(members: Sequence[CurveFit]) -> bool:
    """Whether best rates at the edge of their grid set some points apart from others."""
    edges = {p.at_edge for this in members for p in this.curve.points}
    return len(edges) == 2


def _title(figure: StudyFigure) -> str:
    key = figure.curve_fits[0].curve.key
    return f"{key['task']}\npretrained on {key['pretrain_data']}, model {key['model']}"


def _draw_curve(axes, this: CurveFit, colour: str, marker: str, starred: bool) -> list[float]:
    """Draws one curve; returns the values that the y axis must show."""
    curve, fitted = this.curve, this.fitted_sizes
    shown = [p.value for p in curve.points]
    if this.fit:
        x = _grid(this)
        y, (low, high) = this.fit.predict(x), this.fit.band(x)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        inside = x <= this.fit.x.max() * (1 + 1e-9)
        axes.plot(x[inside], y[inside], color=colour)
        axes.plot(x[~inside], y[~inside], color=colour, linestyle=(0, (4, 2)))
        shown += y.tolist()
    for p in curve.points:
        held_out = bool(fitted) and p.x not in fitted
        axes.plot(
            p.x, p.value, marker=marker, color=colour, markersize=8, linestyle="none",
            markerfacecolor="white" if held_out else colour, markeredgewidth=1.8,
        )  # fmt: skip
    for x in sorted({p.x for p in curve.points if p.at_edge and starred}):
        top = max(p.value for p in curve.points if p.x == x)
        axes.annotate("*", (x, top), (0, 5), textcoords="offset points", ha="center", fontsize=14)
    if curve.baseline_value is not None:
        axes.axhline(curve.baseline_value, color=colour, linestyle=(0, (1, 1.5)), linewidth=1.6)
        shown.append(curve.baseline_value)
    return [value for value in shown if np.isfinite(value)]


def _grid(this: CurveFit) -> np.ndarray:
    """200 sizes over all points of the curve; the last fitted size is one of them."""
    sizes = [p.x for p in this.curve.points]
    ends = np.geomspace(min(sizes), max(sizes), 200)
    return np.unique(np.append(ends, this.fit.x.max()))


def _size_axis(axes, sizes: Sequence[float]) -> None:
    """Labels the measured sizes themselves, or powers of ten if there are many."""
    if 1 < len(sizes) <= 7:
        axes.set_xticks(sizes)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_size(value)))
    axes.set_xlim(min(sizes) / 1.15, max(sizes) * 1.15)


def short_size(value: float) -> str:
    """78,336 -> 78k; 1,200,000 -> 1.2M."""
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * step:
            digits = f"{value / step:.2g}" if value < 10 * step else f"{value / step:.0f}"
            return digits + unit
    return size(value)


def _legend(page: Figure, members: Sequence[CurveFit]) -> None:
    handles = []
    if len(members) > 1:
        for i, this in enumerate(members):
            examples = this.curve.key["finetune_examples"]
            handles.append(
                Line2D([], [], color=COLOURS[i % 6], marker=MARKERS[i % 6], linestyle="none",
                       markersize=8, label=f"pool of {examples:,}")
            )  # fmt: skip
    grey = "#444444" if len(members) > 1 else COLOURS[0]
    fits = [this.fit for this in members if this.fit]
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
        handles.append(Line2D([], [], color=grey, label=members[0].law.title))
        if any(fit.held_out for fit in fits):
            handles.append(
                Line2D([], [], color=grey, linestyle=(0, (4, 2)), label="its extrapolation")
            )
        handles.append(Patch(color=grey, alpha=0.13, linewidth=0, label=f"{LEVEL:.0%} interval"))
    if any(this.curve.baseline for this in members):
        handles.append(Line2D([], [], color=grey, linestyle=(0, (1, 1.5)), label="not pretrained"))
    if _some_at_edge(members):
        handles.append(
            Line2D([], [], color="black", marker="$*$", linestyle="none",
                   label="rate at grid's edge")
        )  # fmt: skip
    page.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=10, columnspacing=1.4
    )


def _save(page: Figure, stem: Path) -> None:
    with matplotlib.rc_context(STYLE):
        for ending, options in (
            ("png", {"dpi": 160, "metadata": {"Software": None}}),
            ("svg", {"metadata": {"Date": None, "Creator": None}}),
        ):
            buffer = io.BytesIO()
            page.savefig(buffer, format=ending, **options)
            write_atomically(stem.with_name(f"{stem.name}.{ending}"), buffer.getvalue())


def _numbers(members: Sequence[CurveFit]) -> bytes:
    """Rows (finetune_examples, kind, x, value, low, high): measured points, baseline, law."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["finetune_examples", "kind", "pretrain_tokens", "value", "low", "high"])
    for this in members:
        pool, fitted = this.curve.key["finetune_examples"], this.fitted_sizes
        for p in this.curve.points:
            kind = (
                "held out" if fitted and p.x not in fitted else "fitted" if fitted else "measured"
            )
            table.writerow([pool, kind, p.x, repr(p.value), "", ""])
        for p in this.curve.baseline:
            table.writerow([pool, "not pretrained", 0, repr(p.value), "", ""])
        if this.fit:
            x = _grid(this)
            low, high = this.fit.band(x)
            for row in zip(x, this.fit.predict(x), low, high, strict=True):
                table.writerow([pool, "law", *(f"{v:.10g}" for v in row)])
    return text.getvalue().encode()
