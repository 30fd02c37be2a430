"""Figures of what advice rests on: score against loss, rollout, families, joint law, next run.

Score against loss is figure 5 of Isik et al. (arXiv 2402.04177); the others are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from t5scaling.analysis.conclusions.advice import Advice, Contest, CurveAdvice
from t5scaling.analysis.conclusions.diagnosis import Relation, by_run
from t5scaling.analysis.conclusions.exchange import Exchange
from t5scaling.analysis.conclusions.next_experiment import Design, candidates
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.advice import label_of
from t5scaling.analysis.presentation.figures import StudyFigure
from t5scaling.analysis.presentation.one_law import draw_mesh
from t5scaling.analysis.presentation.style import (
    COLOURS,
    STYLE,
    look,
    save,
    save_rows,
    size_axis,
    stem_of,
)
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import number, short_size

Drawn = tuple[str, str, str, Figure, list[list]]  # name, title, caption, page, rows


def draw_advice(
    advice: Advice,
    folder: Path,
    colour_of: Callable[[Place], str] | None = None,
    *,
    next_runs: bool = True,
) -> list[StudyFigure]:
    """Draws all of them that the advice has content for, as .png, .svg and .csv.

    colour_of: as of `figures.draw_all`. next_runs: one more for each curve, on its next run.
    """
    figures: list[StudyFigure] = []
    taken: dict[str, str] = {}
    for name, title, caption, page, rows in _all(advice, colour_of, next_runs):
        stem = stem_of(folder, [name], taken)
        save(page, stem)
        save_rows(rows, stem)
        figures.append(StudyFigure(title, stem, caption=caption))
    return figures


def _all(advice: Advice, colour_of, next_runs: bool) -> Iterator[Drawn]:
    groups: dict[tuple, list[Relation]] = {}
    for relation in advice.relations:
        if len(by_run(relation.score, relation.loss)[0]) >= 3:
            key = relation.score.curve.place.key
            place = tuple(v for n, v in key.items() if n != "pretrain_data")
            metrics = relation.score.curve.metric, relation.loss.curve.metric
            groups.setdefault((*metrics, *place), []).append(relation)
    for place, relations in groups.items():
        yield score_against_loss(place, relations, colour_of)
    for contest in advice.contests:
        yield families(contest)
        yield rollout(contest)
    for exchange in advice.exchanges:
        yield joint(exchange)
    for one in advice.curves:
        if next_runs and one.next_runs and one.forecast and one.outlook.best:
            yield next_run(one, one.outlook.best, advice)


def score_against_loss(place: tuple, relations: Sequence[Relation], colour_of=None) -> Drawn:
    """One colour per pretraining data set; the line is the exponential law."""
    score, loss, *rest = place
    rows: list[list] = [["data", "kind", loss, score]]
    with matplotlib.rc_context(STYLE):
        page, axes = _page()
        for relation, (colour, marker) in zip(relations, look(len(relations)), strict=True):
            curve = relation.score.curve
            colour = colour_of(curve.place) if colour_of else colour
            key = curve.place.key
            name = str(key.get("pretrain_data") or " · ".join(map(str, key.values())) or score)
            x, y = by_run(relation.score, relation.loss)
            axes.plot(x, y, marker, color=colour, markersize=7, label=name)
            rows += [[name, "measured", float(a), float(b)] for a, b in zip(x, y, strict=True)]
            if relation.fit:
                grid = np.linspace(x.min(), x.max(), 100)
                line = relation.fit.predict(grid)
                style = "-" if relation.exponential else (0, (1, 1.5))
                axes.plot(grid, line, color=colour, linestyle=style)
                rows += [[name, "law", float(a), float(b)] for a, b in zip(grid, line, strict=True)]
        axes.invert_xaxis()
        axes.set_xlabel(f"test {metric_name(loss)} (better to the right)")
        axes.set_ylabel(f"test {metric_name(score)}")
        axes.set_title(", ".join(map(str, rest)), fontsize=11, loc="left")
        handles, _ = axes.get_legend_handles_labels()
        handles += [
            Line2D([], [], color="#444444", label="C * e^(k L)"),
            Line2D([], [], color="#444444", linestyle=(0, (1, 1.5)), label="no exponential"),
        ]
        page.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10)
    title = f"{metric_name(score)} against {metric_name(loss)} of {', '.join(map(str, rest))}"
    caption = " ".join(relation.relation_sentence for relation in relations)
    return "--".join((score, "against", loss, *map(str, rest))), title, caption, page, rows


def rollout(contest: Contest) -> Drawn:
    """Predictions of each size from those below it, over what was measured."""
    members, comparison, metric = contest.curve_fits, contest.comparison, contest.metric
    rows: list[list] = [["law", "curve", "fitted sizes", "x", "measured", "predicted"]]
    with matplotlib.rc_context(STYLE):
        page, axes = _page()
        looks = look(len(comparison.families))
        for family, (colour, marker) in zip(comparison.families, looks, strict=True):
            found = [p for p in family.predictions if p.predicted > 0]
            axes.plot(
                [p.measured for p in found], [p.predicted / p.measured - 1 for p in found],
                marker, color=colour, markersize=7,
                markerfacecolor="none", markeredgewidth=1.6, label=family.law.title,
            )  # fmt: skip
            rows += [
                [family.law.name, label_of(members[p.curve]) if p.curve < len(members) else p.curve,
                 p.k, p.x, p.measured, p.predicted] for p in family.predictions
            ]  # fmt: skip
        axes.axhline(0, color="#444444", linewidth=1.2)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"measured {metric_name(metric)}")
        axes.set_ylabel("predicted too high (+) or too low (-)")
        axes.set_title("each size predicted from those below it", fontsize=11, loc="left")
        page.legend(loc="outside lower center", ncols=3, fontsize=10)
    title = f"Rollout of {metric_name(metric)}"
    return f"rollout--{metric}", title, comparison.sentence + ".", page, rows


def families(contest: Contest) -> Drawn:
    """Held-out error of each family, with its predictions one by one."""
    comparison, metric = contest.comparison, contest.metric
    rows: list[list] = [["law", "rms log error", "mean relative error", "bias", "aicc"]]
    with matplotlib.rc_context(STYLE):
        page, axes = _page(height=1.9 + 0.55 * len(comparison.families))
        for i, family in enumerate(comparison.families):
            errors = [min(abs(p.log_error), 10.0) for p in family.predictions]
            shift = np.linspace(-0.18, 0.18, len(errors)) if len(errors) > 1 else np.zeros(1)
            axes.plot(np.maximum(errors, 1e-5), i + shift, "o", color="#9A9A9A", markersize=4)
            axes.plot(family.error, i, "D", color=COLOURS[0], markersize=9)
            rows.append([family.law.name, family.error, family.relative_error, family.bias,
                         family.aicc])  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(comparison.families)), [f.law.title for f in comparison.families])
        axes.invert_yaxis()
        axes.set_xlabel("error of log values on sizes not seen")
        axes.set_title(metric_name(metric), fontsize=11, loc="left")
        handles = [
            Line2D([], [], color=COLOURS[0], marker="D", linestyle="none", label="RMS of all"),
            Line2D([], [], color="#9A9A9A", marker="o", linestyle="none", label="one prediction"),
        ]
        page.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10)
    title = f"Families of laws of {metric_name(metric)}"
    return f"families--{metric}", title, comparison.sentence + ".", page, rows


def joint(exchange: Exchange) -> Drawn:
    """The joint law as lines of equal value over both sizes, with the measured points."""
    fit, where = exchange.fit, exchange.place.key.values()
    place = " · ".join([metric_name(exchange.metric), *map(str, where)])
    with matplotlib.rc_context(STYLE):
        page, axes = _page()
        rows = draw_mesh(axes, fit, ("D_p", "D_f"), exchange.metric)
        axes.set_xlabel("pretraining size D_p (tokens)")
        axes.set_ylabel("finetuning pool D_f (tokens)")
        axes.set_title("\n".join(map(str, where)), fontsize=10, loc="left")
    missed = f" It misses the measurements by {number(exchange.miss)} (RMS)."
    caption = f"{fit.law.formula}.{'' if exchange.fits_points else missed}"
    return f"joint--{place}", f"Joint law of {place}", caption, page, rows


def next_run(one: CurveAdvice, fit: Fit, advice: Advice) -> Drawn:
    """What one more run at each size would narrow, whole and per device-hour."""
    target = np.array([advice.target])
    places = candidates(fit, advice.target)
    design = Design(fit, target)
    before = float(design.half_width(design.variance()))
    gains = before - design.half_width(design.with_each(places))
    prices = np.array([advice.cost.of(x) for x in places])
    rows: list[list] = [[one.curve_fit.curve.x_name, "half width before", "falls by", "cost"]]
    rows += [[float(x), before, float(g), float(c)]
             for x, g, c in zip(places, gains, prices, strict=True)]  # fmt: skip
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=(6.4, 5.0), layout="constrained")
        top, bottom = page.subplots(2, sharex=True)
        measured = np.isin(places, np.unique(fit.x))
        for axes, heights, label in (
            (top, 100 * gains, "narrows by\n(% points)"),
            (bottom, 100 * gains / prices, "the same\nper unit of cost"),
        ):
            axes.plot(places, heights, color="#9A9A9A", linewidth=1)
            axes.plot(places[measured], heights[measured], "o", color=COLOURS[0], markersize=8)
            axes.plot(places[~measured], heights[~measured], "s", color=COLOURS[1], markersize=7)
            axes.set_ylabel(label, fontsize=10)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
        size_axis(bottom, list(places))
        bottom.set_xlabel(f"{one.curve_fit.curve.x_name} of one more run (log scale)")
        top.set_title(
            f"{label_of(one.curve_fit)}\n"
            f"interval at {short_size(advice.target)} now: ±{before:.1%}",
            fontsize=9, loc="left",
        )  # fmt: skip
        handles = [
            Line2D([], [], color=COLOURS[0], marker="o", linestyle="none", label="another seed"),
            Line2D([], [], color=COLOURS[1], marker="s", linestyle="none", label="a new size"),
        ]
        page.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10)
    name = "--".join(["next-run", one.curve_fit.curve.metric,
                      *map(str, one.place.key.values())])  # fmt: skip
    return name, f"The next run of {label_of(one.curve_fit)}", "", page, rows


def _page(height: float = 5.0) -> tuple[Figure, Axes]:
    page = Figure(figsize=(6.4, height), layout="constrained")
    return page, page.add_subplot()
