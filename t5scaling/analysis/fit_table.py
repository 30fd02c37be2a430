"""Laws for somebody who has only a table, or a directory of runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5scaling.analysis.compare import PROTOCOLS, Comparison, compare
from t5scaling.analysis.curve_fit import CurveFit, comparison_record, document, fit_one
from t5scaling.analysis.curves import Curve
from t5scaling.analysis.law import Law
from t5scaling.analysis.laws import LAWS, LOWER_IS_BETTER, law_of_metric
from t5scaling.analysis.load import EVERYTHING, Columns, load_curves
from t5scaling.analysis.tables import console, print_comparison, print_fit
from t5scaling.analysis.verdict import RESOLUTION
from t5scaling.errors import UserError, nearest


def fit_table(
    path: str | Path,
    columns: Columns = EVERYTHING,
    law: str | None = None,
    *,
    protocol: str = "rollout",
    as_json: bool = False,
    hold_out: int | None = None,
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
    curves = load_curves(path, columns)
    results, reasons = [], []
    for curve in curves:
        for one_law, reason in _laws(law, curve):
            lower = one_law.direction < 0
            if _known(curve.metric):
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
        record["comparisons"] = [
            {"metric": metric, **comparison_record(found)} for metric, found in compared.items()
        ]
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return results
    screen = console()
    for result, reason in zip(results, reasons, strict=True):
        print_fit(result, screen, reason)
    for metric, found in compared.items():
        print_comparison(metric, found, screen)
    return results


def families(curve: Curve) -> list[Law]:
    """The laws of such curves: of as many sizes, and going the same way."""
    if curve.x2_name:
        return [LAWS["zhang"], LAWS["zhang-additive"], LAWS["kaplan"]]
    direction = direction_of(curve)
    return [
        law for law in LAWS.values()
        if law.direction == direction and law.sizes == ("D",) and not law.of_loss
    ]  # fmt: skip


def comparisons(
    curves: Sequence[Curve], *, protocol: str, delta: float | None = None
) -> dict[str, Comparison]:
    """One for the rising and one for the falling curves of each metric, where there are enough
    sizes to compare two families. Keys say which."""
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.metric, direction_of(curve)), []).append(curve)
    found = {}
    for (metric, direction), members in groups.items():
        points = [curve.arrays for curve in members]
        most = max(len({p.x for p in curve.points}) for curve in members)
        laws = families(members[0])
        if not members[0].x2_name:
            laws = [law for law in laws if law.num_parameters + 2 <= most]
        if len(laws) < 2 or not all((values > 0).all() for _, values in points):
            continue
        both = sum(name == metric for name, _ in groups) > 1
        label = f"{metric} ({'rising' if direction > 0 else 'falling'})" if both else metric
        try:
            found[label] = compare(
                points, laws, protocol=protocol, delta=delta, with_intervals=True
            )
        except UserError:
            if len(groups) == 1:
                raise
    return found


def law_for(curve: Curve) -> Law:
    """The paper's law for values that go this way."""
    return LAWS["power" if direction_of(curve) < 0 else "log"]


def _laws(name: str | None, curve: Curve) -> list[tuple[Law, str]]:
    """(law, why) for a curve."""
    if name == "all":
        return [(law, "") for law in families(curve)]
    if name is not None:
        return [(LAWS[name], "")]
    if curve.x2_name:
        return [(LAWS["zhang"], f"chosen for {curve.x_name} and {curve.x2_name}")]
    if "pretrain_data" in curve.key:
        return [(law_of_metric(curve.metric), "")]
    if direction_of(curve) < 0:
        return [(LAWS["power"], f"chosen because {curve.metric} falls as {curve.x_name} grows")]
    return [(LAWS["log"], f"chosen because {curve.metric} rises with {curve.x_name}")]


def direction_of(curve: Curve) -> int:
    """-1 for values that fall with x, else 1."""
    if _known(curve.metric):
        return law_of_metric(curve.metric).direction
    log_x = np.log([p.x for p in curve.points])
    y = np.array([p.value for p in curve.points])
    return -1 if (log_x - log_x.mean()) @ y < 0 else 1


def _known(metric: str) -> bool:
    return metric in LOWER_IS_BETTER or metric in RESOLUTION
