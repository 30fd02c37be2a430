"""The claims of the paper on the page: a card for each that is decided, a line for each other."""

from collections.abc import Sequence
from html import escape

from t5scaling.analysis.conclusions.claim_rules import Finding, Measurement
from t5scaling.analysis.conclusions.claims import Claim
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.html.markup import folded, table
from t5scaling.analysis.wording import interval, number

WORDS = {
    Answer.YES: "reproduced", Answer.NO: "not reproduced", Answer.OPEN: "cannot tell",
}  # fmt: skip
VOTES = {Answer.YES: "for", Answer.NO: "against", Answer.OPEN: "–"}


def section(claims: Sequence[Claim], absent: Sequence[str]) -> str:
    """What Isik et al. claim, beside what this study measured."""
    decided = [claim for claim in claims if not claim.answer.is_open]
    cards = "".join(_card(claim) for claim in decided)
    html = [
        '<p>The paper is Isik et al., <a href="https://arxiv.org/abs/2402.04177">arXiv 2402.04177'
        "</a>; the wording of its claims is ours, and so are the rules by which they are judged "
        "(t5scaling/analysis/conclusions/claims.py). Intervals hold 90 %.</p>"
    ]
    html.append(f'<div class="claims">{cards}</div>' if cards else "")
    html += [_line(claim) for claim in claims if claim.answer.is_open]
    if absent:
        html.append(f'<p class="quiet">Not part of this study: {escape("; ".join(absent))}.</p>')
    return "".join(html)


def _card(claim: Claim) -> str:
    css = WORDS[claim.answer].replace(" ", "-")
    named = [f for f in claim.findings if not claim.named or f.pair == claim.named]
    beside = [f for f in claim.findings if f not in named]
    html = f"<h3>({claim.letter}) {escape(claim.title)} {_badge(claim.answer)}</h3>"
    html += f'<p class="paper">Paper: {escape(claim.paper)}</p>'
    if claim.differ:
        html += f"<p><b>Pairs differ.</b> {escape(_by_verdict(claim))}</p>"
    html += "".join(_finding(finding, claim) for finding in named)
    html += folded("Other pairs", "".join(_finding(f, claim) for f in beside))
    return f'<article class="claim {css}">{html}</article>'


def _line(claim: Claim) -> str:
    html = f'<p class="paper">Paper: {escape(claim.paper)}</p>'
    html += "".join(_finding(finding, claim) for finding in claim.findings)
    need = f": needs {escape(claim.needed)}" if claim.needed else ""
    return (
        f'<details class="open"><summary><b>({claim.letter}) {escape(claim.title)}</b> '
        f"{_badge(claim.answer)}{need}.</summary>{html}</details>"
    )


def _finding(finding: Finding, claim: Claim) -> str:
    """A sentence or two; the numbers that they rest on can be opened."""
    alone = len(claim.findings) == 1
    badge = "" if alone and finding.answer is claim.answer else f" {_badge(finding.answer)}"
    need = f" To decide this: {finding.needed}." if finding.needed else ""
    sentences = f"<p><b>{escape(finding.pair)}</b>{badge} {escape(finding.measured + need)}</p>"
    return sentences + folded("The numbers", _numbers(finding.numbers))


def _numbers(numbers: Sequence[Measurement]) -> str:
    """One table for each kind of number."""
    quantities: dict[str, list[Measurement]] = {}
    for one in numbers:
        quantities.setdefault(one.quantity, []).append(one)
    return "".join(_table(quantity, rows) for quantity, rows in quantities.items())


def _table(quantity: str, rows: Sequence[Measurement]) -> str:
    shapes, votes = any(one.shape for one in rows), any(not one.vote.is_open for one in rows)
    head = ["metric", "data", quantity, *["curve"] * shapes, *["for the claim?"] * votes]
    body = []
    for one in rows:
        value = number(one.value)
        if one.low is not None:
            value += f" ({interval(one.low, one.high)})"
        shape, vote = one.shape or "–", VOTES[one.vote]
        body.append([metric_name(one.metric), one.what, value, *[shape] * shapes, *[vote] * votes])
    return table(head, body, wrap=(1,))


def _by_verdict(claim: Claim) -> str:
    """ "reproduced: en-de; not reproduced: en-fr" """
    groups: dict[str, list[str]] = {}
    for finding in claim.findings:
        groups.setdefault(WORDS[finding.answer], []).append(finding.pair)
    return "; ".join(f"{words}: {', '.join(pairs)}" for words, pairs in groups.items()) + "."


def _badge(answer: Answer) -> str:
    words = WORDS[answer]
    return f'<span class="badge {words.replace(" ", "-")}">{escape(words)}</span>'
