"""Numbers and tables as people read them, on the terminal (rich)."""

import math
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.fit import LEVEL

INTERVAL = f"{LEVEL:.0%} interval"


def console() -> Console:
    """A terminal's own width; 110 columns into a file or a pipe."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=110)


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
    """A size on the x axis: exact if it is a whole number below 10 million, else short."""
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if abs(value) >= 10 * step or (abs(value) >= step and value % 1):
            return f"{value / step:.4g}{unit}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"


def interval(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def print_fit(this: CurveFit, screen: Console, because: str = "") -> None:
    """One curve: law, coefficients with intervals, held-out points, verdict."""
    if this.curve.key:
        screen.print(f"[bold]{escape(this.curve.label)}[/bold]")
    title = f"[bold]{this.law.title}[/bold]  {escape(this.law.formula)}, D = {this.curve.x_name}"
    screen.print(title + (f"  ({escape(because)})" if because else ""))
    fit = this.fit
    if fit is None:
        screen.print(f"not fitted: {escape(this.note)}")
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
        fitted = len(set(fit.x.tolist()))
        points = f"{len(fit.x)} points at {fitted} sizes" if len(fit.x) > fitted else f"{fitted}"
        screen.print(
            f"fitted to {points}, Huber {fit.delta:g} on log values, "
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
    screen.print(f"verdict: [bold]{word}[/bold]: {escape(this.verdict.reason)}\n")


def _held_out_table(this: CurveFit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"held out: {this.curve.x_name}", justify="right")
    for name in ("measured", "predicted"):
        table.add_column(name, justify="right")
    table.add_column(INTERVAL)
    table.add_column("error", justify="right")
    table.add_column("relative", justify="right")
    for p in this.fit.held_out:
        table.add_row(
            size(p.x), number(p.value), number(p.predicted), interval(p.low, p.high),
            f"{p.error:+.3g}", f"{p.relative_error:+.1%}",
        )  # fmt: skip
    return table


def print_laws(curve_fits: Iterable[CurveFit], screen: Console) -> None:
    """All curves of a study, one line each, grouped under what they share."""
    table = Table(title="laws", title_justify="left")
    for name, justify in (
        ("curve", "left"), ("metric", "left"), ("law", "left"), ("coefficients", "left"),
        ("held-out error", "right"), ("verdict", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)
    for this in curve_fits:
        fit = this.fit
        error = "–"
        if fit and fit.held_out:
            worst = max(fit.held_out, key=lambda p: abs(p.relative_error))
            error = f"{worst.relative_error:+.1%}\nover {fit.extrapolation:.2f} dec."
        table.add_row(
            "\n".join(escape(str(v)) for v in _short_key(this).values()),
            escape(this.curve.metric),
            this.law.title,
            coefficients(this) if fit else "not fitted",
            error,
            this.verdict.word or "–",
        )
    screen.print(table)


def print_results(curve_fits: Iterable[CurveFit], screen: Console) -> None:
    """The selected points: metric by D_p, with the learning rate chosen."""
    table = Table(title="results at the chosen learning rates (test split)", title_justify="left")
    for name in ("curve", "metric"):
        table.add_column(name)
    for name in ("D_p", "value", "learning rate"):
        table.add_column(name, justify="right")
    for this in curve_fits:
        rows = [*this.curve.baseline, *this.curve.points]
        for i, p in enumerate(rows):
            table.add_row(
                " · ".join(escape(str(v)) for v in _short_key(this).values()) if not i else "",
                escape(this.curve.metric) if not i else "",
                size(p.x),
                number(p.value),
                f"{p.learning_rate:g}{' (edge)' if p.at_edge else ''}",
            )
        table.add_section()
    screen.print(table)


def coefficients(this: CurveFit) -> str:
    """`alpha 0.21, beta 1.7, D0 1,200`: values alone, for one line."""
    return ", ".join(f"{name} {number(v[0])}" for name, v in this.fit.coefficients.items())


def _short_key(this: CurveFit) -> dict:
    key = dict(this.curve.key)
    key.pop("model", None)
    if "finetune_examples" in key:
        key["finetune_examples"] = f"pool of {key['finetune_examples']:,}"
    return key
