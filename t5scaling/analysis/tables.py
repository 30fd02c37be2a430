"""Numbers and tables as people read them, on the terminal (rich)."""

import math
from collections.abc import Sequence
from statistics import fmean as mean
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5scaling.analysis.compare import Comparison
from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.curves import Curve
from t5scaling.analysis.fit import Fit
from t5scaling.analysis.intervals import LEVEL

UNDETERMINED = 10.0  # an interval spanning more than this factor leaves a coefficient open
INTERVAL = f"{LEVEL:.0%} interval"
NAMES = {"cross_entropy": "Cross-entropy", "bleu": "BLEU", "chrf": "chrF", "comet": "COMET"}


def metric_name(metric: str) -> str:
    return NAMES.get(metric, metric)


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """A terminal's own width; 110 columns into a file or a pipe.

    What is printed on it is text: names of tasks and data may look like rich's markup or its
    names of emoji.
    """
    settings: dict = {"file": file, "highlight": False, "markup": False, "emoji": False}
    screen = Console(**settings, width=width)
    return screen if screen.is_terminal or width else Console(**settings, width=110)


def size_name(curve: Curve) -> str:
    """What the sizes are called in sentences: D_p in a study, else their column."""
    return "D_p" if curve.x_name == "pretrain_tokens" else curve.x_name


def number(value: float | None) -> str:
    """4 significant digits; thousands separated; powers of ten far from 1."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "overflow" if value > 0 else "-overflow"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        rounded = float(f"{value:.4g}")
        return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.4g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -100:
        return "≈ 0"
    return f"{value:.2e}"


def size(value: float) -> str:
    """A size on the x axis: exact if it is a whole number below 10 million, else 4 digits."""
    if value < 1e7:
        return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"
    unit, step = next((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6)) if value >= s)
    return f"{value / step:.4g}{unit}"


def interval(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def print_fit(this: CurveFit, screen: Console, because: str = "") -> None:
    """One curve: law, coefficients with intervals, held-out points, verdict."""
    name = metric_name(this.curve.metric)
    label = " · ".join([name, *map(str, this.curve.key.values())])
    screen.print(Text(label, style="bold"))
    xs = (this.curve.x_name, *([this.curve.x2_name] if this.curve.x2_name else []))
    means = ", ".join(f"{size} = {x}" for size, x in zip(this.law.sizes, xs, strict=False))
    title = Text(this.law.title, style="bold")
    title.append(f"  {this.law.formula}, {means}", style="not bold")
    screen.print(title.append(f"  ({because})" if because else "", style="not bold"))
    if this.curve.baseline:
        value = number(this.curve.baseline_value)
        screen.print(f"without pretraining: {value} (not a point of the law)")
    fit = this.fit
    if fit is None:
        screen.print(f"not fitted: {this.note}")
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("coefficient")
        table.add_column("value", justify="right")
        table.add_column(INTERVAL)
        table.add_column("meaning")
        meanings = {c.name: c.meaning for c in this.law.coefficient_table}
        for name, (value, low, high) in fit.coefficients.items():
            table.add_row(name, number(value), interval(low, high), meanings[name])
        screen.print(table)
        fitted = len(this.fitted_sizes)
        for sentence in sentences_of_coefficients(this):
            screen.print(sentence)
        points = f"{len(fit.y)} points" + (f" at {fitted} sizes" if len(fit.y) > fitted else "")
        screen.print(
            f"fitted to {points}, {objective_of(fit)}, "
            f"{'converged' if fit.converged else 'NOT converged'}"
            + "".join(f"; {note}" for note in fit.at_bound)
        )
        if fit.held_out:
            screen.print(_held_out_table(this))
            screen.print(
                f"held-out error (RMS of log) {number(fit.held_out_error)}, "
                f"extrapolated over {fit.extrapolation:.2f} decades of {this.curve.x_name}"
            )
        else:
            screen.print("nothing held out: the law is not checked")
    word = this.verdict.word or "no verdict"
    screen.print(Text.assemble("verdict: ", (word, "bold"), f": {this.verdict.reason}\n"))


def _held_out_table(this: CurveFit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"held out: {this.curve.x_name}", justify="right")
    if this.curve.x2_name:
        table.add_column(this.curve.x2_name, justify="right")
    for name in ("measured", "predicted"):
        table.add_column(name, justify="right")
    table.add_column(INTERVAL)
    table.add_column("error", justify="right")
    table.add_column("relative", justify="right")
    for p in this.fit.held_out:
        table.add_row(
            size(p.x), *([size(p.x2)] if this.curve.x2_name else []),
            number(p.value), number(p.predicted), interval(p.low, p.high),
            f"{p.error:+.3g}", f"{p.relative_error:+.1%}",
        )  # fmt: skip
    return table


def objective_of(fit: Fit) -> str:
    """What was minimised, in words."""
    kind = {"log": "log values", "value": "values", "reducible": "logs above the floor"}
    loss = "squares of" if math.isinf(fit.delta) else f"Huber {fit.delta:g} on"
    worse = fit.problem.worse_counts
    said = f"{loss} {kind[fit.problem.residual]}"
    said += f", worse points counting {worse:g}" if worse != 1 else ""
    said += ", weighted by their errors" if fit.problem.scale is not None else ""
    return said + ("" if fit.interval == "noise" else f", intervals by {fit.interval}")


def undetermined(fit: Fit) -> list[str]:
    """Names of the coefficients whose interval holds 0 or spans more than UNDETERMINED."""
    return [
        name
        for name, (_, low, high) in fit.coefficients.items()
        if low <= 0 or not high < UNDETERMINED * low
    ]


def sentences_of_coefficients(this: CurveFit) -> list[str]:
    """What the coefficients are worth, if not all that they seem."""
    fit = this.fit
    open_ones = undetermined(fit)
    if not open_ones:
        return []
    value, *slopes = fit.determined.items()
    at = " and ".join(size(float(f"{c:.3g}")) for c in fit.centre)
    rest = [name for name in fit.law.identified if name not in open_ones]
    known = f"{', '.join(rest)}, and " if rest else ""
    told = f"the value at {size_name(this.curve)} = {at}, {number(value[1][0])} "
    told += f"({interval(*value[1][1:])}), and "
    told += ", ".join(
        f"the {name} of its log there, {number(v)} ({interval(low, high)})"
        for name, (v, low, high) in slopes
    )
    return [
        f"These points do not pin down {listed(open_ones)} one by one. What they do tell: {known}"
        f"{told}. Use the curve where it was measured, not those numbers."
    ]


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def print_comparison(metric: str, found: Comparison, screen: Console) -> None:
    """Families by rising error on what they had not seen."""
    title = f"{metric}: families by what they had not seen (protocol: {found.protocol})"
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
    for place, members in by_place(curve_fits):
        table = Table(title=f"laws: {place}", title_justify="left")
        for name in ("metric", "law", "coefficients", "verdict"):
            table.add_column(name)
        table.add_column("held-out error", justify="right")
        for this in members:
            error = "–"
            if this.fit and this.fit.held_out:
                last = this.fit.held_out_sizes[-1]
                error = f"{last.relative_error:+.1%}, {this.fit.extrapolation:.2f} decades on"
            table.add_row(
                this.curve.metric,
                this.law.title,
                coefficients(this) if this.fit else "not fitted",
                this.verdict.word or "–",
                error,
            )
        screen.print(table)


def print_results(curve_fits: Sequence[CurveFit], screen: Console) -> None:
    """The selected results, means over seeds: D_p down, metrics across, the chosen rate."""
    for place, members in by_place(curve_fits):
        table = Table(title=f"test results: {place}", title_justify="left")
        for name in ("D_p", *(this.curve.metric for this in members), "learning rate"):
            table.add_column(name, justify="right")
        points = [(*this.curve.baseline, *this.curve.points) for this in members]
        for x in sorted({p.x for on_curve in points for p in on_curve}):
            here = [[p for p in on_curve if p.x == x] for on_curve in points]
            rates = {p.learning_rate: p.at_edge for ps in here for p in ps}
            table.add_row(
                size(x) if x else "not pretrained",
                *(number(mean([p.value for p in ps])) if ps else "–" for ps in here),
                ", ".join(f"{r:g}{' *' if edge else ''}" for r, edge in sorted(rates.items())),
            )
        screen.print(table)
    if any(p.at_edge for this in curve_fits for p in this.curve.points):
        screen.print("* the smallest or largest learning rate tried there: possibly under-tuned")


def by_place(curve_fits: Sequence[CurveFit]) -> list[tuple[str, list[CurveFit]]]:
    """Curves of a study grouped by everything but the metric; cross-entropy first."""
    groups: dict[tuple, list[CurveFit]] = {}
    for this in curve_fits:
        groups.setdefault(tuple(this.curve.key.values()), []).append(this)
    return [
        (
            place_of(members[0]),
            sorted(members, key=lambda t: (t.curve.metric != "cross_entropy", t.curve.metric)),
        )
        for _, members in sorted(groups.items())
    ]


def place_of(this: CurveFit) -> str:
    """Where a study's curve was measured, in words."""
    key = this.curve.key
    return (
        f"{key['task']}, pool of {key['finetune_examples']:,} examples, pretrained on "
        f"{key['pretrain_data']}"
    )


def coefficients(this: CurveFit) -> str:
    """`alpha 0.21, beta 1.7, D0 1,200`: values alone, for one line."""
    return ", ".join(f"{name} {number(v[0])}" for name, v in this.fit.coefficients.items())
