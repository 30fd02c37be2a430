"""Laws for somebody who has only a table, or a directory of runs."""

import json
from pathlib import Path

from t5scaling.analysis.conclusions.choice_of_law import (
    comparisons,
    direction_of,
    families,
    is_known,
    law_of_metric,
)
from t5scaling.analysis.conclusions.curve_fit import CurveFit, comparison_record, document, fit_one
from t5scaling.analysis.fitting.compare import PROTOCOLS
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.presentation.progress import tracked
from t5scaling.analysis.presentation.summary import print_summary
from t5scaling.analysis.presentation.terminal import console, print_comparison, print_fit
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.load import EVERYTHING, Columns, load_curves, warn_and_keep
from t5scaling.errors import UserError, nearest

FEW = 4  # curves that are printed in full


def fit_table(
    path: str | Path,
    columns: Columns = EVERYTHING,
    law: str | None = None,
    *,
    protocol: str = "rollout",
    as_json: bool = False,
    hold_out: int | None = None,
    every: bool = False,
    group_by: str = "",
    **options,
) -> list[CurveFit]:
    """Fits each curve of the table and prints laws, intervals, held-out errors and verdicts.

    Args:
      path: see `load`. Rows with x = 0 are a baseline without pretraining, shown but not fitted.
      columns: of a table that has more than two; x of two names for the laws of two sizes.
      law: name of a law, or None: falling values get the power law with floor, rising ones the
        log-law, two sizes the multiplicative joint law; "all": every law for such values, and
        which of them predicts best.
      protocol: of that comparison, one of `compare.PROTOCOLS`.
      hold_out: how many of the largest sizes are held out; None: all but the 4 smallest.
      as_json: print the content of fits.json instead of tables.
      every: print each curve in full, however many there are; else more than FEW are a table.
      group_by: names of columns, by commas: a line of that table for each of their values.
      options: delta, residual, worse_counts and interval of `fit.fit_curve`.

    Returns:
      One CurveFit per curve and law.

    Raises:
      UserError: see `load`; or no curve that can be fitted.
    """
    if law is not None and law not in (*LAWS, "all"):
        raise UserError(f"law {law!r} is unknown{nearest(law, [*LAWS, 'all'])}")
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r}: unknown{nearest(protocol, PROTOCOLS)}")
    warnings: list[str] = []
    curves = load_curves(path, columns, warn_and_keep(warnings))
    results, reasons = [], []
    for curve in tracked(curves, "curves"):
        for one_law, reason in _laws(law, curve):
            lower = one_law.direction < 0
            if is_known(curve.metric):
                lower = law_of_metric(curve.metric).direction < 0
            results.append(
                fit_one(curve, one_law, lower_is_better=lower, hold_out=hold_out, **options)
            )
            reasons.append(reason)
    if all(result.fit is None for result in results):
        raise UserError(f"{path}: {results[0].note}")
    compared = {}
    if law == "all":
        compared = comparisons(curves, protocol=protocol, delta=options.get("delta"))
    if as_json:
        record = document(results)
        for one, reason in zip(record["curves"], reasons, strict=True):
            one["law_reason"] = reason
        record["comparisons"] = [
            {"metric": metric, **comparison_record(found)} for metric, found in compared.items()
        ]
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
    for metric, found in compared.items():
        print_comparison(metric, found, screen)
    return results


def _laws(name: str | None, curve: Curve) -> list[tuple[Law, str]]:
    """(law, why) for a curve."""
    if name == "all":
        return [(law, "") for law in families(curve)]
    if name is not None:
        return [(LAWS[name], "")]
    if curve.x2_name:
        return [(LAWS["zhang"], f"chosen for {curve.x_name} and {curve.x2_name}")]
    if curve.place.data:
        return [(law_of_metric(curve.metric), "")]
    if direction_of(curve) < 0:
        return [(LAWS["power"], f"chosen because {curve.metric} falls as {curve.x_name} grows")]
    return [(LAWS["log"], f"chosen because {curve.metric} rises with {curve.x_name}")]
