"""report.html: one self-contained page. No script, no request to anywhere; fits a phone."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import t5scaling
from t5scaling import storage
from t5scaling.analysis import sentences
from t5scaling.analysis.advise import (
    Advice,
    label_of,
    lines_of,
    sentence_of_choice,
    sentence_of_exchange,
    sentence_of_next,
)
from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.figures import StudyFigure
from t5scaling.analysis.fit import FITTED_SIZES
from t5scaling.analysis.harvest import RunRecord
from t5scaling.analysis.intervals import LEVEL
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
from t5scaling.analysis.verdict import BREAKTHROUGH_SHARE, LAW_TOLERANCE, NOISY_SHARE

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 52rem;
  background: #fff; color: #1a1a1a;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .2rem 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; overflow-wrap: anywhere; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
.quiet { color: #595959; font-size: .875rem; }
.warning { background: #fff6e0; border-left: 4px solid #e69f00; padding: .1rem .9rem;
  margin: 1rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #bbb; white-space: normal;
  vertical-align: bottom; }
.number { text-align: right; } td.wrap { white-space: normal; min-width: 9rem; }
tr.heldout td { background: #f4f6f8; }
figure { margin: 1rem 0 1.6rem; } figure img { width: 100%; max-width: 40rem; height: auto; }
figcaption { font-size: .875rem; color: #404040; }
.word { font-weight: 600; padding: 0 .4rem; border-radius: .25rem; background: #e6e6e6; }
.word.predictable { background: #cfe8dd; } .word.inverse, .word.nonmonotonic, .word.unpredicted,
.word.breakthrough { background: #fbdcc6; }
code { font-size: .85em; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""


def build(
    runs: Sequence[RunRecord],
    rows: Sequence[Mapping[str, Any]],
    curve_fits: Sequence[CurveFit],
    figures: Sequence[StudyFigure],
    advice: Advice | None,
) -> str:
    """The page as text."""
    study = curve_fits[0].curve.facts["study"]
    parts = [
        f"<h1>Study “{escape(str(study))}”: what pretraining buys</h1>",
        f'<p class="quiet">t5scaling {escape(t5scaling.__version__)}. Everything here is measured '
        "on the test split; learning rates were chosen on the validation split.</p>",
        '<div class="warning">'
        + "".join(f"<p>{escape(s)}</p>" for s in sentences.about_study(runs, curve_fits))
        + "</div>",
        "<h2>In short</h2>",
        _in_short(curve_fits),
        "<h2>What was run</h2>",
        _what_was_run(runs, rows),
        "<h2>Figures and what they say</h2>",
        *(_figure(figure) for figure in figures if figure.curve_fits),
        _advice(advice, [figure for figure in figures if not figure.curve_fits]),
        "<h2>Results</h2>",
        _results(curve_fits),
        _all_rates(rows),
        "<h2>Laws</h2>",
        _laws(curve_fits),
        "<h2>How to read this</h2>",
        _method(),
        _signatures(curve_fits),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(str(study))}: scaling report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"
    )


def _in_short(curve_fits: Sequence[CurveFit]) -> str:
    rows = []
    for this in curve_fits:
        fit = this.fit
        off = "–"
        if fit and fit.held_out:
            last = fit.held_out_sizes[-1]
            off = f"{last.relative_error:+.1%}"
        rows.append(
            [
                _metric(this),
                escape(place_of(this)),
                _word(this),
                off,
            ]
        )
    head = ["metric", "curve", "verdict", "law off at largest D_p"]
    return _table(head, rows, html=True, wrap=(1,), numbers=(3,))


def _what_was_run(runs: Sequence[RunRecord], rows: Sequence[Mapping[str, Any]]) -> str:
    done = [run for run in runs if run.done]
    failed = [run for run in runs if not run.done and run.failure is not None]
    unfinished = len(runs) - len(done) - len(failed)
    finetuned = [run for run in done if run["kind"] == "finetune"]
    items = []
    for model in sorted({(run["model"], run["parameters"]) for run in finetuned}):
        items.append(f"Model {model[0]}: {model[1]:,} parameters.")
    data: dict[str, set[int]] = {}
    shares: dict[str, Mapping[str, float]] = {}
    for run in finetuned:
        if run["pretrain_tokens"]:
            data.setdefault(run["pretrain_data"], set()).add(run["pretrain_tokens"])
            shares[run["pretrain_data"]] = run.record.get("pretrain_languages") or {}
    for name, sizes in sorted(data.items()):
        mix = ", ".join(f"{share:.0%} {language}" for language, share in shares[name].items())
        items.append(
            f"Pretraining on {name}{f' ({mix})' if mix else ''}, finetuned from D_p = "
            + ", ".join(size(tokens) for tokens in sorted(sizes))
            + " text tokens"
            + (
                ", and without pretraining."
                if any(not run["pretrain_tokens"] for run in finetuned)
                else "."
            )
        )
    rates = sorted({run["learning_rate"] for run in finetuned})
    seeds = sorted({run["seed"] for run in finetuned})
    items.append(
        f"Finetuning for {_listed({run['steps'] for run in finetuned})} steps at learning rate "
        f"{_listed(rates)}, seed {_listed(seeds)}."
    )
    items.append(
        f"{len(done)} runs finished ({len(finetuned)} of them finetuning)"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {unfinished} not finished" if unfinished else "")
        + f"; {len(rows):,} measurements."
    )
    device_s = sum(storage.at_once(lambda run: run.device_seconds, done))
    if device_s:
        items.append(f"Device time of the finished runs: {_duration(device_s)}.")
    html = "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
    html += "".join(
        f"<p>Failed: <code>{escape(run['id'])}</code>: {escape(run.failure)}</p>" for run in failed
    )
    pools = sentences.pools(runs)
    html += (
        "<h3>Finetuning pools (D_f)</h3><p>D_f counts the examples that a run may draw from. It is "
        "a pool, not the amount of training: what a run sees is set by its steps.</p>"
    )
    return html + _table(
        ["task", "pool", "examples", "real tokens", "positions with padding", "a run draws"],
        [
            [p.task, p.label, f"{p.examples:,}", f"{p.tokens:,}", f"{p.positions:,}", p.seen]
            for p in pools
        ],
        numbers=(2, 3, 4),
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _figure(figure: StudyFigure) -> str:
    image = base64.b64encode(figure.svg.read_bytes()).decode()
    says = [f'<p class="quiet">{escape(figure.caption)}</p>'] if figure.caption else []
    for this in figure.curve_fits if figure.by == "finetune_examples" else ():
        heading = f"<p><b>{escape(_pool_words(this))}</b></p>" if len(figure.curve_fits) > 1 else ""
        says.append(
            heading
            + "<ul>"
            + "".join(f"<li>{escape(s)}</li>" for s in sentences.about_curve(this))
            + "</ul>"
        )
    return (
        f"<h3>{escape(_heading(figure))}</h3>"
        f'<figure><img alt="{escape(figure.title)}" '
        f'src="data:image/svg+xml;base64,{image}"></figure>' + "".join(says)
    )


def _heading(figure: StudyFigure) -> str:
    metric, _, rest = figure.title.partition(" of ")
    return f"{metric_name(metric)}: {rest}" if figure.curve_fits else figure.title


def _advice(advice: Advice | None, figures: Sequence[StudyFigure]) -> str:
    """Decisions per curve, then what holds between curves, then the figures behind them."""
    if advice is None:
        return ""
    html = ["<h2>What to pay for</h2>"]
    html.append(
        f"<p>Forecasts are for D_p = {size(advice.target)}. Costs: "
        f"{escape(advice.cost_source)}.</p>"
    )
    for one in advice.curves:
        items = "".join(f"<li>{escape(line)}</li>" for line in lines_of(one, advice))
        html.append(f"<h3>{escape(label_of(one.curve_fit))}</h3><ul>{items}</ul>")
    said = [
        sentence_of_exchange(place, exchange)
        + (f" {sentence_of_next(runs, exchange.fit, advice)}" if runs else "")
        for place, exchange, runs in advice.exchanges
    ]
    said += [f"{label_of(r.score)}: {r.sentence}" for r in advice.relations]
    said += [sentence_of_choice(choice) for choice in advice.choices]
    if said:
        html.append("<ul>" + "".join(f"<li>{escape(s)}</li>" for s in said) + "</ul>")
    if figures:
        html.append(f"<details><summary>{len(figures)} figures behind this</summary>")
        html += [_figure(figure) for figure in figures]
        html.append("</details>")
    return "".join(html)


def _results(curve_fits: Sequence[CurveFit]) -> str:
    """One table per (data, task, pool): D_p down, metrics across."""
    html = []
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
                values = [p.value for p in here]
                rates |= {p.learning_rate: p.at_edge for p in here}
                seeds |= {p.seed for p in here}
                cells.append(number(sum(values) / len(values)) if values else "–")
            rate = ", ".join(f"{r:g}{' *' if edge else ''}" for r, edge in sorted(rates.items()))
            rows.append([size(x) if x else "not pretrained", *cells, rate, _listed(seeds)])
            marks.append(x in held_out)
        alignment = curves[0].facts.get("alignment")
        score = f", alignment score {alignment:g}" if alignment is not None else ""
        html.append(
            f"<h3>{escape(place)}{score}</h3>"
            + _table(head, rows, numbers=range(1, len(curves) + 1), marks=marks)
        )
    note = "Shaded: held out from the fits. Means over seeds."
    if any(p.at_edge for t in curve_fits for p in (*t.curve.points, *t.curve.baseline)):
        note += " * the best learning rate is at the edge of its grid: possibly under-tuned."
    return "".join(html) + f'<p class="quiet">{note}</p>'


def _all_rates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cross-entropy of every rate, for those who want to see the choice; folded away."""
    if len({row["learning_rate"] for row in rows}) < 2:
        return ""
    table: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == "cross_entropy":
            place = (
                row["task"], row["pretrain_data"], row["pretrain_tokens"],
                row["finetune_examples"], row["learning_rate"], row["seed"], row["steps"],
            )  # fmt: skip
            table.setdefault(place, {})[row["split"]] = row["value"]
    body = [
        [task, data or "–", size(tokens), f"{pool:,}", f"{rate:g}", str(seed), str(steps),
         number(values.get("validation")), number(values.get("test"))]
        for (task, data, tokens, pool, rate, seed, steps), values in sorted(table.items())
    ]  # fmt: skip
    head = ["task", "pretrained on", "D_p", "pool", "rate", "seed", "step", "validation", "test"]
    return (
        "<details><summary>Cross-entropy at every learning rate</summary>"
        + _table(head, body, numbers=(2, 3, 4, 5, 6, 7, 8))
        + "</details>"
    )


def _laws(curve_fits: Sequence[CurveFit]) -> str:
    html = []
    for this in curve_fits:
        fit = this.fit
        head = f"<h3>{_metric(this)}: {escape(place_of(this))} {_word(this)}</h3>"
        if fit is None:
            html.append(head + f"<p>Not fitted: {escape(this.note)}.</p>")
            continue
        meanings = {c.name: c for c in this.law.coefficient_table}
        rows = [
            [name, number(value), interval(low, high), f"{meanings[name].meaning}"]
            for name, (value, low, high) in fit.coefficients.items()
        ]
        html.append(
            head
            + f"<p>{this.law.title[0].upper()}{this.law.title[1:]}, "
            + f"<code>{escape(this.law.formula)}</code>, D in text tokens; "
            f"{objective_of(fit)}, {'converged' if fit.converged else 'NOT converged'}.</p>"
            + _table(["coefficient", "value", INTERVAL, "meaning"], rows, numbers=(1,), wrap=(3,))
        )
        if fit.held_out:
            held = [
                [size(p.x), number(p.value), number(p.predicted), interval(p.low, p.high),
                 f"{p.error:+.3g}", f"{p.relative_error:+.1%}", f"{p.log_error:+.3g}"]
                for p in fit.held_out
            ]  # fmt: skip
            names = ["held out: D_p", "measured", "predicted", INTERVAL, "error", "relative", "log"]
            html.append(_table(names, held, numbers=(0, 1, 2, 4, 5, 6)))
    return "".join(html)


def _method() -> str:
    items = [
        f"Laws are fitted to the {FITTED_SIZES} smallest pretraining sizes and checked on the "
        "rest, as in Isik et al. (arXiv 2402.04177); with few sizes, the largest is held out. "
        "Scores get the log-law (Eq. 1), cross-entropy the power law with floor (Eq. 3).",
        f"Intervals hold {LEVEL:.0%} and come from a bootstrap with the noise that the fitted "
        "points show. They assume that the law is right; held-out errors test that.",
        "The log-law has no ceiling and overshoots where scores saturate. The further a "
        "prediction lies from the fitted sizes, the less it is worth: the distance is given in "
        "decades (powers of ten).",
        "The log-law's A and alpha can hardly be told apart by data. s, D0 and beta can; D0 is "
        "the size below which it predicts a score of 0.",
        "Verdict thresholds are ours, the paper gives none: a change counts if noise alone makes "
        f"one as large in fewer than 5 of 100 cases; noise above {NOISY_SHARE:.0%} of the change "
        f"is noisy; one step with more than {BREAKTHROUGH_SHARE:.0%} of it is a breakthrough; a "
        f"law must meet held-out points within {LAW_TOLERANCE:.0%} of the total change, or within "
        "twice the noise.",
        "A fitted curve is not a cause: other data, learning rates, steps or seeds can move it.",
    ]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _signatures(curve_fits: Sequence[CurveFit]) -> str:
    known = sorted(
        {
            (metric_name(t.curve.metric), t.curve.facts["metric_signature"])
            for t in curve_fits
            if t.curve.facts["metric_signature"]
        }
    )
    if not known:
        return ""
    lines = "".join(f"<li>{escape(m)}: <code>{escape(s)}</code></li>" for m, s in known)
    return f"<p>Metric signatures:</p><ul>{lines}</ul>"


def _metric(this: CurveFit) -> str:
    return escape(metric_name(this.curve.metric))


def _pool_words(this: CurveFit) -> str:
    return f"pool of {this.curve.key['finetune_examples']:,} examples"


def _word(this: CurveFit) -> str:
    word = this.verdict.word or "no verdict"
    return f'<span class="word {escape(word.replace(" ", "-"))}">{escape(word)}</span>'


def _listed(values: Iterable) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(values))


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    wrap: Iterable[int] = (),
    marks: Sequence[bool] = (),
    html: bool = False,
) -> str:
    """A table that scrolls sideways on its own. html: cells are HTML; marks: shaded rows."""
    numbers, wrap = set(numbers), set(wrap)

    def css(i: int) -> str:
        return ' class="number"' if i in numbers else ' class="wrap"' if i in wrap else ""

    lines = [
        "<tr>" + "".join(f"<th{css(i)}>{escape(h)}</th>" for i, h in enumerate(head)) + "</tr>"
    ]
    for number_, row in enumerate(rows):
        mark = ' class="heldout"' if number_ < len(marks) and marks[number_] else ""
        cells = "".join(
            f"<td{css(i)}>{cell if html else escape(cell)}</td>" for i, cell in enumerate(row)
        )
        lines.append(f"<tr{mark}>{cells}</tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"
