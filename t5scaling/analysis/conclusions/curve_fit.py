"""A curve with its law and its verdict, and their record in fits.json.

fits.json: {"software", "level", "curves": [...]}; each curve has its key columns, "metric", "x"
(name of the x column; "x2", "sources": of several), "facts", "points" (x, value, learning_rate,
seed, step, at_edge, run, held_out; "x2", "parts": tokens of each source), "baseline" (value or
null), "law", "formula", "fit" (null if there is none: "note" says why), "check" and "verdict". A
fit has "coefficients" (value, low, high, meaning, unit; null where a number overflows),
"huber_delta", "objective" (sum of Huber losses of log values), "converged", "at_bound",
"determined" (the law's value and slope in logs at "centre"), "interval", "residual",
"worse_counts", "noise" (standard deviation of a log value, degrees of freedom, and "notes" in words
where it is not independent and even), "held_out" (x,
value, predicted, low, high, error, relative_error, log_error, inside), "held_out_rms_log_error" and
"extrapolation_decades". "check" says how the law predicts points that it was not fitted to: "kind"
("rollout": each size from those before it; "held out"), "rms_log_error" and "predictions" (k sizes
fitted, x, decades beyond them, measured, predicted, low, high, ...). Numbers have 10 significant
digits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import t5scaling
from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.shapes import Verdict, judge
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.compare import Comparison
from t5scaling.analysis.fitting.fit import Fit, fit_curve
from t5scaling.analysis.fitting.protocol import held_out_by
from t5scaling.analysis.fitting.rollout import Check, Prediction, predictions
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.metrics import LOSS, LOWER_IS_BETTER, highest_of, resolution_of
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import plain as _number
from t5scaling.errors import UserError

FILE = "fits.json"


@dataclass(frozen=True)
class CurveFit:
    """fit: None if the law could not be fitted; `note` then says why. check: how the law predicts
    what it was not fitted to."""

    curve: Curve
    law: Law
    fit: Fit | None
    note: str
    verdict: Verdict
    check: Check = field(default_factory=Check)

    @property
    def fitted_sizes(self) -> set[float]:
        return set(self.law.main_size(self.fit.x).tolist()) if self.fit else set()

    def held_out(self, point: Point) -> bool:
        """Whether the law was not fitted to a point of the curve."""
        held = self.fit.held_out if self.fit else ()
        return any((p.x, p.x2, p.value) == (point.x, point.x2, point.value) for p in held)

    @property
    def highest(self) -> float:
        """The end of the metric's scale, inf without one."""
        return highest_of(self.curve.metric, [p.value for p in self.curve.points])

    def leaves_scale(self, x: float) -> bool:
        """Whether the law's own value at x lies beyond the end of the metric's scale."""
        return self.fit is not None and float(self.fit.predict(np.array([x]))[0]) > self.highest

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The law's value at x, cut at the end of the metric's scale; there must be a fit."""
        return np.minimum(_of(self.fit).predict(x), self.highest)

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the interval for a new measurement at x, cut at the end of the scale."""
        low, high = _of(self.fit).band(x)
        return np.minimum(low, self.highest), np.minimum(high, self.highest)


def _of(fit: Fit | None) -> Fit:
    if fit is None:
        raise ValueError("the law of this curve could not be fitted")
    return fit


def fit_one(
    curve: Curve,
    law: Law | None = None,
    *,
    lower_is_better: bool | None = None,
    interval: str = "noise",
    protocol: str = "rollout",
    hold_out: int | None = None,
    **options: Any,
) -> CurveFit:
    """Fits, checks and judges a curve; law None: the one for its metric. Never raises for bad
    points.

    Points that are marked as held out are held out in every protocol, but not where `hold_out` is
    given.

    Args:
      protocol: one of `protocol.PROTOCOLS`.
      hold_out: how many of the largest sizes are held out, whatever the protocol says.
      options: delta, residual and worse_counts of `fit.fit_curve`.
    """
    law = law or law_of_metric(curve.metric)
    if lower_is_better is None:
        lower_is_better = curve.metric in LOWER_IS_BETTER
    x, y = curve.arrays
    seeds, errors = curve.seeds, curve.errors
    intervals.check_kind(interval, seeds)
    held_out = np.array([point.held_out for point in curve.points])
    if hold_out is not None or not held_out.any():
        held_out = held_out_by(law, x, protocol, hold_out)
    fit, note, check = None, "", Check()
    try:
        fit = fit_curve(
            law, x, y, interval=interval, x_name=curve.x_name, y_name=curve.metric, seeds=seeds,
            errors=errors, held_out=held_out, **options,
        )  # fmt: skip
        check = _check(fit, law, x, y, errors=errors, **options)
    except UserError as error:
        note = str(error)
    if curve.x2_name or curve.sources:
        noise = fit.sigma * float(y.mean()) if fit else 0.0
        verdict = Verdict(None, "the shapes are those of curves of one size", 0.0, noise)
    else:
        verdict = judge(
            x, y, lower_is_better=lower_is_better, resolution=resolution_of(curve.metric),
            check=check.predictions, seed_noise=curve.facts.get("seed_noise"),
        )  # fmt: skip
    return CurveFit(curve, law, fit, note, verdict, check)


def _check(fit: Fit, law: Law, x: np.ndarray, y: np.ndarray, **options: Any) -> Check:
    """The held-out points as predictions, or a rollout where none are held out."""
    if not fit.held_out:
        return Check(tuple(predictions(law, x, y, **options)))
    main = law.main_size(fit.x)
    edge = float(main.min() if law.of_loss else main.max())
    last = float(fit.y[main == edge].mean()) if len(law.sizes) == 1 else math.nan
    places = np.unique(np.atleast_2d(fit.x), axis=1).shape[1]
    found = [
        Prediction(
            curve=0, k=places, x=p.x, decades=abs(math.log10(p.x / edge)), measured=p.value,
            predicted=p.predicted, low=p.low, high=p.high, converged=fit.converged, x2=p.x2,
            last=last,
        )
        for p in fit.held_out_sizes
    ]  # fmt: skip
    return Check(tuple(sorted(found, key=lambda p: -p.x if law.of_loss else p.x)), rollout=False)


def document(curve_fits: Iterable[CurveFit]) -> dict[str, Any]:
    """The content of fits.json."""
    return {
        "software": f"t5scaling {t5scaling.__version__}",
        "level": LEVEL,
        "curves": [_record(curve_fit) for curve_fit in curve_fits],
    }


def _record(curve_fit: CurveFit) -> dict[str, Any]:
    curve = curve_fit.curve
    return {
        **curve.place.key,
        "metric": curve.metric,
        "x": curve.x_name,
        **({"x2": curve.x2_name} if curve.x2_name else {}),
        **({"sources": list(curve.sources)} if curve.sources else {}),
        "facts": dict(curve.facts),
        "points": [
            {
                **{k: _number(v) for k, v in asdict(point).items() if v not in (None, "", ())},
                "held_out": curve_fit.held_out(point),
            }
            for point in curve.points
        ],
        "baseline": _number(curve.baseline_value),
        "law": curve_fit.law.name,
        "formula": curve_fit.law.formula,
        "fit": _fit_record(curve_fit.fit) if curve_fit.fit else None,
        "note": curve_fit.note,
        "check": _check_record(curve_fit.check),
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
        "noise": {
            "log_sd": _number(fit.sigma),
            "degrees_of_freedom": fit.noise_df,
            "notes": list(fit.noise.notes),
        },
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


def _check_record(check: Check) -> dict[str, Any]:
    return {
        "kind": "rollout" if check.rollout else "held out",
        "rms_log_error": _number(check.error),
        "predictions": [
            {
                **_prediction(p),
                "relative_error": _number(p.relative_error),
                "log_error": _number(p.log_error),
                "inside": p.inside,
            }
            for p in check.predictions
        ],
    }


def _prediction(p: Prediction) -> dict[str, Any]:
    numbers = {
        "k": p.k, "x": p.x, "decades": p.decades, "measured": p.measured,
        "predicted": p.predicted, "low": p.low, "high": p.high, "converged": p.converged,
    }  # fmt: skip
    if p.x2 is not None:
        numbers["x2"] = p.x2
    return {name: _number(value) for name, value in numbers.items()}


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
                "predictions": [{"curve": p.curve, **_prediction(p)} for p in family.predictions],
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
