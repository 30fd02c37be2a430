"""report.html: one self-contained page. No script, no request to anywhere; fits a phone.

The first screen asks the question, shows the main figure and answers in three sentences; then come
the paper's claims, what to pay for, figures, results, laws, and what was run and how to read it.
The other files here make its parts; their HTML is in `templates`.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import t5scaling
from t5scaling.analysis.conclusions.findings import Findings
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation import answers
from t5scaling.analysis.presentation.figures import StudyFigure
from t5scaling.analysis.presentation.html import advice, claims, panels, results, study
from t5scaling.analysis.presentation.html.render import render, style
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
    curve_fits, selection = findings.curve_fits, findings.selection
    limits = [*([absent] if absent else []), *findings.limits]
    sections = [
        ("claims", "The paper's claims", claims.section(findings.claims, findings.absent)),
        ("pay", "What to pay for", advice.section(selection, findings.advice)),
        ("figures", "Figures", _figures(figures)),
        ("results", "Results", results.results(curve_fits, rows, findings.steps)),
        ("laws", "Laws", results.laws(curve_fits)),
        ("limits", "Limits", render("limits.html", sentences=limits) if limits else ""),
        ("study", "What was run", study.what_was_run(runs, rows)),
        ("method", "How to read this", study.method(curve_fits)),
    ]
    translates = any("-" in pair for pair in selection.roles.pairs.values())
    summary, more = _summary(findings, runs)
    first = curve_fits[0].curve
    split = first.facts.get("split", "test")
    page = render(
        "page.html",
        measured_on="Test set" if split == "test" else f"Split {split}",
        unit=first.unit,
        study=findings.study,
        style=style(),
        where="in translation" if translates else "downstream",
        summary=summary,
        more=more,
        figure=panels.main_figure(selection),
        pools=selection.pool_words(selection.pools),
        answers=answers.answers(findings.headline, selection.roles),
        other_pools=panels.other_pools(selection),
        sections=[section for section in sections if section[2]],
        version=t5scaling.__version__,
    )
    return f"{page}\n"


def _summary(findings: Findings, runs: Sequence[RunRecord]) -> tuple[str, str]:
    """The study and its size; a phone shows the first part alone."""
    curve_fits, selection = findings.curve_fits, findings.selection
    parameters = sorted({int(curve_fit.curve.facts["parameters"]) for curve_fit in curve_fits})
    data = {curve_fit.curve.place.data for curve_fit in curve_fits}
    largest = max(p.x for curve_fit in curve_fits for p in curve_fit.curve.points)
    pairs = listed([selection.roles.pairs.get(task, task) for task in selection.tasks])
    done = sum(run.done for run in runs)
    spent = sum(run.device_seconds for run in runs)
    sets = f"{len(data)} pretraining data sets" if len(data) > 1 else "one pretraining data set"
    model = listed([short_size(n) for n in parameters])
    first = f"Study “{findings.study}”: T5 of {model} parameters, {pairs}, {sets} of up to "
    more = f", {done} runs" + (f", {hours(spent)} of device time" if spent else "")
    return f"{first}{short_size(largest)} tokens", more


def _figures(figures: Sequence[StudyFigure]) -> str:
    """Metrics against D_p with their laws; what advice rests on is folded behind them."""
    if not figures:
        return ""
    return render(
        "figures.html",
        curves=[_figure(figure) for figure in figures if figure.curve_fits],
        behind=[_figure(figure) for figure in figures if not figure.curve_fits],
    )


def _figure(figure: StudyFigure) -> dict[str, str]:
    return {
        "heading": _heading(figure),
        "title": figure.title,
        "image": base64.b64encode(figure.svg.read_bytes()).decode(),
        "caption": figure.caption,
    }


def _heading(figure: StudyFigure) -> str:
    metric, _, rest = figure.title.partition(" of ")
    return f"{metric_name(metric)}: {rest}" if figure.curve_fits else figure.title
