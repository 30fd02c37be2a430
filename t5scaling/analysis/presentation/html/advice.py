"""What to pay for, on a study's page: a table per task and metric, and the reasons folded."""

from collections.abc import Sequence
from html import escape

from t5scaling.analysis.conclusions.advice import Advice, Choice, CurveAdvice
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.conclusions.valuation import Crossing
from t5scaling.analysis.metrics import LOSS, metric_name
from t5scaling.analysis.presentation.advice import (
    lines_of,
    sentence_of_exchange,
    sentence_of_next,
    sentence_of_transfer,
)
from t5scaling.analysis.presentation.html.markup import bullets, folded, table, word
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.wording import interval, number, short_size


def section(selection: Selection, advice: Advice | None) -> str:
    """The tables first, then what holds between pools, then the reasons per curve, folded."""
    if advice is None:
        return ""
    groups: dict[tuple, list[CurveAdvice]] = {}
    for one in advice.curves:
        curve = one.curve_fit.curve
        rest = tuple(v for name, v in curve.key.items() if name != "pretrain_data")
        groups.setdefault((curve.metric, *rest), []).append(one)
    html = [
        f"<p>Forecasts are for D_p = {short_size(advice.target)}, in the pools of the figure above."
        " A gain is over no pretraining, at the largest size measured. In parentheses: 90 % "
        f"intervals. Costs: {escape(advice.cost_source)}.</p>"
    ]
    html += [_group(selection, advice, members) for members in groups.values()]
    words = _places(selection)
    said = [sentence_of_transfer(words.get(at, at), one) for at, one in advice.transfers]
    for at, exchange, runs in advice.exchanges:
        said.append(sentence_of_exchange(words.get(at, at), exchange))
        said[-1] += f" {sentence_of_next(runs, exchange.fit, advice)}" if runs else ""
    if said:
        html.append(
            "<h3>Pretraining in finetuning data</h3><p>How many times its finetuning data a model "
            "without pretraining needs for the same cross-entropy, read off between the pools "
            f"measured, each with its own steps.</p>{bullets(said)}"
        )
    agree = bullets(f"{_place(selection, r.score.curve)}: {r.sentence}" for r in advice.relations)
    html.append(folded("Do score and cross-entropy tell the same story?", agree))
    reasons = "".join(
        f"<h3>{escape(_place(selection, one.curve_fit.curve))}</h3>{bullets(lines_of(one, advice))}"
        for one in advice.curves
    )
    html.append(folded(f"Reasons, and the next runs, for {len(advice.curves)} curves", reasons))
    return "".join(html)


def _place(
    selection: Selection,
    curve: Curve,
    metric: bool = True,
    data: bool = True,
    pool: bool = True,
) -> str:
    """ "BLEU, en-de, target only (de), pool of 613", and the model if it is not the page's."""
    examples, model = curve.key.get("finetune_examples"), str(curve.key["model"])
    words = {
        metric_name(curve.metric): metric,
        selection.roles.pair(curve): True,
        selection.roles.words(curve): data,
        f"pool of {examples or 0:,}": pool and examples,
        model: model != selection.model,
    }
    return ", ".join(text for text, wanted in words.items() if wanted)


def _group(selection: Selection, advice: Advice, members: Sequence[CurveAdvice]) -> str:
    """The data sets of one task, metric, model and pool, side by side."""
    curve = members[0].curve_fit.curve
    choice, chances = _choice(advice, members)
    rows = []
    for one in members:
        gain, this = one.worth_it, one.curve_fit
        sign = -1 if this.curve.metric == LOSS else 1
        change = "–" if gain.value is None else f"{sign * gain.value:+.3g}"
        if gain.low is not None:
            low, high = sorted((sign * gain.low, sign * gain.high))
            change += f" ({low:+.3g} to {high:+.3g})"
        forecast, even = one.forecast, one.break_even
        rows.append(
            [
                escape(selection.roles.words(this.curve)),
                escape(gain.answer),
                change,
                word(this),
                f"{number(forecast.value)} ({interval(forecast.low, forecast.high)})"
                if forecast else "–",
                f"{chances[id(forecast)]:.0%}" if id(forecast) in chances else "–",
                _where(even) if even and even.x else "–",
            ]
        )  # fmt: skip
    unit = "nats" if curve.metric == LOSS else metric_name(curve.metric)
    head = [
        "pretrained on", "worth it?", f"change, {unit}", "curve",
        f"at {short_size(advice.target)}", "chance to be best", "as good as none at",
    ]  # fmt: skip
    return (
        f"<h3>{escape(_place(selection, curve, data=False))}</h3>"
        + table(head, rows, html=True, numbers=(5,))
        + bullets(_crossings(selection, choice, members))
    )


def _choice(
    advice: Advice, members: Sequence[CurveAdvice]
) -> tuple[Choice | None, dict[int, float]]:
    """The choice among these curves, and the chance to be the best of each forecast."""
    own = {id(one.forecast) for one in members if one.forecast}
    for choice in advice.choices:
        if own & {id(forecast) for forecast in choice.forecasts}:
            pairs = zip(choice.names, choice.forecasts, strict=True)
            return choice, {id(forecast): choice.chances[name] for name, forecast in pairs}
    return None, {}


def _crossings(
    selection: Selection, choice: Choice | None, members: Sequence[CurveAdvice]
) -> list[str]:
    names = {
        str(one.curve_fit.curve.key["pretrain_data"]): selection.roles.words(one.curve_fit.curve)
        for one in members
    }
    return [
        f"{names.get(two, two)} overtakes {names.get(one, one)} at {_where(crossing)}."
        for one, two, crossing in (choice.crossings if choice else ())
    ]


def _where(crossing: Crossing) -> str:
    """A size, its interval, and how often it is one at all."""
    sure = "" if crossing.share > 0.995 else f", in {crossing.share:.0%} of the replicates"
    low, high = short_size(crossing.low), short_size(crossing.high)
    return f"{short_size(crossing.x)} ({low} to {high}{sure})"


def _places(selection: Selection) -> dict[str, str]:
    """The places of `advise` in words."""
    words = {}
    for this in selection.curve_fits:
        curve = this.curve
        rest = [str(v) for name, v in curve.key.items() if name != "finetune_examples"]
        label = " · ".join([metric_name(curve.metric), *rest])
        words[label] = _place(selection, curve, metric=False, pool=False)
    return words
