"""What a curve and its law say, and do not say, in sentences."""

import math

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import metric_name, metric_of
from t5scaling.analysis.results.curves import size_name
from t5scaling.analysis.wording import interval, listed, number, size

UNDETERMINED = 10.0  # an interval spanning more than this factor leaves a coefficient open
INTERVAL = f"{LEVEL:.0%} interval"


def about_curve(curve_fit: CurveFit) -> list[str]:
    """The sentences on one curve, most important first."""
    curve, fit, verdict = curve_fit.curve, curve_fit.fit, curve_fit.verdict
    name = metric_name(curve.metric)
    said = [_course(curve_fit)]
    if verdict.shape:
        said.append(f"Verdict: {verdict.word}. It {verdict.shape.meaning} ({verdict.reason}).")
    else:
        said.append(f"No verdict: {verdict.reason}.")
    if fit is None:
        said.append(f"No law was fitted: {curve_fit.note}.")
        return said
    if verdict.shape is Shape.TRENDLESS:
        said.append("A law was fitted all the same (see Laws); its coefficients describe noise.")
        return said
    if fit.held_out:
        last = fit.held_out_sizes[-1]
        change = abs(verdict.change)
        part = f", {abs(last.error) / change:.0%} of the whole change" if change else ""
        said.append(
            f"The {curve_fit.law.title}, fitted to the {len(curve_fit.fitted_sizes)} smallest "
            f"sizes, predicts {number(last.predicted)} ({LEVEL:.0%} interval "
            f"{interval(last.low, last.high)}) at D_p = {size(last.x)}, "
            f"{fit.extrapolation:.2f} decades further; measured: "
            f"{number(last.value)} (off by {last.error:+.3g}, {last.relative_error:+.1%}{part})."
        )
        outside = [p for p in fit.held_out_sizes if not p.inside]
        if outside:
            side = {p.value > p.high for p in outside}
            where = (
                "above" if side == {True} else "below" if side == {False} else "on both sides of"
            )
            said.append(
                f"{len(outside)} of {len(fit.held_out_sizes)} held-out sizes lie {where} the law's "
                "interval: the curve bends in a way that the law does not follow."
            )
    if not fit.converged:
        said.append("The fit did not converge, so its coefficients mean nothing.")
    said += [f"{note[0].upper()}{note[1:]}." for note in fit.at_bound]
    said += sentences_of_coefficients(curve_fit)
    if "D0" in fit.coefficients:
        d0 = fit.coefficients["D0"][0]
        said.append(f"The law predicts a {name} of 0 below D0 = {_size_or_zero(d0)}.")
    return said


def _course(curve_fit: CurveFit) -> str:
    """From where to where the metric goes."""
    curve = curve_fit.curve
    ends = []
    for x in (min(p.x for p in curve.points), max(p.x for p in curve.points)):
        values = [p.value for p in curve.points if p.x == x]
        ends.append((size(x), number(sum(values) / len(values))))
    (low_x, first), (high_x, last) = ends
    unit = metric_of(curve.metric).unit
    unit = f" {unit}" if unit else ""
    sentence = (
        f"{metric_name(curve.metric)} goes from {first} at D_p = {low_x} to {last}{unit} at "
        f"{high_x}"
    )
    if curve.baseline_value is None:
        return sentence + "; there is no run without pretraining to compare with."
    return sentence + f"; without pretraining it is {number(curve.baseline_value)}."


def _size_or_zero(value: float) -> str:
    return size(round(value)) + " tokens" if value >= 1 else "1 token (no such limit is visible)"


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


def sentences_of_coefficients(curve_fit: CurveFit) -> list[str]:
    """What the coefficients are worth, if not all that they seem."""
    fit = curve_fit.fit
    open_ones = undetermined(fit) if fit else []
    if fit is None or not open_ones:
        return []
    value, *slopes = fit.determined.items()
    at = " and ".join(size(float(f"{c:.3g}")) for c in fit.centre)
    rest = [name for name in fit.law.identified if name not in open_ones]
    known = f"{', '.join(rest)}, and " if rest else ""
    sure = f"the value at {size_name(curve_fit.curve)} = {at}, {number(value[1][0])} "
    sure += f"({interval(*value[1][1:])}), and "
    sure += ", ".join(
        f"the {name} of its log there, {number(v)} ({interval(low, high)})"
        for name, (v, low, high) in slopes
    )
    return [
        f"These points do not determine {listed(open_ones)} one by one. They do determine {known}"
        f"{sure}. Use the curve where it was measured, not those numbers."
    ]


def place_of(curve_fit: CurveFit) -> str:
    """Where a study's curve was measured, in words."""
    place = curve_fit.curve.place
    return f"{place.task}, pool of {place.pool:,} examples, pretrained on {place.data}"
