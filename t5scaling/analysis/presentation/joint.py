"""Advice on a table of two sizes, as text and as data."""

from typing import Any

from rich.console import Console
from rich.text import Text

from t5scaling.analysis.conclusions.frontier import Estimate
from t5scaling.analysis.conclusions.joint import JointAdvice
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.sentences import INTERVAL, sentences_of_coefficients
from t5scaling.analysis.presentation.terminal import coefficients
from t5scaling.analysis.wording import interval, number, open_size, size


def show_joint(advice: JointAdvice, screen: Console) -> None:
    """The sentences on one curve, below its name and its law."""
    curve, law = advice.curve_fit.curve, advice.curve_fit.law
    label = " · ".join(filter(None, [metric_name(curve.metric), curve.place.label]))
    screen.print(Text(label, style="bold"))
    screen.print(f"{law.title}  {law.formula}")
    for sentence in sentences_of(advice):
        screen.print(f"- {sentence}")
    screen.print()


def sentences_of(advice: JointAdvice) -> list[str]:
    """What it says, most important first."""
    curve_fit, fit = advice.curve_fit, advice.curve_fit.fit
    if fit is None or advice.forecast is None or advice.dearest is None:
        return [f"No law was fitted: {curve_fit.note}."]
    curve = curve_fit.curve
    names = (curve.x_name, curve.x2_name or "")
    metric = metric_name(curve.metric)
    said = [f"Fitted to all {len(fit.y)} points: {coefficients(fit)}."]
    if not fit.converged:
        said.append("The fit did not converge: do not use its numbers.")
    said += [f"{note[0].upper()}{note[1:]}." for note in fit.notes]
    said += sentences_of_coefficients(curve_fit)
    error = advice.held_out_error
    said.append(
        "The law is not checked: without the largest sizes there are too few points to fit."
        if error is None
        else f"Fitted without the points at the largest sizes, it predicts them with an error of "
        f"{error:.1%} (RMS)."
    )
    there = advice.forecast
    said.append(
        f"At {_place(names, there.place)} it expects {metric} of {number(there.value)} ({INTERVAL} "
        f"{interval(there.low, there.high)}), {there.distance(names)}."
    )
    said.append(
        f"From the dearest measured point, {_place(names, advice.dearest)}, "
        + " and ".join(
            f"twice the {one.size} changes {metric} by {_signed(one.change.value)} "
            f"({_signed(one.change.low)} to {_signed(one.change.high)})"
            for one in advice.doublings
        )
        + "."
    )
    best = advice.optimum
    if best is not None:
        first, second = best.sizes
        said.append(
            f"A budget of {best.compute:.3g} operations is split best at {names[0]} = "
            f"{size(first.value)} ({_sizes(first)}) and {names[1]} = {size(second.value)} "
            f"({_sizes(second)}), {number(best.ratio.value)} ({_ends(best.ratio)}) {names[1]} per "
            f"{names[0]}, for {metric} of {number(best.value.value)} ({_ends(best.value)}). The "
            f"best {names[0]} grows as the budget to the power {best.exponent.value:.3f} "
            f"({_ends(best.exponent)})."
        )
    if advice.telling is not None:
        said.append(
            f"Next run: of those no dearer than that point, {_place(names, advice.telling.place)} "
            f"tells most about the forecast; its law's interval narrows from "
            f"±{advice.telling.before:.2%} to ±{advice.telling.after:.2%}."
        )
    return said


def _place(names: tuple[str, ...], place: tuple[float, ...]) -> str:
    rounded = (float(f"{x:.4g}") for x in place)
    return ", ".join(f"{name} = {size(x)}" for name, x in zip(names, rounded, strict=True))


def _signed(value: float) -> str:
    return f"{value:+.3g}"


def _ends(found: Estimate) -> str:
    return interval(found.low, found.high)


def _sizes(found: Estimate) -> str:
    return f"{open_size(found.low)} to {open_size(found.high)}"


def record(advice: JointAdvice) -> dict[str, Any]:
    """Fields for `advise --json`, to be made plain."""
    curve = advice.curve_fit.curve
    return {
        "place": curve.place,
        "metric": curve.metric,
        "x": curve.x_name,
        "x2": curve.x2_name,
        "law": advice.curve_fit.law,
        "note": advice.curve_fit.note,
        "held_out_rms_log_error": advice.held_out_error,
        "dearest": advice.dearest,
        "doublings": [{"size": one.size, **one.change.record} for one in advice.doublings],
        "forecast": advice.forecast and advice.forecast.record,
        "optimum": advice.optimum and advice.optimum.record,
        "next_run": advice.telling,
        "sentences": sentences_of(advice),
    }
