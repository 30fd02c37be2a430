"""The answer of a study in three sentences: what pretraining buys, which data, how far a law sees.

Each is for the fullest pool of each task and for its score, or cross-entropy where the score says
nothing (`selection`); gains and differences with 90 % intervals (`evidence`).
"""

import math
from statistics import median

from t5scaling.analysis.conclusions.advice import Advice
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.evidence import at_largest, means
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.conclusions.valuation import SHAPELESS, Transfer, worth_it
from t5scaling.analysis.metrics import LOSS, better, metric_name
from t5scaling.analysis.presentation.advice import times
from t5scaling.analysis.wording import interval, listed, short_size


def answers(selection: Selection, advice: Advice | None) -> list[tuple[str, str]]:
    """(what is asked, the answer), three of them."""
    return [
        ("What it buys", _gains(selection, advice)),
        ("Which data", _which(selection)),
        ("How far a law sees", _laws(selection)),
    ]


def _gains(selection: Selection, advice: Advice | None) -> str:
    said: dict[tuple, list[str]] = {}
    for task in selection.tasks:
        for this in selection.headline(task)[:1]:
            gain, pair = worth_it(this), selection.roles.pair(this.curve)
            if gain.value is None:
                continue
            # A gain is positive where things get better; here they go up or down.
            sign = -1 if this.curve.metric == LOSS else 1
            known = ""
            if gain.low:
                low, high = sorted((sign * gain.low, sign * gain.high))
                known = f" ({interval(_short(low), _short(high))})"
            place = (
                this.curve.metric, selection.roles.kind(this.curve), short_size(largest_of(this)),
            )  # fmt: skip
            said.setdefault(place, []).append(f"{sign * gain.value:+.3g}{known} in {pair}")
    sentences = []
    for (metric, kind, largest), parts in said.items():
        data = "" if kind == "other" else f"on {kind} data "
        what = "cross-entropy (nats) by" if metric == LOSS else f"{metric_name(metric)} by"
        sentences.append(
            f"Pretraining {data}({largest} tokens) changes {what} {listed(parts)}, against none"
        )
    text = ". ".join(sentences)
    if not text:
        return "No run without pretraining to compare with: what pretraining buys cannot be told."
    return f"{text}. {_worth(selection, advice)}"


def largest_of(this: CurveFit) -> float:
    return max(p.x for p in this.curve.points)


def _worth(selection: Selection, advice: Advice | None) -> str:
    """In finetuning data, where the pools tell it."""
    told = []
    for task in selection.tasks:
        found, here = transfer_of(selection, advice, task)
        if found:
            pair = selection.roles.pairs.get(task, task)
            pool = "" if here else f" (a pool of {short_size(found.pool)} tokens)"
            told.append(f"{times(found)} as much in {pair}{pool}")
    if told:
        return (
            "Without pretraining, the same cross-entropy takes more finetuning data: "
            f"{listed(told)}."
        )
    return "Its worth in finetuning data: not told by these pools."


def transfer_of(
    selection: Selection, advice: Advice | None, task: str
) -> tuple[Transfer | None, bool]:
    """Of the data that match the task best, in the headline's pool (then True), or else in the
    largest that tells it."""
    for this in selection.headline(task)[:1] if advice else ():
        place = " · ".join(
            [metric_name(LOSS), selection.model, this.curve.key["pretrain_data"], task]
        )
        found = {one.pool: one for at, one in advice.transfers if at == place}
        pool = this.curve.facts.get("finetune_tokens")
        if found:
            return found.get(pool, found[max(found)]), pool in found
    return None, False


def _which(selection: Selection) -> str:
    said, several = [], False
    for task in selection.tasks:
        curves = selection.headline(task)
        if len(curves) < 2:
            continue
        several = True
        said.append(_best(selection, curves))
    if not several:
        return "One pretraining data set was tried: which data are best cannot be told."
    return "Best at the largest D_p: " + "; ".join(said) + "."


def _best(selection: Selection, curves: list[CurveFit]) -> str:
    """ "in en-de balanced (en+de), 0.31 BLEU ahead of target only (de; 0.1 to 0.5)"."""
    largest = min(max(means(this)) for this in curves)
    sign, metric = better(curves[0].curve.metric), curves[0].curve.metric

    def at(this: CurveFit) -> float:
        course = means(this)
        return sign * course[min(course, key=lambda x: abs(x - largest))]

    first, second, *_ = sorted(curves, key=at, reverse=True)
    pair, best, next_ = (
        selection.roles.pair(first.curve),
        *(selection.roles.role(this.curve) for this in (first, second)),
    )
    names = [r.label if r.kind == "other" else f"{r.kind} ({r.label})" for r in (best, next_)]
    ahead = at_largest(first, second)
    unit = "nats" if metric == LOSS else metric_name(metric)
    if ahead is None:
        return f"{pair} {names[0]}, before {names[1]}"
    by = f"{ahead.value:.2g} {unit} ({interval(_short(ahead.low), _short(ahead.high))})"
    if ahead.sure:
        return f"{pair} {names[0]}, by {by} over {names[1]}"
    return f"{pair} {names[0]}, not told from {names[1]} ({by} behind)"


def _laws(selection: Selection) -> str:
    said, words, decades = [], [], []
    for metric in (LOSS, *dict.fromkeys(map(selection.score, selection.tasks))):
        errors = []
        for task in selection.tasks:
            if metric not in (LOSS, selection.metric(task)):
                continue
            for this in selection.of(task, metric):
                words.append(this.verdict.word)
                if this.fit and this.fit.held_out and this.verdict.word not in SHAPELESS:
                    errors.append(abs(this.fit.held_out_sizes[-1].relative_error))
                    decades.append(this.fit.extrapolation)
        if errors:
            worst = f", at worst {max(errors):.1%}" if len(errors) > 1 else ""
            said.append(f"{errors and median(errors):.1%} for {_inside(metric)}{worst}")
    largest = max(largest_of(this) for this in selection.curve_fits)
    limit = f"Beyond {short_size(largest)} tokens nothing was checked."
    if not said:
        return f"Too few pretraining sizes for a law that could be checked. {limit}"
    predictable = sum(word == "predictable" for word in words)
    shapeless = sum(word in SHAPELESS for word in words)
    none = f", {shapeless} have no shape for a law" if shapeless else ""
    on = math.fsum(decades) / len(decades)
    return (
        f"Fitted to the smallest sizes, laws meet the largest, {on:.1f} decades on, within "
        f"{listed(said)}{' (medians)' if len(words) > 2 else ''}; predictable: {predictable} of "
        f"{len(words)} {'curve' if len(words) == 1 else 'curves'}{none}. {limit}"
    )


def _inside(metric: str) -> str:
    """Its name inside a sentence."""
    return "cross-entropy" if metric == LOSS else metric_name(metric)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
