"""The claims of the paper on the page: a card for each that is decided, a line for each other."""

from collections.abc import Sequence
from html import escape

from t5scaling.analysis.conclusions.claims import OPEN, Claim, Finding
from t5scaling.analysis.presentation.html.markup import folded


def section(claims: Sequence[Claim], absent: Sequence[str]) -> str:
    """What Isik et al. claim, beside what this study measured."""
    decided = [claim for claim in claims if claim.verdict != OPEN]
    cards = "".join(_card(claim) for claim in decided)
    html = [
        '<p>The paper is Isik et al., <a href="https://arxiv.org/abs/2402.04177">arXiv 2402.04177'
        "</a>; the wording of its claims is ours, and so are the rules by which they are judged "
        "(t5scaling/analysis/conclusions/claims.py). Intervals hold 90 %.</p>"
    ]
    html.append(f'<div class="claims">{cards}</div>' if cards else "")
    html += [_line(claim) for claim in claims if claim.verdict == OPEN]
    if absent:
        html.append(f'<p class="quiet">Not part of this study: {escape("; ".join(absent))}.</p>')
    return "".join(html)


def _card(claim: Claim) -> str:
    css = claim.verdict.replace(" ", "-")
    named = [f for f in claim.findings if not claim.named or f.pair == claim.named]
    beside = [f for f in claim.findings if f not in named]
    html = f"<h3>({claim.letter}) {escape(claim.title)} {_badge(claim.verdict)}</h3>"
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
        f"{_badge(claim.verdict)}{need}.</summary>{html}</details>"
    )


def _finding(finding: Finding, claim: Claim) -> str:
    alone = len(claim.findings) == 1
    badge = "" if alone and finding.verdict == claim.verdict else f" {_badge(finding.verdict)}"
    need = f" To tell: {finding.needed}." if finding.needed else ""
    return f"<p><b>{escape(finding.pair)}</b>{badge} {escape(finding.measured + need)}</p>"


def _by_verdict(claim: Claim) -> str:
    """ "reproduced: en-de; not reproduced: en-fr" """
    groups: dict[str, list[str]] = {}
    for finding in claim.findings:
        groups.setdefault(finding.verdict, []).append(finding.pair)
    return "; ".join(f"{verdict}: {', '.join(pairs)}" for verdict, pairs in groups.items()) + "."


def _badge(verdict: str) -> str:
    return f'<span class="badge {verdict.replace(" ", "-")}">{escape(verdict)}</span>'
