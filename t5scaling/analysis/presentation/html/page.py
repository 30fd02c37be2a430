"""report.html: one self-contained page. No script, no request to anywhere; fits a phone.

The first screen asks the question, shows the main figure and answers in three sentences; then come
the paper's claims, what to pay for, figures, results, laws, and what was run and how to read it.
The other files here make its parts.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import t5scaling
from t5scaling.analysis.conclusions.findings import Findings
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation import answers
from t5scaling.analysis.presentation.figures import StudyFigure
from t5scaling.analysis.presentation.html import advice as page_advice
from t5scaling.analysis.presentation.html import claims as page_claims
from t5scaling.analysis.presentation.html import panels
from t5scaling.analysis.presentation.html import results as page_results
from t5scaling.analysis.presentation.html import study as page_study
from t5scaling.analysis.presentation.html.markup import folded
from t5scaling.analysis.presentation.html.style import CSS
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.wording import hours, listed, short_size


def build(
    findings: Findings,
    runs: Sequence[RunRecord],
    rows: Sequence[Mapping[str, Any]],
    figures: Sequence[StudyFigure],
    absent: str = "",
) -> str:
    """The page as text. absent: a sentence on runs of the study that are not in the results."""
    curve_fits = findings.curve_fits
    said = [*([absent] if absent else []), *findings.limits]
    limits = "".join(f"<p>{escape(s)}</p>" for s in said)
    sections = [
        ("claims", "The paper's claims", page_claims.section(findings.claims, findings.absent)),
        ("pay", "What to pay for", page_advice.section(findings.selection, findings.advice)),
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
        f"<title>{escape(findings.study)}: what pretraining buys</title>\n"
        f"<style>{CSS}</style>\n</head>\n"
        f"<body>\n<header>{_first_screen(findings, runs)}\n"
        f'<nav aria-label="contents">{nav}</nav></header>\n<main>\n{body}\n</main>\n'
        f'<footer class="quiet">Made by t5scaling {version} from results.csv and runs.jsonl.'
        "</footer>\n</body>\n</html>\n"
    )


def _first_screen(findings: Findings, runs: Sequence[RunRecord]) -> str:
    selection = findings.selection
    answered = "".join(
        f"<div><h2>{escape(asked)}</h2><p>{escape(answer)}</p></div>"
        for asked, answer in answers.answers(findings.headline, selection.roles)
    )
    others = "".join(
        folded(f"The same in the {pools}", html) for pools, html in panels.other_pools(selection)
    )
    pools = escape(selection.pool_words(selection.pools))
    translates = any("-" in pair for pair in selection.roles.pairs.values())
    what = "in translation" if translates else "downstream"
    return (
        f"<h1>How much does more pretraining data buy {what}, and which data?</h1>\n"
        f'<p class="lead">{_one_line(findings, runs)}</p>\n'
        f"{panels.main_figure(selection)}"
        f'<p class="quiet fine">Test set, finetuning {pools}; nats per target token; across: D_p, '
        "text tokens of pretraining.</p>"
        f'<div class="answers">{answered}</div>{others}'
    )


def _one_line(findings: Findings, runs: Sequence[RunRecord]) -> str:
    """The study and its size, as HTML; a phone shows the first half."""
    curve_fits, selection = findings.curve_fits, findings.selection
    parameters = sorted({int(this.curve.facts["parameters"]) for this in curve_fits})
    data = {this.curve.place.data for this in curve_fits}
    largest = max(p.x for this in curve_fits for p in this.curve.points)
    pairs = listed([selection.roles.pairs.get(task, task) for task in selection.tasks])
    done = sum(run.done for run in runs)
    spent = sum(run.device_seconds for run in runs)
    sets = f"{len(data)} pretraining data sets" if len(data) > 1 else "one pretraining data set"
    model = listed([short_size(n) for n in parameters])
    first = f"Study “{findings.study}”: T5 of {model} parameters, {pairs}, {sets} of up to "
    more = f", {done} runs" + (f", {hours(spent)} of device time" if spent else "")
    return f'{escape(first)}{short_size(largest)} tokens<span class="more">{escape(more)}</span>.'


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
