"""One law and its points, drawn on axes that are given: as a curve, or over two sizes as lines of
equal value."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.frontier import FLOPS, frontier
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.figures import StudyFigure
from t5scaling.analysis.presentation.style import COLOURS, STYLE, save, save_rows, stem_of
from t5scaling.analysis.wording import short_size
from t5scaling.errors import UserError

BEYOND = 4.0  # how far past its largest size a law is drawn
_LINES = 80  # of the mesh over two sizes


def draw_law(axes: Axes, curve_fit: CurveFit, fit: Fit) -> None:
    """Points, law, its interval for a new measurement and its extrapolation, in the next colour of
    the axes, so that several laws may share them."""
    curve = curve_fit.curve
    points, values = curve.arrays
    x = np.unique(np.append(np.geomspace(points.min(), points.max() * BEYOND, 120), fit.x.max()))
    inside = x <= fit.x.max() * (1 + 1e-9)
    label = curve.place.label or curve.metric
    (line,) = axes.plot(x[inside], fit.predict(x[inside]), label=label)
    colour = line.get_color()
    axes.plot(x[~inside], fit.predict(x[~inside]), color=colour, linestyle=(0, (4, 2)))
    axes.fill_between(x, *fit.band(x), color=colour, alpha=0.13, linewidth=0)
    held_out = np.isin(points, [p.x for p in fit.held_out])
    for these, face in ((~held_out, colour), (held_out, "white")):
        axes.plot(points[these], values[these], "o", color=colour, markerfacecolor=face)
    axes.set_xscale("log")
    axes.set_xlabel(curve.x_name, parse_math=False)
    axes.set_ylabel(metric_name(curve.metric), parse_math=False)
    axes.set_title(f"{curve_fit.law.formula}, with {LEVEL:.0%} intervals", fontsize="medium",
                   parse_math=False)  # fmt: skip


def draw_mesh(axes: Axes, fit: Fit, names: Sequence[str], metric: str) -> list[list]:
    """Lines of equal value over both sizes, shaded, with the measured points; and the numbers:
    rows of kind, both sizes and the value, below a header."""
    low, high = fit.x.min(axis=1) / 1.5, fit.x.max(axis=1) * 3
    first, second = (np.geomspace(a, b, _LINES) for a, b in zip(low, high, strict=True))
    mesh = np.array(np.meshgrid(first, second))
    values = fit.predict(mesh.reshape(2, -1)).reshape(mesh.shape[1:])
    # A law that misses its points may run off beyond them: shades are for values near theirs.
    span = np.ptp(fit.y)
    lowest = max(values.min(), fit.y.min() - span)
    highest = min(values.max(), fit.y.max() + span)
    beyond = lowest > values.min() or highest < values.max()
    levels = MaxNLocator(15).tick_values(lowest, highest)
    shades = axes.contourf(first, second, values, levels, cmap="cividis_r", alpha=0.75,
                           extend="both" if beyond else "neither")  # fmt: skip
    every_other = np.asarray(shades.levels)[::2]
    lines = axes.contour(first, second, values, levels=every_other, colors="#222222",
                         linewidths=0.8)  # fmt: skip
    axes.clabel(lines, fontsize=8, fmt="%.3g")
    axes.scatter(*fit.x, c=fit.y, cmap="cividis_r", vmin=lowest, vmax=highest,
                 edgecolors="black", s=46 if len(fit.y) <= 60 else 22, zorder=3)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_size(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)
    page = axes.get_figure()
    if page is not None:
        bar = page.colorbar(shades, ax=axes)
        bar.ax.set_ylabel(metric_name(metric), parse_math=False)
    rows: list[list] = [["kind", *names, "value"]]
    rows += [["measured", float(a), float(b), float(v)]
             for a, b, v in zip(*fit.x, fit.y, strict=True)]  # fmt: skip
    rows += [["law", float(mesh[0, j, i]), float(mesh[1, j, i]), float(values[j, i])]
             for j in range(0, _LINES, 8) for i in range(0, _LINES, 8)]  # fmt: skip
    return rows


def draw_frontier(axes: Axes, fit: Fit) -> list[list]:
    """The best split of each budget of the points' range, with the interval of the first size, over
    what `draw_mesh` drew; and its rows. Nothing for a law of other sizes than N and D, of which
    nobody knows what they cost."""
    if fit.law.sizes != ("N", "D"):
        return []
    products = FLOPS * fit.x.prod(axis=0)
    budgets = np.geomspace(products.min(), products.max() * BEYOND, 25)
    try:
        best = frontier(fit, budgets.tolist())
    except UserError:  # a law without one
        return []
    first, second = (np.array([[*one.sizes[i]] for one in best]).T for i in (0, 1))
    axes.plot(first[0], second[0], color=COLOURS[1], linewidth=2.2, label="best split of a budget")
    for end in (1, 2):  # the other size follows from the budget
        other = budgets / FLOPS / first[end]
        axes.plot(first[end], other, color=COLOURS[1], linewidth=1, linestyle=(0, (1, 1.5)),
                  label=f"{LEVEL:.0%} interval" if end == 1 else None)  # fmt: skip
    axes.legend(loc="lower right", fontsize=9, frameon=True)
    return [["best split", float(a), float(b), one.value.value]
            for a, b, one in zip(first[0], second[0], best, strict=True)]  # fmt: skip


def draw_joint(curve_fit: CurveFit, folder: Path, taken: dict[str, str]) -> StudyFigure | None:
    """The figure of a law of two sizes as .png, .svg and .csv; None if it was not fitted."""
    fit, curve = curve_fit.fit, curve_fit.curve
    if fit is None or curve.x2_name is None:
        return None
    where = list(map(str, curve.place.key.values()))
    title = " · ".join([metric_name(curve.metric), *where])
    style: dict[Any, Any] = {**STYLE}
    with matplotlib.rc_context(style):
        page = Figure(figsize=(6.4, 5.0), layout="constrained")
        axes = page.add_subplot()
        rows = draw_mesh(axes, fit, (curve.x_name, curve.x2_name), curve.metric)
        rows += draw_frontier(axes, fit)
        axes.set_title("\n".join([curve_fit.law.formula, *where]), fontsize=10, loc="left")
    stem = stem_of(folder, ["joint", curve.metric, *where], taken)
    save(page, stem)
    save_rows(rows, stem)
    return StudyFigure(f"Law of two sizes of {title}", stem, (), "", fit.law.formula)
