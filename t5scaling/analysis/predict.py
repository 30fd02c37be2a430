"""`run.py predict`: what the law of a table expects at sizes of one's own, and the best use of a
budget of compute.

`predict --json` prints {"software", "level", "curves": [...]}. Each curve has its group columns,
"metric", "x" (and "x2"): names of columns, "law", "formula", "coefficients" (name -> value, low,
high), "note" (why it has no law, else ""), "warnings", "predictions" and "optima". A prediction has
x (and x2), value, low, high, and decades (how far each size lies above the largest fitted one, or,
below 0, under the smallest; 0 between). An optimum has compute, flops (C = flops * x * x2), x, x2,
ratio (of x2 to x), value and exponent (of x in C), each with value, low and high, and decades (of
the budget beyond the dearest fitted point). Intervals have the level; those of predictions are for
a new measurement, those of optima for the law itself.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import t5scaling
from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.frontier import FLOPS, Estimate, Optimum, check, frontier
from t5scaling.analysis.conclusions.named_law import check_name, laws_of, lower_is_better
from t5scaling.analysis.conclusions.prediction import Expected, expected
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.sentences import INTERVAL
from t5scaling.analysis.presentation.terminal import coefficients, console
from t5scaling.analysis.results import cells
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.load import EVERYTHING, Columns, load_curves
from t5scaling.analysis.wording import interval, number, open_size, size
from t5scaling.errors import UserError


@dataclass(frozen=True)
class Predicted:
    """One curve with its law, and what follows from it."""

    curve_fit: CurveFit
    because: str
    expected: tuple[Expected, ...]
    optima: tuple[Optimum, ...]


def predict(
    path: str | os.PathLike,
    columns: Columns = EVERYTHING,
    *,
    at: Sequence[str] = (),
    compute: Sequence[float] = (),
    flops: float = FLOPS,
    law: str | None = None,
    bounds: str | None = None,
    interval: str = "noise",
    delta: float | None = None,
    as_json: bool = False,
    screen: Console | None = None,
) -> list[Predicted]:
    """Fits the law of each curve of a table (see `load`) to all its points; prints what it expects.

    Args:
      at: places, each a size, or the sizes of a law of two by a comma: "7e10,1.4e12", "70B,1.4T".
      compute: budgets, whose best split is asked for (`conclusions.frontier`).
      flops: operations per unit of both sizes: C = flops * x * x2.
      law, bounds: as for `fit_table`; None: its choice, and with a budget the Chinchilla law.
      interval, delta: of `fit.fit_curve`.
      as_json: print data instead of text.

    Raises:
      UserError: see `load`; nothing asked for; a place that the law does not take; no curve that
        can be fitted; or a budget for a law of other sizes.
    """
    check_name(law, bounds)
    if law == "all":
        raise UserError("predict takes one law; `run.py fit --law=all` says which predicts best")
    if not at and not compute:
        raise UserError("predict needs --at=SIZE, --at=SIZE,SIZE of a law of two, or --compute=C")
    places = [place_of(text) for text in at]
    found = []
    curves = load_curves(path, columns)
    wanted = laws_of(law, curves, bounds=bounds)
    for curve, chosen, because in wanted:
        if compute:
            chosen, because = law_of_one(curve, law, bounds, budget=True)
        if compute:
            check(chosen, flops)
        curve_fit = fit_one(
            curve, chosen, lower_is_better=lower_is_better(curve, chosen), hold_out=0,
            interval=interval, delta=delta,
        )  # fmt: skip
        fit = curve_fit.fit
        there = expected(fit, places) if fit and places else []
        best = frontier(fit, compute, flops=flops) if fit and compute else []
        found.append(Predicted(curve_fit, because, tuple(there), tuple(best)))
    if all(one.curve_fit.fit is None for one in found):
        raise UserError(f"{path}: {found[0].curve_fit.note}")
    if as_json:
        print(json.dumps(document(found), indent=1, ensure_ascii=False))
    else:
        for one in found:
            _show(one, flops, screen or console())
    return found


def law_of_one(
    curve: Curve, name: str | None, bounds: str | None, *, budget: bool
) -> tuple[Law, str]:
    """(law, why): as `fit_table` chooses, but the Chinchilla law where a budget is to be split."""
    if budget and name is None and curve.x2_name:
        return LAWS["chinchilla"], "chosen because a budget is shared by a model and its data"
    ((_, law, because),) = laws_of(name, [curve], bounds=bounds)
    return law, because


def place_of(text: str) -> tuple[float, ...]:
    """The sizes that `--at` names."""
    sizes = [cells.size_of(part) for part in text.split(",")]
    if None in sizes:
        raise UserError(
            f"--at={text}: expected a positive size such as 1e9 or 70B, or two by a comma of a "
            "law of two sizes; for several places give --at several times"
        )
    return tuple(size for size in sizes if size is not None)


def names_of(curve_fit: CurveFit) -> list[str]:
    """The columns of x."""
    return [name for name in (curve_fit.curve.x_name, curve_fit.curve.x2_name) if name]


def warnings_of(curve_fit: CurveFit) -> list[str]:
    """What is to be said before a number of its law is used."""
    if curve_fit.fit is None:
        return []
    unsure = (
        () if curve_fit.fit.converged else ("the fit did not converge: do not use its numbers",)
    )
    return [*unsure, *curve_fit.fit.notes]


# --- text -----------------------------------------------------------------------------------------


def _show(one: Predicted, flops: float, screen: Console) -> None:
    curve, law = one.curve_fit.curve, one.curve_fit.law
    label = " · ".join(filter(None, [metric_name(curve.metric), curve.place.label]))
    screen.print(Text(label, style="bold"))
    screen.print(f"{law.title}  {law.formula}" + (f"  ({one.because})" if one.because else ""))
    if one.curve_fit.fit is None:
        screen.print(f"not fitted: {one.curve_fit.note}\n")
        return
    screen.print(
        f"fitted to all {len(one.curve_fit.fit.y)} points: {coefficients(one.curve_fit.fit)}"
    )
    for warning in warnings_of(one.curve_fit):
        screen.print(Text.assemble(("note:", "bold"), f" {warning}"))
    names = names_of(one.curve_fit)
    if one.expected:
        table = _table(*names, "predicted", INTERVAL)
        for there in one.expected:
            table.add_row(*map(size, there.place), number(there.value),
                          interval(there.low, there.high), there.distance(names))  # fmt: skip
        screen.print(table)
    if one.optima:
        _show_optima(one, flops, names, screen)
    screen.print()


def _show_optima(one: Predicted, flops: float, names: Sequence[str], screen: Console) -> None:
    first, second = names
    screen.print(f"best split of a budget C = {flops:g} * {first} * {second}:")
    table = _table("C", "", "value", INTERVAL)
    for best in one.optima:
        far = f"{best.decades:.2f} decades beyond the data's" if best.decades > 0 else ""
        rows = (
            (first, best.sizes[0], open_size),
            (second, best.sizes[1], open_size),
            (f"{second} / {first}", best.ratio, number),
            ("predicted", best.value, number),
        )
        for i, (name, found, write) in enumerate(rows):
            budget = f"{best.compute:.3g}" if i == 0 else ""
            ends = f"{write(found.low)} to {write(found.high)}"
            table.add_row(budget, name, write(found.value), ends, "" if i else far)
    screen.print(table)
    c = one.optima[0].exponent
    screen.print(
        f"The best {first} grows as C^{c.value:.3f} ({interval(c.low, c.high)}), {second} as "
        f"C^{1 - c.value:.3f} ({interval(1 - c.high, 1 - c.low)}). These intervals are of the law "
        "itself, without the noise of a measurement."
    )


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*names, ""):
        table.add_column(name, justify="left" if name in ("", INTERVAL) else "right")
    return table


# --- data -----------------------------------------------------------------------------------------


def document(found: Sequence[Predicted]) -> dict[str, Any]:
    """What `--json` prints; see the head of this file."""
    return {
        "software": f"t5scaling {t5scaling.__version__}",
        "level": LEVEL,
        "curves": [_record(one) for one in found],
    }


def _record(one: Predicted) -> dict[str, Any]:
    curve, fit = one.curve_fit.curve, one.curve_fit.fit
    return {
        **curve.place.key,
        "metric": curve.metric,
        "x": curve.x_name,
        **({"x2": curve.x2_name} if curve.x2_name else {}),
        "law": one.curve_fit.law.name,
        "formula": one.curve_fit.law.formula,
        "coefficients": {name: Estimate(*ends).record for name, ends in fit.coefficients.items()}
        if fit
        else {},
        "note": one.curve_fit.note,
        "warnings": warnings_of(one.curve_fit),
        "predictions": [there.record for there in one.expected],
        "optima": [best.record for best in one.optima],
    }
