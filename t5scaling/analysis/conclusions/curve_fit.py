"""A curve with its law and its verdict, and their record in fits.json.

fits.json: {"software", "level", "curves": [...]}; each curve has its key columns, "metric",
"x" (name of the x column), "facts", "points" (x, value, learning_rate, seed, step, at_edge, run,
held_out), "baseline" (value or null), "law", "formula", "fit" (null if there is none: "note" says
why) and "verdict". A fit has "coefficients" (value, low, high, meaning, unit; null where a number
overflows), "huber_delta", "objective" (sum of Huber losses of log values), "converged",
"at_bound", "determined" (the law's value and slope in logs at "centre"), "interval", "residual",
"worse_counts", "noise" (standard deviation of a log value, degrees of freedom), "held_out" (x,
value, predicted, low, high, error, relative_error, log_error, inside), "held_out_rms_log_error" and
"extrapolation_decades". Numbers have 10 significant digits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import t5scaling
from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.shapes import Verdict, judge
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.compare import Comparison
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.metrics import LOSS, LOWER_IS_BETTER, resolution_of
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import plain as _number
from t5scaling.errors import UserError

FILE = "fits.json"


@dataclass(frozen=True)
class CurveFit:
    """fit: None if the law could not be fitted; `note` then says why."""

    curve: Curve
    law: Law
    fit: Fit | None
    note: str
    verdict: Verdict

    @property
    def fitted_sizes(self) -> set[float]:
        return set(np.atleast_2d(self.fit.x)[0].tolist()) if self.fit else set()


def fit_one(
    curve: Curve,
    law: Law | None = None,
    *,
    lower_is_better: bool | None = None,
    interval: str = "noise",
    **options: Any,
) -> CurveFit:
    """Fits and judges a curve; law None: the one for its metric. Never raises for bad points.

    options: hold_out, delta, residual and worse_counts of `fit.fit_curve`.
    """
    law = law or law_of_metric(curve.metric)
    if lower_is_better is None:
        lower_is_better = curve.metric in LOWER_IS_BETTER
    x, y = curve.arrays
    seeds = [point.seed for point in curve.points]
    errors = [point.error for point in curve.points]
    intervals.check_kind(interval, None if None in seeds else seeds)
    fit, note = None, ""
    try:
        fit = fit_curve(
            law, x, y, interval=interval, x_name=curve.x_name, y_name=curve.metric,
            seeds=None if None in seeds else seeds, errors=None if None in errors else errors,
            **options,
        )  # fmt: skip
    except UserError as error:
        note = str(error)
    if curve.x2_name:
        noise = fit.sigma * float(y.mean()) if fit else 0.0
        verdict = Verdict(None, "the shapes are those of curves of one size", 0.0, noise)
    else:
        verdict = judge(
            x, y, lower_is_better=lower_is_better, resolution=resolution_of(curve.metric), fit=fit,
            seed_noise=curve.facts.get("seed_noise"),
        )  # fmt: skip
    return CurveFit(curve, law, fit, note, verdict)


def document(curve_fits: Iterable[CurveFit]) -> dict[str, Any]:
    """The content of fits.json."""
    return {
        "software": f"t5scaling {t5scaling.__version__}",
        "level": LEVEL,
        "curves": [_record(curve_fit) for curve_fit in curve_fits],
    }


def _record(curve_fit: CurveFit) -> dict[str, Any]:
    curve = curve_fit.curve
    fitted = curve_fit.fitted_sizes
    return {
        **curve.place.key,
        "metric": curve.metric,
        "x": curve.x_name,
        **({"x2": curve.x2_name} if curve.x2_name else {}),
        "facts": dict(curve.facts),
        "points": [
            {
                **{k: _number(v) for k, v in asdict(point).items() if v not in (None, "")},
                "held_out": bool(fitted) and point.x not in fitted,
            }
            for point in curve.points
        ],
        "baseline": _number(curve.baseline_value),
        "law": curve_fit.law.name,
        "formula": curve_fit.law.formula,
        "fit": _fit_record(curve_fit.fit) if curve_fit.fit else None,
        "note": curve_fit.note,
        "verdict": {
            "word": curve_fit.verdict.shape,
            "reason": curve_fit.verdict.reason,
            "change": _number(curve_fit.verdict.change),
            "noise": _number(curve_fit.verdict.noise),
            "noise_df": curve_fit.verdict.noise_df,
        },
    }


def _fit_record(fit: Fit) -> dict[str, Any]:
    table = {c.name: c for c in fit.law.coefficient_table}
    return {
        "coefficients": {
            name: {
                "value": _number(value),
                "low": _number(low),
                "high": _number(high),
                "meaning": table[name].meaning,
                "unit": table[name].unit,
            }
            for name, (value, low, high) in fit.coefficients.items()
        },
        "determined": {
            name: dict(zip(("value", "low", "high"), map(_number, numbers), strict=True))
            for name, numbers in fit.determined.items()
        },
        "centre": [_number(float(size)) for size in fit.centre],
        "interval": fit.interval,
        "residual": fit.problem.residual,
        "worse_counts": fit.problem.worse_counts,
        "huber_delta": _number(fit.delta),
        "objective": _number(fit.objective),
        "converged": fit.converged,
        "at_bound": list(fit.at_bound),
        "noise": {"log_sd": _number(fit.sigma), "degrees_of_freedom": fit.noise_df},
        "held_out": [
            {
                **{k: _number(v) for k, v in asdict(point).items() if v is not None},
                "error": _number(point.error),
                "relative_error": _number(point.relative_error),
                "log_error": _number(point.log_error),
                "inside": point.inside,
            }
            for point in fit.held_out
        ],
        "held_out_rms_log_error": _number(fit.held_out_error),
        "extrapolation_decades": _number(fit.extrapolation),
    }


def comparison_record(found: Comparison) -> dict[str, Any]:
    """Families by rising error on sizes that they were not fitted to."""
    return {
        "protocol": found.protocol,
        "winner": found.winner.name if found.winner else None,
        "p_value": _number(found.p_value),
        "sentence": found.sentence,
        "warnings": found.warnings,
        "families": [
            {
                "law": family.law.name,
                "rms_log_error": _number(family.error),
                "relative_error": _number(family.relative_error),
                "bias": _number(family.bias),
                "coverage": _number(family.coverage),
                "aicc": _number(family.aicc),
                "predictions": [
                    {k: _number(v) for k, v in asdict(p).items() if v is not None}
                    for p in family.predictions
                ],
            }
            for family in found.families
        ],
    }


def by_place(curve_fits: Sequence[CurveFit]) -> list[list[CurveFit]]:
    """Curves of a study grouped by everything but the metric; cross-entropy first."""
    groups: dict[Place, list[CurveFit]] = {}
    for curve_fit in curve_fits:
        groups.setdefault(curve_fit.curve.place, []).append(curve_fit)
    return [
        sorted(members, key=lambda t: (t.curve.metric != LOSS, t.curve.metric))
        for _, members in sorted(groups.items(), key=lambda group: tuple(group[0].key.values()))
    ]
