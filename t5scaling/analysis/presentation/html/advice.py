"""What to pay for, on a study's page: a table per task and metric, and the reasons folded."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from t5scaling.analysis.conclusions.advice import Advice, Choice, CurveAdvice
from t5scaling.analysis.conclusions.forecast import Crossing
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import LOSS, better, metric_name
from t5scaling.analysis.presentation.advice import (
    lines_of,
    sentence_of_exchange,
    sentence_of_next,
    sentence_of_transfer,
    sentence_of_worth,
    sentences_of_gaps,
    sentences_of_prices,
)
from t5scaling.analysis.presentation.html.render import Table, render, shape_badge
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import interval, number, short_size, with_interval


def section(selection: Selection, advice: Advice | None) -> Markup | str:
    """The tables first, then what holds between pools, then the reasons per curve, folded."""
    if advice is None:
        return ""
    groups: dict[tuple[Place, str], list[CurveAdvice]] = {}
    for one in advice.curves:
        groups.setdefault((one.place.beside_data, one.metric), []).append(one)
    worth = [sentence_of_transfer(_place(selection, one.place), one) for one in advice.transfers]
    for one in advice.exchanges:
        sentence = sentence_of_exchange(_place(selection, one.place), one)
        if one.next_runs:
            sentence += f" {sentence_of_next(one.next_runs, one.fit, advice)}"
        worth.append(sentence)
    scores = [(relation.score.curve, relation.sentence) for relation in advice.relations]
    return render(
        "advice.html",
        level=f"{LEVEL:.0%}",
        target=short_size(advice.target),
        cost_source=advice.cost_source,
        groups=[_group(selection, advice, members) for members in groups.values()],
        worth=worth,
        worths=[
            sentence_of_worth(_place(selection, one.place, one.metric), one)
            for one in advice.worths
        ],
        prices=[
            sentence
            for one in advice.prices
            for sentence in sentences_of_prices(_place(selection, one.place, one.metric), one)
        ],
        gaps=[
            sentence
            for one in advice.gaps
            for sentence in sentences_of_gaps(_place(selection, one.place, one.metric), one)
        ],
        agreement=[
            f"{_place(selection, curve.place, curve.metric)}: {sentence}"
            for curve, sentence in scores
        ],
        reasons=[
            (_place(selection, one.place, one.metric), lines_of(one, advice))
            for one in advice.curves
        ],
    )


def _place(selection: Selection, place: Place, metric: str = "") -> str:
    """ "BLEU, en-de, target only (de), pool of 613", and the model if it is not the page's."""
    words = [
        metric and metric_name(metric),
        selection.roles.pair(place),
        place.data and selection.roles.words(place),
        place.pool and f"pool of {place.pool:,}",
        place.model if place.model != selection.model else "",
    ]
    return ", ".join(text for text in words if text)


def _group(selection: Selection, advice: Advice, members: Sequence[CurveAdvice]) -> dict[str, Any]:
    """The data sets of one task, metric, model and pool, side by side."""
    place, metric = members[0].place, members[0].metric
    choice = advice.choice(place, metric)
    chances = choice.chances if choice else {}
    rows = []
    for one in members:
        gain, sign = one.worth_it, better(metric)
        change = with_interval(*gain.turned(sign), signed=True)
        forecast, even = one.forecast, one.break_even
        rows.append(
            [
                selection.roles.words(one.place),
                gain.answer,
                change,
                shape_badge(one.curve_fit.verdict),
                f"{number(forecast.value)} ({interval(forecast.low, forecast.high)})"
                if forecast else "–",
                f"{chances[one.place.data]:.0%}" if one.place.data in chances else "–",
                _where(even) if even else "–",
            ]
        )  # fmt: skip
    unit = "nats" if metric == LOSS else metric_name(metric)
    head = [
        "pretrained on", "worth it?", f"change, {unit}", "curve",
        f"at {short_size(advice.target)}", "chance to be best", "as good as none at",
    ]  # fmt: skip
    return {
        "title": _place(selection, place.beside_data, metric),
        "table": Table(head, rows, numbers=(5,)),
        "crossings": _crossings(selection, choice, members),
    }


def _crossings(
    selection: Selection, choice: Choice | None, members: Sequence[CurveAdvice]
) -> list[str]:
    names = {one.place.data_name: selection.roles.words(one.place) for one in members}
    return [
        f"{names[one.overtaking]} overtakes {names[one.overtaken]} at {_where(one.at)}."
        for one in (choice.crossings if choice else ())
    ]


def _where(crossing: Crossing) -> str:
    """A size, its interval, and how often it is one at all."""
    if crossing.x is None or crossing.low is None or crossing.high is None:
        return "–"
    sure = "" if crossing.share > 0.995 else f", in {crossing.share:.0%} of the replicates"
    low, high = short_size(crossing.low), short_size(crossing.high)
    return f"{short_size(crossing.x)} ({low} to {high}{sure})"
