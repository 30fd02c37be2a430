"""The figure of a law of several sources: the metric against all tokens, a line for a mixture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.laws.several_sources import ONE_SIZE
from t5scaling.analysis.metrics import metric_of
from t5scaling.analysis.presentation.figures import CROWDED, LEGEND_COLUMNS, StudyFigure
from t5scaling.analysis.presentation.style import STYLE, look, save, save_rows, size_axis, stem_of

MIXTURES = 36  # with a look and a line of their own; of more there are points alone, in grey
LONG_NAME = 20  # characters, of which three columns are as wide as the page
GREY = "#777777"


def draw_sources(curve_fit: CurveFit, folder: Path, taken: dict[str, str]) -> StudyFigure | None:
    """Draws it as .png, .svg and .csv; None if the law was not fitted."""
    fit, curve = curve_fit.fit, curve_fit.curve
    if fit is None or not curve.sources:
        return None
    where = list(map(str, curve.place.key.values()))
    metric = metric_of(curve.metric)
    groups = _mixtures(fit, len(curve.sources))
    one_size = np.ptp(np.log(_totals(fit, curve.sources))) < np.log(ONE_SIZE)
    lines = not one_size and len(groups) <= MIXTURES
    with matplotlib.rc_context(STYLE):
        named = [_name(shares, curve.sources) for shares in groups]
        named = named if len(named) <= MIXTURES else [""]
        longest = max(map(len, named))
        columns = LEGEND_COLUMNS if longest <= LONG_NAME else LEGEND_COLUMNS - 1
        rows = -(-(len(named) + 3) // columns)
        page = Figure(figsize=(6.4, 4.6 + 0.22 * rows), layout="constrained")
        axes = page.add_subplot()
        handles = (_by_total if lines else _by_measured)(axes, fit, curve.sources, groups)
        axes.set_ylabel(metric.axis + ("" if lines else ", by the law"), fontsize=10)
        axes.set_title("\n".join([curve_fit.law.formula, *where]), fontsize=10, loc="left")
        page.legend(
            handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4,
            fontsize=10 if longest <= 1.5 * LONG_NAME else 8,
        )  # fmt: skip
    stem = stem_of(folder, ["sources", curve.metric, *where], taken)
    save(page, stem)
    save_rows(_numbers(fit, curve.sources, groups, lines), stem)
    title = " · ".join([metric.name, *where])
    return StudyFigure(f"Law of several sources of {title}", stem, (), "", fit.law.formula)


def _totals(fit: Fit, sources: Sequence[str]) -> np.ndarray:
    return fit.x[: len(sources)].sum(0)


def _mixtures(fit: Fit, count: int) -> dict[tuple[float, ...], np.ndarray]:
    """Shares in whole per cent -> which points have them, that with most of the target first."""
    shares = np.round(100 * fit.x[:count] / fit.x[:count].sum(0)).T
    return {row: (shares == row).all(1) for row in sorted(set(map(tuple, shares)), reverse=True)}


def _name(shares: Sequence[float], sources: Sequence[str]) -> str:
    parts = [f"{share:.0f} % {name}" for share, name in zip(shares, sources, strict=True) if share]
    return parts[0].removeprefix("100 % ") if len(parts) == 1 else ", ".join(parts)


def _looks(groups: dict) -> list[tuple[str, str]]:
    return look(len(groups)) if len(groups) <= MIXTURES else [(GREY, "o")] * len(groups)


def _line(fit: Fit, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Totals, and the places on a mixture's line: its mean shares, and of other rows of x (unique
    tokens) the largest."""
    count = len(fit.law.sources)
    here, totals = fit.x[:, members], fit.x[:count].sum(0)
    grid = np.geomspace(totals.min(), totals.max(), 60)
    shares = (here[:count] / here[:count].sum(0)).mean(1)
    rest = np.repeat(here[count:].max(1, keepdims=True), len(grid), axis=1)
    return grid, np.concatenate([shares[:, None] * grid, rest])


def _by_total(
    axes: Axes, fit: Fit, sources: Sequence[str], groups: dict[tuple[float, ...], np.ndarray]
) -> list[Artist]:
    totals, handles = _totals(fit, sources), []
    for (shares, members), (colour, marker) in zip(groups.items(), _looks(groups), strict=True):
        axes.plot(totals[members], fit.y[members], marker, color=colour, markersize=7)
        grid, places = _line(fit, members)
        axes.plot(grid, fit.predict(places), color=colour)
        if len(groups) <= CROWDED:
            axes.fill_between(grid, *fit.band(places), color=colour, alpha=0.13, linewidth=0)
        handles.append(
            Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=7,
                   label=_name(shares, sources))
        )  # fmt: skip
    axes.set_xscale("log")
    size_axis(axes, sorted(set(totals.tolist())))
    axes.set_xlabel(f"{' + '.join(sources)} (log scale)")
    handles.append(Line2D([], [], color="#444444", label=fit.law.title))
    if len(groups) <= CROWDED:
        handles.append(
            Patch(color="#444444", alpha=0.13, linewidth=0, label=f"{LEVEL:.0%} interval")
        )
    return handles


def _by_measured(
    axes: Axes, fit: Fit, sources: Sequence[str], groups: dict[tuple[float, ...], np.ndarray]
) -> list[Artist]:
    """Where there are no lines, of one size or too many mixtures: the law's value against the
    measured one."""
    handles: list[Artist] = []
    values, (low, high) = fit.predict(fit.x), fit.band(fit.x)
    for (shares, members), (colour, marker) in zip(groups.items(), _looks(groups), strict=True):
        bars = np.abs(np.array([low, high])[:, members] - values[members])
        axes.errorbar(fit.y[members], values[members], bars, fmt=marker, color=colour,
                      markersize=3 if colour == GREY else 7, elinewidth=1)  # fmt: skip
        if colour != GREY:
            handles.append(
                Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=7,
                       label=_name(shares, sources))
            )  # fmt: skip
    ends = [min(fit.y.min(), low.min()), max(fit.y.max(), high.max())]
    axes.plot(ends, ends, color="#444444", linewidth=1)
    axes.set_xlabel("as measured")
    handles.append(Line2D([], [], color="#444444", linewidth=1, label="the law is right"))
    return handles


def _numbers(
    fit: Fit, sources: Sequence[str], groups: dict[tuple[float, ...], np.ndarray], lines: bool
) -> Iterator[Sequence]:
    """Rows (mixture, kind, tokens of each source, value, low, high); the law along the lines, or at
    the points."""
    count = len(sources)
    yield ["mixture", "kind", *sources, "value", "low", "high"]
    for shares, members in groups.items():
        for place, value in zip(fit.x[:count, members].T, fit.y[members], strict=True):
            yield [_name(shares, sources), "fitted", *map(float, place), float(value), "", ""]
    for shares, members in groups.items():
        places = _line(fit, members)[1] if lines else fit.x[:, members]
        values, ends = fit.predict(places), fit.band(places)
        for place, *numbers in zip(places[:count].T, values, *ends, strict=True):
            yield [_name(shares, sources), "law", *map(float, place), *map(float, numbers)]
