"""The claims of the paper on the page: a card for each that is decided, a line for each other."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from t5scaling.analysis.conclusions.claim_rules import Finding, Measurement
from t5scaling.analysis.conclusions.claims import Claim
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.html.render import Badge, Range, Table, render
from t5scaling.analysis.wording import capitalised, listed, with_interval

WORDS = {
    Answer.YES: "reproduced", Answer.NO: "not reproduced", Answer.OPEN: "cannot tell",
}  # fmt: skip
VOTES = {Answer.YES: "for", Answer.NO: "against", Answer.OPEN: "–"}


def section(claims: Sequence[Claim], absent: Sequence[str]) -> Markup:
    """What Isik et al. claim, beside what this study measured."""
    return render(
        "claims.html",
        level=f"{LEVEL:.0%}",
        decided=[_claim(claim) for claim in claims if not claim.answer.is_open],
        undecided=[_claim(claim) for claim in claims if claim.answer.is_open],
        absent=absent,
    )


def _claim(claim: Claim) -> dict[str, Any]:
    named = [f for f in claim.findings if not claim.named or f.pair == claim.named]
    others = [f for f in claim.findings if f not in named]
    by_answer: dict[str, list[str]] = {}
    for finding in claim.findings:
        by_answer.setdefault(WORDS[finding.answer], []).append(finding.pair)
    words = "; ".join(f"{answer} in {listed(pairs)}" for answer, pairs in by_answer.items())
    return {
        "letter": claim.letter,
        "title": claim.title,
        "paper": claim.paper,
        "badge": _badge(claim.answer),
        "css": WORDS[claim.answer].replace(" ", "-"),
        "needed": claim.needed,
        "sentence": f"{capitalised(words)}." if len(claim.findings) > 1 else "",
        "overview": _overview(claim),
        "findings": [_finding(finding, claim) for finding in (*named, *others)],
    }


def _overview(claim: Claim) -> tuple[str, Table] | None:
    """(title, table) of the numbers that the answer rests on, one below the other with their
    intervals drawn on one scale: those of the first kind that has intervals; or else how the curves
    vote."""
    numbers = [(f.pair, one) for f in claim.findings for one in f.numbers if one.low is not None]
    if not numbers:
        return _votes(claim)
    first = numbers[0][1]
    shown = [
        (pair, one)
        for pair, one in numbers
        if (one.metric, one.quantity) == (first.metric, first.quantity)
    ]
    ends = [end for _, one in shown for end in (one.value, one.low, one.high) if end is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    # Where all are of one kind of data, in several pools, the pools are enough.
    split = [one.what.partition(", ") for _, one in shown]
    kinds = {data.partition(" (")[0] for data, _, _ in split}
    same = len(kinds) == 1 and all(pool for _, _, pool in split)
    body, before = [], ""
    for (pair, one), (_, _, pool) in zip(shown, split, strict=True):
        body.append([
            pair if pair != before else "", pool if same else one.what, _value(one),
            Range.of(low, high, one.value, one.low, one.high),
        ])  # fmt: skip
        before = pair
    title = f"{metric_name(first.metric)}: {first.quantity}"
    title += f", {kinds.pop()} data" if same else ""
    return title, Table(["pair", "pool" if same else "data", "value", ""], body, wrap=(1, 2))


def _votes(claim: Claim) -> tuple[str, Table] | None:
    """How many curves of each metric speak for the claim, against it, and for neither."""
    counts: dict[tuple[str, str], Counter[Answer]] = {}
    for finding in claim.findings:
        for one in finding.numbers:
            counts.setdefault((finding.pair, one.metric), Counter())[one.vote] += 1
    body = [
        [pair, metric_name(metric), *(count[answer] for answer in Answer)]
        for (pair, metric), count in counts.items()
    ]
    head = ["pair", "curves of", "for", "against", "undecided"]
    return ("How the curves vote", Table(head, body, numbers=(2, 3, 4))) if body else None


def _finding(finding: Finding, claim: Claim) -> dict[str, Any]:
    """A sentence or two; the numbers that they rest on can be opened."""
    tables: dict[tuple[str, str], list[Measurement]] = {}
    for one in finding.numbers:
        tables.setdefault((one.metric, one.quantity), []).append(one)
    alone = len(claim.findings) == 1 and finding.answer is claim.answer
    return {
        "pair": finding.pair,
        "badge": _badge(finding.answer),
        "show_badge": not alone,
        "measured": finding.measured,
        "needed": finding.needed,
        "tables": [
            _table(f"{metric_name(metric)}: {quantity}", rows)
            for (metric, quantity), rows in tables.items()
        ],
    }


def _table(title: str, rows: Sequence[Measurement]) -> Table:
    """The numbers of one kind, with the shapes and votes of curves where there are any."""
    shapes, votes = any(one.shape for one in rows), any(not one.vote.is_open for one in rows)
    head = ["data", title, *["curve"] * shapes, *["for the claim?"] * votes]
    body = []
    for one in rows:
        value = _value(one)
        shape = Badge("word", one.shape) if one.shape else "–"
        body.append([one.what, value, *[shape] * shapes, *[VOTES[one.vote]] * votes])
    return Table(head, body, wrap=(0, 1))


def _value(one: Measurement) -> str:
    return with_interval(one.value, one.low, one.high)


def _badge(answer: Answer) -> Badge:
    return Badge("badge", WORDS[answer])
