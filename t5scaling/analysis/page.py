"""report.html: one self-contained page. No script, no request to anywhere; fits a phone.

The first screen asks the question, shows the main figure and answers in three sentences; then come
the paper's claims, what to pay for, figures, results, laws, and what was run and how to read it.
Its rooms: `panels`, `answers`, `page_claims`, `page_advice`, `page_results`, `page_study`.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import t5scaling
from t5scaling.analysis import (
    answers,
    page_advice,
    page_claims,
    page_results,
    page_study,
    panels,
    sentences,
)
from t5scaling.analysis.advise import Advice
from t5scaling.analysis.claims import judge_claims
from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.curves import Curve
from t5scaling.analysis.evidence import Evidence
from t5scaling.analysis.figures import StudyFigure
from t5scaling.analysis.harvest import RunRecord
from t5scaling.analysis.markup import folded, hours
from t5scaling.analysis.page_style import CSS
from t5scaling.analysis.selection import Selection
from t5scaling.analysis.style import short_size
from t5scaling.analysis.tables import listed, metric_name


def build(
    runs: Sequence[RunRecord],
    rows: Sequence[Mapping[str, Any]],
    curve_fits: Sequence[CurveFit],
    selection: Selection,
    figures: Sequence[StudyFigure],
    advice: Advice | None,
    absent: str = "",
) -> str:
    """The page as text. absent: a sentence on runs of the study that are not in the results."""
    study = str(curve_fits[0].curve.facts["study"])
    said = [*([absent] if absent else []), *sentences.about_study(runs, curve_fits)]
    limits = "".join(f"<p>{escape(s)}</p>" for s in said)
    sections = [
        ("claims", "The paper's claims", _claims(runs, rows, curve_fits)),
        ("pay", "What to pay for", page_advice.section(selection, advice)),
        ("figures", "Figures", _figures(figures)),
        (
            "results",
            "Results",
            page_results.results(curve_fits) + page_results.all_rates(rows),
        ),
        (
            "laws",
            "Laws",
            folded(f"Verdicts of all {len(curve_fits)} curves", page_results.overview(curve_fits))
            + page_results.laws(curve_fits),
        ),
        ("limits", "Limits", f'<div class="warning">{limits}</div>' if limits else ""),
        ("study", "What was run", page_study.what_was_run(runs, rows)),
        ("method", "How to read this", page_study.method() + page_study.signatures(curve_fits)),
    ]
    sections = [(anchor, title, html) for anchor, title, html in sections if html]
    nav = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "\n".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{html}</section>'
        for anchor, title, html in sections
    )
    version = escape(t5scaling.__version__)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study)}: what pretraining buys</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<header>{_first_screen(study, runs, curve_fits, selection, advice)}\n"
        f'<nav aria-label="contents">{nav}</nav></header>\n<main>\n{body}\n</main>\n'
        f'<footer class="quiet">Made by t5scaling {version} from results.csv and runs.jsonl.'
        "</footer>\n</body>\n</html>\n"
    )


def _first_screen(
    study: str,
    runs: Sequence[RunRecord],
    curve_fits: Sequence[CurveFit],
    selection: Selection,
    advice: Advice | None,
) -> str:
    answered = "".join(
        f"<div><h2>{escape(asked)}</h2><p>{escape(answer)}</p></div>"
        for asked, answer in answers.answers(selection, advice)
    )
    others = "".join(
        folded(f"The same in the {pools}", html) for pools, html in panels.other_pools(selection)
    )
    pools = escape(selection.pool_words(selection.pools))
    first = curve_fits[0].curve
    translates = any("-" in pair for pair in selection.roles.pairs.values())
    what = "in translation" if translates else "downstream"
    return (
        f"<h1>How much does more pretraining data buy {what}, and which data?</h1>\n"
        f'<p class="lead">{_one_line(study, runs, curve_fits, selection)}</p>\n'
        f"{panels.main_figure(selection)}"
        f'<p class="quiet fine">{_measured_on(first)}, finetuning {pools}; nats per target token; '
        f"across: D_p, {first.unit} of pretraining.</p>"
        f'<div class="answers">{answered}</div>{others}'
    )


def _measured_on(curve: Curve) -> str:
    split = curve.facts.get("split", "test")
    return "Test set" if split == "test" else f"Split {escape(str(split))}"


def _one_line(study, runs, curve_fits, selection: Selection) -> str:
    """The study and its size, as HTML; a phone shows the first half."""
    parameters = sorted({int(this.curve.facts["parameters"]) for this in curve_fits})
    data = {this.curve.key["pretrain_data"] for this in curve_fits}
    largest = max(p.x for this in curve_fits for p in this.curve.points)
    pairs = listed([selection.roles.pairs.get(task, task) for task in selection.tasks])
    done = sum(run.done for run in runs)
    spent = sum(run.device_seconds for run in runs)
    sets = f"{len(data)} pretraining data sets" if len(data) > 1 else "one pretraining data set"
    model = listed([short_size(n) for n in parameters])
    first = f"Study “{study}”: T5 of {model} parameters, {pairs}, {sets} of up to "
    more = f", {done} runs" + (f", {hours(spent)} of device time" if spent else "")
    return f'{escape(first)}{short_size(largest)} tokens<span class="more">{escape(more)}</span>.'


def _claims(runs, rows, curve_fits: Sequence[CurveFit]) -> str:
    found, absent = judge_claims(Evidence(curve_fits, runs, rows))
    return page_claims.section(found, absent)


def _figures(figures: Sequence[StudyFigure]) -> str:
    """Metrics against D_p with their laws; what advice rests on is folded behind them."""
    curves = [figure for figure in figures if figure.curve_fits]
    behind = [figure for figure in figures if not figure.curve_fits]
    if not figures:
        return ""
    html = "".join(map(_figure, curves))
    more = f'<div class="figures">{"".join(map(_figure, behind))}</div>'
    return (
        f'<div class="figures">{html}</div>'
        + (folded(f"{len(behind)} figures behind the advice", more) if behind else "")
    )  # fmt: skip


def _figure(figure: StudyFigure) -> str:
    image = base64.b64encode(figure.svg.read_bytes()).decode()
    caption = f'<figcaption class="quiet">{escape(figure.caption)}</figcaption>'
    return (
        f"<div><h3>{escape(_heading(figure))}</h3>"
        f'<figure><img alt="{escape(figure.title)}" src="data:image/svg+xml;base64,{image}">'
        f"{caption if figure.caption else ''}</figure></div>"
    )


def _heading(figure: StudyFigure) -> str:
    metric, _, rest = figure.title.partition(" of ")
    return f"{metric_name(metric)}: {rest}" if figure.curve_fits else figure.title
