"""Numbers and tables as people read them, on the terminal (rich)."""

import math
from collections.abc import Sequence
from statistics import fmean as mean
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5scaling.analysis.conclusions.curve_fit import CurveFit, by_place
from t5scaling.analysis.fitting.compare import Comparison
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.sentences import (
    INTERVAL,
    objective_of,
    place_of,
    sentence_of_check,
    sentences_of_coefficients,
    sentences_of_scale,
    undetermined,
)
from t5scaling.analysis.results.rates import AT_EDGE
from t5scaling.analysis.wording import interval, listed, number, size

SHOWN = 12  # predictions of a check; all are in --json


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """A terminal's own width; 110 columns into a file or a pipe.

    What is printed on it is text: names of tasks and data may look like rich's markup or its
    names of emoji.
    """
    settings: dict = {"file": file, "highlight": False, "markup": False, "emoji": False}
    screen = Console(**settings, width=width)
    return screen if screen.is_terminal or width else Console(**settings, width=110)


def print_fit(curve_fit: CurveFit, screen: Console, because: str = "") -> None:
    """One curve: law, coefficients with intervals, held-out points, verdict."""
    name = metric_name(curve_fit.curve.metric)
    label = " · ".join(filter(None, [name, curve_fit.curve.place.label]))
    screen.print(Text(label, style="bold"))
    xs = (curve_fit.curve.x_name, *([curve_fit.curve.x2_name] if curve_fit.curve.x2_name else []))
    named = zip(curve_fit.law.sizes, xs, strict=False)
    means = "".join(f", {size} = {x}" for size, x in named if size != x)
    if curve_fit.curve.sources:
        means = f", the target's tokens are {curve_fit.curve.sources[0]}"
    title = Text(curve_fit.law.title, style="bold")
    title.append(f"  {curve_fit.law.formula}{means}", style="not bold")
    screen.print(title.append(f"  ({because})" if because else "", style="not bold"))
    if curve_fit.curve.baseline:
        value = number(curve_fit.curve.baseline_value)
        screen.print(f"without pretraining: {value} (not a point of the law)")
    fit = curve_fit.fit
    if fit is None:
        screen.print(f"not fitted: {curve_fit.note}")
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("coefficient")
        table.add_column("value", justify="right")
        table.add_column(INTERVAL)
        table.add_column("meaning")
        meanings = {c.name: c.meaning for c in curve_fit.law.coefficient_table}
        for name, (value, low, high) in fit.coefficients.items():
            table.add_row(name, number(value), interval(low, high), meanings[name])
        screen.print(table)
        fitted = len(curve_fit.fitted_sizes)
        for sentence in sentences_of_coefficients(curve_fit):
            screen.print(sentence)
        points = f"{len(fit.y)} points" + (f" at {fitted} sizes" if len(fit.y) > fitted else "")
        screen.print(
            f"fitted to {points}, {objective_of(fit)}, "
            f"{'converged' if fit.converged else 'NOT converged'}"
            + "".join(f"; {note}" for note in fit.notes)
        )
        for sentence in sentences_of_scale(curve_fit):
            screen.print(sentence)
    if curve_fit.check.predictions:
        screen.print(_check_table(curve_fit))
        screen.print(sentence_of_check(curve_fit))
    elif fit:
        screen.print("nothing was predicted that the law was not fitted to: it is not checked")
    word = curve_fit.verdict.word
    screen.print(Text.assemble("verdict: ", (word, "bold"), f": {curve_fit.verdict.reason}\n"))


def _check_table(curve_fit: CurveFit) -> Table:
    """The check's predictions, the farthest of them where they are many."""
    curve, check = curve_fit.curve, curve_fit.check
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("predicted" if check.rollout else "held out", justify="right")
    if curve.x2_name:
        table.add_column(curve.x2_name, justify="right")
    if check.rollout:
        table.add_column("from the first", justify="right")
    for name in ("measured", "predicted"):
        table.add_column(name, justify="right")
    table.add_column(INTERVAL)
    table.add_column("error", justify="right")
    table.add_column("relative", justify="right")
    for p in check.predictions[-SHOWN:]:
        table.add_row(
            size(p.x), *([size(p.x2 or 0)] if curve.x2_name else []),
            *([str(p.k)] if check.rollout else []),
            number(p.measured), number(p.predicted), interval(p.low, p.high),
            f"{p.error:+.3g}", f"{p.relative_error:+.1%}",
        )  # fmt: skip
    return table


def print_comparison(metric: str, found: Comparison, screen: Console) -> None:
    """Families by rising error on sizes that they were not fitted to."""
    title = f"{metric}: families by their errors on sizes not fitted (protocol: {found.protocol})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False,
                  padding=(0, 2, 0, 0))  # fmt: skip
    table.add_column("law")
    for name in ("RMS log error", "mean error", "bias", f"in {INTERVAL}", "decades", "AICc"):
        table.add_column(name, justify="right")
    for family in found.families:
        covered = "–" if family.coverage is None else f"{family.coverage:.0%}"
        table.add_row(
            family.law.title, number(family.error), f"{family.relative_error:.1%}",
            f"{family.bias:+.1%}", covered, f"{family.decades:.2f}",
            number(family.aicc) if math.isfinite(family.aicc) else "–",
        )  # fmt: skip
    screen.print(table)
    screen.print(Text(found.sentence, style="bold"))
    for warning in found.warnings:
        print_note(warning, screen)


def print_note(warning: str, screen: Console) -> None:
    screen.print(Text.assemble(("note:", "bold"), f" {warning}"))


def print_laws(curve_fits: Sequence[CurveFit], screen: Console) -> None:
    """The laws of a study: one table per (model, data, task, pool), one line per metric."""
    for members in by_place(curve_fits):
        place = place_of(members[0])
        table = Table(title=f"laws: {place}", title_justify="left")
        for name in ("metric", "law", "coefficients", "verdict"):
            table.add_column(name)
        table.add_column("error where not fitted", justify="right")
        for curve_fit in members:
            error = "–"
            if curve_fit.check.predictions:
                last = curve_fit.check.farthest
                error = f"{last.relative_error:+.1%}, {last.decades:.2f} decades on"
            table.add_row(
                curve_fit.curve.metric,
                curve_fit.law.title,
                coefficients(curve_fit.fit) if curve_fit.fit else "not fitted",
                curve_fit.verdict.shape or "–",
                error,
            )
        screen.print(table)


def print_results(curve_fits: Sequence[CurveFit], screen: Console) -> None:
    """The selected results, means over seeds: D_p down, metrics across, the chosen rate."""
    for members in by_place(curve_fits):
        place = place_of(members[0])
        table = Table(title=f"test results: {place}", title_justify="left")
        for name in ("D_p", *(curve_fit.curve.metric for curve_fit in members), "learning rate"):
            table.add_column(name, justify="right")
        points = [(*curve_fit.curve.baseline, *curve_fit.curve.points) for curve_fit in members]
        for x in sorted({p.x for on_curve in points for p in on_curve}):
            here = [[p for p in on_curve if p.x == x] for on_curve in points]
            rates = {
                p.learning_rate: p.at_edge
                for ps in here for p in ps if p.learning_rate is not None
            }  # fmt: skip
            table.add_row(
                size(x) if x else "not pretrained",
                *(number(mean([p.value for p in ps])) if ps else "–" for ps in here),
                ", ".join(f"{r:g}{' *' if edge else ''}" for r, edge in sorted(rates.items())),
            )
        screen.print(table)
    if any(p.at_edge for curve_fit in curve_fits for p in curve_fit.curve.points):
        screen.print(f"* {AT_EDGE}")


def coefficients(fit: Fit) -> str:
    """`beta 1.7, D0 1,200; A and alpha not determined`: values alone, for one line."""
    open_ones = undetermined(fit)
    known = [f"{n} {number(v[0])}" for n, v in fit.coefficients.items() if n not in open_ones]
    unknown = [f"{listed(open_ones)} not determined"] if open_ones else []
    return "; ".join([*([", ".join(known)] if known else []), *unknown])
