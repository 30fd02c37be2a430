"""Results and laws of a study on its page: long tables, folded."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from t5scaling.analysis import sentences
from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.markup import bullets, folded, table, values, word
from t5scaling.analysis.tables import (
    INTERVAL,
    by_place,
    interval,
    metric_name,
    number,
    objective_of,
    place_of,
    size,
)


def overview(curve_fits: Sequence[CurveFit]) -> str:
    """One line per curve: its verdict, and how far the law was off."""
    rows = []
    for this in curve_fits:
        off = "–"
        if this.fit and this.fit.held_out:
            off = f"{this.fit.held_out_sizes[-1].relative_error:+.1%}"
        name = escape(metric_name(this.curve.metric))
        rows.append([name, escape(place_of(this)), word(this), off])
    head = ["metric", "curve", "verdict", "law off at largest D_p"]
    return table(head, rows, html=True, wrap=(1,), numbers=(3,))


def results(curve_fits: Sequence[CurveFit]) -> str:
    """One table per (data, task, pool): D_p down, metrics across."""
    by_task: dict[str, list[str]] = {}
    for place, members in by_place(curve_fits):
        curves = [this.curve for this in members]
        held_out = {
            p.x for t in members if t.fit for p in t.curve.points if p.x not in t.fitted_sizes
        }
        head = ["D_p", *(metric_name(c.metric) for c in curves), "learning rate", "seeds"]
        rows, marks = [], []
        sizes = sorted({p.x for c in curves for p in (*c.baseline, *c.points)})
        for x in sizes:
            cells, rates, seeds = [], {}, set()
            for curve in curves:
                here = [p for p in (*curve.baseline, *curve.points) if p.x == x]
                found = [p.value for p in here]
                rates |= {p.learning_rate: p.at_edge for p in here}
                seeds |= {p.seed for p in here}
                cells.append(number(sum(found) / len(found)) if found else "–")
            rate = ", ".join(f"{r:g}{' *' if edge else ''}" for r, edge in sorted(rates.items()))
            rows.append([size(x) if x else "not pretrained", *cells, rate, values(seeds)])
            marks.append(x in held_out)
        alignment = curves[0].facts.get("alignment")
        score = f", alignment score {alignment:g}" if alignment is not None else ""
        shown = table(head, rows, numbers=range(1, len(curves) + 1), marks=marks)
        by_task.setdefault(curves[0].key["task"], []).append(
            f"<h3>{escape(place)}{score}</h3>{shown}"
        )
    note = "Shaded: held out from the fits. Means over seeds."
    if any(p.at_edge for t in curve_fits for p in (*t.curve.points, *t.curve.baseline)):
        note += " * the smallest or largest learning rate tried there: possibly under-tuned."
    html = [folded(f"{task}: {len(t)} tables", "".join(t)) for task, t in by_task.items()]
    return f'<p class="quiet">{note}</p>' + "".join(html)


def all_rates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cross-entropy of every rate, for those who want to see the choice; folded away."""
    if len({row["learning_rate"] for row in rows}) < 2:
        return ""
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == "cross_entropy":
            place = (
                row["task"], row["pretrain_data"], row["pretrain_tokens"],
                row["finetune_examples"], row["learning_rate"], row["seed"], row["steps"],
            )  # fmt: skip
            found.setdefault(place, {})[row["split"]] = row["value"]
    body = [
        [task, data or "–", size(tokens), f"{pool:,}", f"{rate:g}", str(seed), str(steps),
         number(losses.get("validation")), number(losses.get("test"))]
        for (task, data, tokens, pool, rate, seed, steps), losses in sorted(found.items())
    ]  # fmt: skip
    head = ["task", "pretrained on", "D_p", "pool", "rate", "seed", "step", "validation", "test"]
    shown = table(head, body, numbers=(2, 3, 4, 5, 6, 7, 8))
    return folded("Cross-entropy at every learning rate", shown)


def laws(curve_fits: Sequence[CurveFit]) -> str:
    """What each curve says, its law, and what was held out; folded, by task."""
    by_task: dict[str, list[str]] = {}
    for this in curve_fits:
        head = f"{escape(metric_name(this.curve.metric))}: {escape(place_of(this))} {word(this)}"
        by_task.setdefault(this.curve.key["task"], []).append(
            f"<details><summary>{head}</summary>{_law(this)}</details>"
        )
    return "".join(
        folded(f"{task}: {len(found)} curves", "".join(found))
        for task, found in sorted(by_task.items())
    )


def _law(this: CurveFit) -> str:
    fit, said = this.fit, bullets(sentences.about_curve(this))
    if fit is None:
        return said + f"<p>Not fitted: {escape(this.note)}.</p>"
    meanings = {c.name: c for c in this.law.coefficient_table}
    rows = [
        [name, number(value), interval(low, high), f"{meanings[name].meaning}"]
        for name, (value, low, high) in fit.coefficients.items()
    ]
    html = (
        said
        + f"<p>{this.law.title[0].upper()}{this.law.title[1:]}, "
        + f"<code>{escape(this.law.formula)}</code>, D in {this.curve.unit}; "
        f"{objective_of(fit)}, {'converged' if fit.converged else 'NOT converged'}.</p>"
        + table(["coefficient", "value", INTERVAL, "meaning"], rows, numbers=(1,), wrap=(3,))
    )
    if fit.held_out:
        held = [
            [size(p.x), number(p.value), number(p.predicted), interval(p.low, p.high),
             f"{p.error:+.3g}", f"{p.relative_error:+.1%}", f"{p.log_error:+.3g}"]
            for p in fit.held_out
        ]  # fmt: skip
        names = ["held out: D_p", "measured", "predicted", INTERVAL, "error", "relative", "log"]
        html += table(names, held, numbers=(0, 1, 2, 4, 5, 6))
    return html
