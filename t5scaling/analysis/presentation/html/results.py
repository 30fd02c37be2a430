"""Results and laws of a study on its page: long tables, folded."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from t5scaling.analysis.conclusions.curve_fit import CurveFit, by_place
from t5scaling.analysis.conclusions.step_choice import StepChoice
from t5scaling.analysis.metrics import LOSS, metric_name
from t5scaling.analysis.presentation.html.render import Table, render, shape_badge
from t5scaling.analysis.presentation.sentences import (
    INTERVAL,
    about_curve,
    objective_of,
    place_of,
)
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.rates import AT_EDGE
from t5scaling.analysis.wording import capitalised, interval, number, size, values


def results(
    curve_fits: Sequence[CurveFit],
    rows: Sequence[Mapping[str, Any]],
    steps: Sequence[StepChoice],
) -> Markup:
    """One table per (data, task, pool), cross-entropy at every learning rate, and scores by the
    step that is counted."""
    by_task: dict[str, list[tuple[str, Table]]] = {}
    for members in by_place(curve_fits):
        curve = members[0].curve
        alignment = curve.facts.get("alignment")
        score = f", alignment score {alignment:g}" if alignment is not None else ""
        entry = f"{place_of(members[0])}{score}", _measurements(members)
        by_task.setdefault(str(curve.place.task), []).append(entry)
    note = "Shaded: held out from the fits. Means over seeds."
    if any(p.at_edge for t in curve_fits for p in (*t.curve.points, *t.curve.baseline)):
        note += f" * {AT_EDGE}."
    places = {(one.curve.place, one.curve.metric): place_of(one) for one in curve_fits}
    return render(
        "results.html",
        note=note,
        tasks=by_task.items(),
        rates=_all_rates(rows),
        steps=_by_step(steps, places),
    )


def _measurements(members: Sequence[CurveFit]) -> Table:
    """D_p down, metrics across."""
    curves = [curve_fit.curve for curve_fit in members]
    held_out = {p.x for t in members for p in t.curve.points if t.held_out(p)}
    head = ["D_p", *(metric_name(c.metric) for c in curves), "learning rate", "seeds"]
    rows, marks = [], []
    for x in sorted({p.x for c in curves for p in (*c.baseline, *c.points)}):
        cells, rates, seeds = [], {}, set()
        for curve in curves:
            here = [p for p in (*curve.baseline, *curve.points) if p.x == x]
            found = [p.value for p in here]
            rates |= {p.learning_rate: p.at_edge for p in here if p.learning_rate is not None}
            seeds |= {p.seed for p in here}
            cells.append(number(sum(found) / len(found)) if found else "–")
        rate = ", ".join(f"{r:g}{' *' if edge else ''}" for r, edge in sorted(rates.items()))
        rows.append([size(x) if x else "not pretrained", *cells, rate, values(seeds)])
        marks.append(x in held_out)
    return Table(head, rows, numbers=range(1, len(curves) + 1), marks=marks)


def _all_rates(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Cross-entropy of every rate, for those who want to see the choice; None for one rate."""
    if len({row["learning_rate"] for row in rows}) < 2:
        return None
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == LOSS:
            place = (
                row["task"], row["pretrain_data"], row["pretrain_tokens"],
                row["finetune_examples"], row["learning_rate"] or 0.0, row["seed"], row["steps"],
            )  # fmt: skip
            found.setdefault(place, {})[row["split"]] = row["value"]
    body = [
        [task, data or "–", size(tokens), f"{pool:,}", f"{rate:g}" if rate else "–",
         str(seed), str(steps),
         number(losses.get("validation")), number(losses.get("test"))]
        for (task, data, tokens, pool, rate, seed, steps), losses in sorted(found.items())
    ]  # fmt: skip
    head = ["task", "pretrained on", "D_p", "pool", "rate", "seed", "step", "validation", "test"]
    return Table(head, body, numbers=(2, 3, 4, 5, 6, 7, 8))


def _by_step(
    choices: Sequence[StepChoice], places: Mapping[tuple[Place, str], str]
) -> Table | None:
    """Scores against D_p: as they count, at each rate, and where cross-entropy counts."""
    body = []
    for choice in choices:
        for way in choice.ways:
            rate = "chosen" if way.learning_rate is None else f"{way.learning_rate:g}"
            body.append([
                metric_name(choice.metric), places[choice.place, choice.metric], rate,
                "last" if way.at_last_step else "of lowest loss", number(way.not_pretrained),
                *(f"{number(end.value)} at {size(end.x)}" for end in (way.smallest, way.largest)),
                f"{way.slope:+.2f}", interval(way.low, way.high),
            ])  # fmt: skip
    head = [
        "metric", "curve", "rate", "step", "not pretrained", "smallest D_p", "largest D_p",
        "ten times D_p adds", INTERVAL,
    ]  # fmt: skip
    return Table(head, body, numbers=(2, 4, 5, 6, 7), wrap=(1,)) if body else None


def laws(curve_fits: Sequence[CurveFit]) -> Markup:
    """What each curve says, its law, and what was held out; folded, by task."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for curve_fit in curve_fits:
        by_task.setdefault(str(curve_fit.curve.place.task), []).append(_law(curve_fit))
    return render("laws.html", overview=_overview(curve_fits), tasks=sorted(by_task.items()))


def _overview(curve_fits: Sequence[CurveFit]) -> Table:
    """One line per curve: its shape, and how far the law was off."""
    rows = []
    for curve_fit in curve_fits:
        off = "–"
        if curve_fit.check.predictions:
            off = f"{curve_fit.check.farthest.relative_error:+.1%}"
        name = metric_name(curve_fit.curve.metric)
        rows.append([name, place_of(curve_fit), shape_badge(curve_fit.verdict), off])
    return Table(["metric", "curve", "verdict", "law off at largest D_p, unseen"], rows, (3,), (1,))


def _law(curve_fit: CurveFit) -> dict[str, Any]:
    fit = curve_fit.fit
    shown: dict[str, Any] = {
        "title": f"{metric_name(curve_fit.curve.metric)}: {place_of(curve_fit)}",
        "badge": shape_badge(curve_fit.verdict),
        "sentences": about_curve(curve_fit),
        "note": curve_fit.note,
        "coefficients": None,
        "held_out": None,
    }
    if fit is None:
        return shown
    meanings = {c.name: c.meaning for c in curve_fit.law.coefficient_table}
    rows = [
        [name, number(value), interval(low, high), meanings[name]]
        for name, (value, low, high) in fit.coefficients.items()
    ]
    shown |= {
        "law": capitalised(curve_fit.law.title),
        "unit": curve_fit.curve.unit,
        "formula": curve_fit.law.formula,
        "objective": f"{objective_of(fit)}, {'converged' if fit.converged else 'NOT converged'}",
        "coefficients": Table(["coefficient", "value", INTERVAL, "meaning"], rows, (1,), (3,)),
    }
    check = curve_fit.check
    if check.predictions:
        held = [
            [size(p.x), str(p.k), number(p.measured), number(p.predicted), interval(p.low, p.high),
             f"{p.error:+.3g}", f"{p.relative_error:+.1%}", f"{p.log_error:+.3g}"]
            for p in check.predictions
        ]  # fmt: skip
        first = "predicted: D_p" if check.rollout else "held out: D_p"
        names = [
            first,
            "fitted sizes",
            "measured",
            "predicted",
            INTERVAL,
            "error",
            "relative",
            "log",
        ]
        shown["held_out"] = Table(names, held, (0, 1, 2, 3, 5, 6, 7))
    return shown
