"""The answer of a study in three sentences: what pretraining buys, which data, how far laws see."""

from t5scaling.analysis.conclusions.headline import BestData, Gain, Headline, Reach
from t5scaling.analysis.metrics import LOSS, better, metric_name
from t5scaling.analysis.presentation.advice import times
from t5scaling.analysis.results.roles import Roles
from t5scaling.analysis.wording import listed, short_size, with_interval


def answers(headline: Headline, roles: Roles) -> list[tuple[str, str]]:
    """(the question, its answer), three of them."""
    return [
        ("What it buys", _gains(headline, roles)),
        ("Which data", _which(headline, roles)),
        ("How far a law sees", _laws(headline.reach)),
    ]


def _gains(headline: Headline, roles: Roles) -> str:
    groups: dict[tuple, list[str]] = {}
    for one in headline.gains:
        place = one.metric, roles.kind(one.place), short_size(one.pretrain)
        groups.setdefault(place, []).append(_gain(one, roles))
    sentences = []
    for (metric, kind, largest), parts in groups.items():
        data = "" if kind == "other" else f"on {kind} data "
        what = "cross-entropy (nats) by" if metric == LOSS else f"{metric_name(metric)} by"
        sentences.append(
            f"Pretraining {data}({largest} tokens) changes {what} {listed(parts)}, against none"
        )
    if not sentences:
        return (
            "There is no run without pretraining to compare with, so what pretraining buys is "
            "not known."
        )
    return f"{'. '.join(sentences)}. {_worth(headline, roles)}"


def _gain(one: Gain, roles: Roles) -> str:
    # A gain is positive where things get better; here they go up or down.
    change = with_interval(*one.gain.turned(better(one.metric)), signed=True)
    return f"{change} in {roles.pair(one.place)}"


def _worth(headline: Headline, roles: Roles) -> str:
    """In finetuning data, where the pools measure it."""
    parts = []
    for one in headline.gains:
        if one.transfer:
            pool = "" if one.in_pool else f" (a pool of {short_size(one.transfer.pool)} tokens)"
            parts.append(f"{times(one.transfer)} as much in {roles.pair(one.place)}{pool}")
    if parts:
        return (
            "Without pretraining, the same cross-entropy takes more finetuning data: "
            f"{listed(parts)}."
        )
    return "These pools do not measure what it is worth in finetuning data."


def _which(headline: Headline, roles: Roles) -> str:
    if not headline.choices:
        return "Only one pretraining data set was tried, so there is nothing to choose from."
    parts = [_best(one, roles) for one in headline.choices]
    return "Best at the largest D_p: " + "; ".join(parts) + "."


def _best(one: BestData, roles: Roles) -> str:
    """ "en-de balanced (en+de), by 0.31 BLEU (0.1 to 0.5) over target only (de)"."""
    pair, first, second = roles.pair(one.place), roles.words(one.place), roles.words(one.second)
    if one.ahead is None:
        return f"{pair} {first}, before {second}"
    unit = "nats" if one.metric == LOSS else metric_name(one.metric)
    by = with_interval(one.ahead.value, one.ahead.low, one.ahead.high, unit=unit)
    if one.answer.is_open:
        return f"{pair} {first}, but {second} may be as good ({by} behind)"
    return f"{pair} {first}, by {by} over {second}"


def _laws(reach: Reach) -> str:
    limit = f"Beyond {short_size(reach.largest)} tokens nothing was checked."
    if not reach.accuracies:
        return f"There are too few pretraining sizes for a law that could be checked. {limit}"
    errors = []
    for one in reach.accuracies:
        name = "cross-entropy" if one.metric == LOSS else metric_name(one.metric)
        worst = f", at worst {one.worst:.1%}" if one.curves > 1 else ""
        errors.append(f"{one.median:.1%} for {name}{worst}")
    none = f", {reach.without_law} have no shape for a law" if reach.without_law else ""
    return (
        f"Fitted to all sizes but the largest, laws meet that one, {reach.decades:.1f} decades on, "
        f"within {listed(errors)}{' (medians)' if reach.curves > 2 else ''}; predictable: "
        f"{reach.predictable} of {reach.curves} {'curve' if reach.curves == 1 else 'curves'}{none}."
        f" {limit}"
    )
