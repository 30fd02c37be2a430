"""Laws for somebody who has only a table, or a directory of runs."""

import json
from dataclasses import replace
from pathlib import Path

from t5scaling.analysis.conclusions.choice_of_law import (
    Compared,
    comparisons,
)
from t5scaling.analysis.conclusions.curve_fit import CurveFit, comparison_record, document
from t5scaling.analysis.conclusions.many_curves import fit_all
from t5scaling.analysis.conclusions.named_law import check_name, laws_of, lower_is_better
from t5scaling.analysis.fitting.protocol import check_protocol
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.presentation.progress import tracked, working
from t5scaling.analysis.presentation.summary import print_summary
from t5scaling.analysis.presentation.terminal import (
    console,
    print_comparison,
    print_fit,
    print_note,
)
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.load import EVERYTHING, Columns, load_curves, warn_and_keep
from t5scaling.errors import UserError

FEW = 4  # curves that are printed in full


def fit_table(
    path: str | Path,
    columns: Columns = EVERYTHING,
    law: str | None = None,
    *,
    bounds: str | None = None,
    protocol: str = "rollout",
    as_json: bool = False,
    hold_out: int | None = None,
    fit_below: float | None = None,
    every: bool = False,
    group_by: str = "",
    **options,
) -> list[CurveFit]:
    """Fits each curve of the table and prints laws, intervals, held-out errors and verdicts.

    Args:
      path: see `load`. Rows with x = 0 are a baseline without pretraining, shown but not fitted.
      columns: of a table that has more than two; x of two names for the laws of two sizes.
      law: name of a law or a formula (`laws.formula`), or None: of a study the paper's
        law for its metrics, of a table what predicts unseen sizes best over all its curves
        (`choice_of_law`), of two sizes the multiplicative joint law; "all": every
        law that a curve can carry is compared, and the one that predicts best is fitted.
      bounds: of a formula's coefficients, "alpha=0:2,E=0:".
      protocol: what is fitted and what is held out, one of `protocol.PROTOCOLS`; also of the
        comparison of laws.
      hold_out: how many of the largest sizes are held out, in place of a protocol.
      fit_below: sizes from this one on are held out, in place of a protocol.
      as_json: print the content of fits.json instead of tables.
      every: print each curve in full, however many there are; else more than FEW are a table.
      group_by: names of columns, by commas: a line of that table for each of their values.
      options: delta, residual, worse_counts and interval of `fit.fit_curve`.

    Returns:
      One CurveFit per curve.

    Raises:
      UserError: see `load`; or no curve that can be fitted.
    """
    check_name(law, bounds, columns.sources)
    check_protocol(protocol)
    warnings: list[str] = []
    curves = load_curves(path, columns, warn_and_keep(warnings))
    if fit_below is not None:
        curves = _held_out_from(curves, fit_below, law, protocol, hold_out)
    compared: list[Compared] = []
    left_out: list[str] = []
    if law == "all":
        with working("comparing laws"):
            compared, left_out = comparisons(curves, protocol=protocol, delta=options.get("delta"))
    wanted = laws_of(law, curves, compared, bounds)
    reasons = [reason for *_, reason in wanted]
    shared = {"protocol": protocol, "hold_out": hold_out, **options}
    jobs = [
        (curve, one_law, {"lower_is_better": lower_is_better(curve, one_law), **shared})
        for curve, one_law, _ in wanted
    ]
    results = list(tracked(fit_all(jobs), "curves", len(jobs)))
    if all(result.fit is None for result in results):
        raise UserError(f"{path}: {results[0].note}")
    if as_json:
        record = document(results)
        for one, reason in zip(record["curves"], reasons, strict=True):
            one["law_reason"] = reason
        record["comparisons"] = [
            {"metric": one.label, **comparison_record(one.comparison)} for one in compared
        ]
        record["not_compared"] = left_out
        record["warnings"] = warnings
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return results
    screen = console()
    by = [name for name in group_by.split(",") if name]
    if by or (len(curves) > FEW and not every):
        print_summary(results, screen, by)
    else:
        for result, reason in zip(results, reasons, strict=True):
            print_fit(result, screen, reason)
    for one in compared:
        print_comparison(one.label, one.comparison, screen)
    for sentence in left_out:
        print_note(f"not compared: {sentence}", screen)
    return results


def _held_out_from(
    curves: list[Curve], size: float, law: str | None, protocol: str, hold_out: int | None
) -> list[Curve]:
    """The curves with all points from this (first) size on marked as held out."""
    if hold_out is not None or protocol != "rollout":
        raise UserError(
            "--fit_below, --hold_out and --protocol each say what is held out: give one"
        )
    if law in LAWS and LAWS[law].of_loss:
        raise UserError(
            f"--fit_below: x is a loss for the {LAWS[law].title}, which is checked on smaller "
            "ones; give --hold_out"
        )
    if not any(point.x < size for curve in curves for point in curve.points):
        raise UserError(f"--fit_below={size:g}: no size lies below it")
    return [
        replace(curve, points=tuple(replace(p, held_out=p.x >= size) for p in curve.points))
        for curve in curves
    ]
