"""How each claim of the paper is judged on one language pair: the votes of curves, and what they
rest on. The rules are written out in `claims`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer, worth_it
from t5scaling.analysis.conclusions.diagnosis import relate
from t5scaling.analysis.conclusions.evidence import (
    Evidence,
    Range,
    at_equal_sizes,
    majority,
    mean_range,
)
from t5scaling.analysis.conclusions.representatives import TRANSLATES, means, translates
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.fitting.rollout import predictions, rms_log_error
from t5scaling.analysis.metrics import (
    BLEU,
    LOSS,
    better,
    metric_name,
    resolution_of,
)
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.roles import ALIGNED, BALANCED, MIXED, SOURCE, TARGET, UNRELATED
from t5scaling.analysis.wording import capitalised, size, with_interval

NEARLY_NONE = 0.25  # of the gain in the smallest pool
FLAT = 1e-4  # of log scores per nat: an exponential that does not fall
PENALTY = 0.05  # of log BLEU: a brevity penalty of 0.95
PAPER_ERROR = 0.061
FARTHER = 2.0  # times as many examples seen: pools below that hardly differ

Vote = bool | None
PAPERS_ERROR = f"RMS error of logs, fitted to the 4 smallest D_p (the paper: at most {PAPER_ERROR})"
CHANGE = "change from the smallest to the largest D_p"
GAIN = "gain over no pretraining"


@dataclass(frozen=True)
class Measurement:
    """One number that a claim rests on.

    what: the data and the pool in words. quantity: what the number is. value, low, high: it and its
    interval, None where it has none. shape: of the curve, where that votes. vote: whether it speaks
    for the claim, open where it does not vote. place: None of what spans several.
    """

    metric: str
    what: str
    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None
    shape: Shape | None = None
    vote: Answer = Answer.OPEN
    place: Place | None = None


@dataclass(frozen=True)
class Finding:
    """One claim on one pair: whether the study reproduces it. measured: in a few sentences.
    needed: what would decide it, if it is open. numbers: what it rests on."""

    pair: str
    answer: Answer
    measured: str
    needed: str = ""
    numbers: tuple[Measurement, ...] = ()


# (a) aligned data follow the laws


def law_vote(curve_fit: CurveFit) -> Vote:
    """Of a score: whether it does as the log-law says; open where nothing checks that."""
    verdict = curve_fit.verdict
    if not translates(curve_fit) or not (verdict.improves or verdict.breaks):
        return None
    if verdict.shape is Shape.UNCHECKED:
        return None
    return verdict.shape is Shape.PREDICTABLE


def improvement_vote(curve_fit: CurveFit) -> Vote:
    return True if curve_fit.verdict.improves else False if curve_fit.verdict.breaks else None


def aligned_follow(evidence: Evidence, pair: str) -> Finding:
    losses, score = evidence.of(pair, LOSS, ALIGNED), evidence.score(pair)
    scores = evidence.of(pair, score, ALIGNED) if score else []
    votes = [improvement_vote(curve_fit) for curve_fit in losses]
    said = [counted("cross-entropy improves with D_p", votes)] if votes else []
    law_votes = [law_vote(curve_fit) for curve_fit in scores]
    numbers = _changes(evidence, [*losses, *scores], [*votes, *law_votes])
    if score and scores:
        said.append(counted(f"{metric_name(score)} does as the log-law says", law_votes))
        said += _errors(scores)
        numbers += _in_the_papers_protocol(evidence, scores)
    else:
        said.append(evidence.why_no_score(pair))
    vote = majority([*votes, *law_votes])
    needed = ""
    if not losses and not scores:
        vote, needed = None, f"pretraining data of both languages of {pair}"
        said = ["no aligned data"]
    elif vote is not False and majority(law_votes) is None:
        vote = None  # cross-entropy alone does not make the claim
        needed = _more_of_score(evidence, pair, score, "in 6 or more D_p")
    return finding(pair, vote, said, needed, numbers)


def _errors(scores: Sequence[CurveFit]) -> list[str]:
    """How the law does where it was not fitted."""
    checks = [curve_fit.check for curve_fit in scores if curve_fit.check.predictions]
    errors = sorted(check.error for check in checks if check.error is not None)
    if not errors:
        return []
    count = sum(len(check.predictions) for check in checks)
    inside = sum(check.inside for check in checks)
    spread = f"{errors[0]:.2g}" + (f" to {errors[-1]:.2g}" if len(errors) > 1 else "")
    return [
        f"its error on the next size, predicted from those before it, is {spread} (root mean "
        f"square of logs), and {inside} of {count} such sizes lie in its 90 % interval"
    ]


def _in_the_papers_protocol(evidence: Evidence, scores: Sequence[CurveFit]) -> list[Measurement]:
    """The error of each law fitted to the 4 smallest sizes on all others."""
    found = []
    for curve_fit in scores:
        x, y = curve_fit.curve.arrays
        if not curve_fit.fit:
            continue
        errors = curve_fit.curve.errors
        if held_out := predictions(curve_fit.law, x, y, protocol="paper", errors=errors):
            found.append(
                Measurement(
                    curve_fit.curve.metric, evidence.place_words(curve_fit), PAPERS_ERROR,
                    rms_log_error(held_out), place=curve_fit.curve.place,
                )
            )  # fmt: skip
    return found


# (b) larger pools, smaller gain


def pools_matter(evidence: Evidence, pair: str) -> Finding:
    votes, said, needed, numbers = [], [], [], []
    score = evidence.score(pair)
    for metric in [LOSS] + ([score] if score else []):
        matched = evidence.of(pair, metric, {BALANCED}) or evidence.of(pair, metric, {MIXED})
        for curves in _by_data(matched)[:1]:
            gains = _gains(curves)
            vote, words, need = _gains_shrink(evidence, gains)
            votes.append(vote)
            said += words
            numbers += [
                Measurement(
                    metric, evidence.place_words(curve_fit), GAIN, gain.value, gain.low, gain.high,
                    place=curve_fit.curve.place,
                )
                for curve_fit, gain in gains
            ]  # fmt: skip
            needed += [need] if vote is None and need else []
    if not said:
        said = [f"no aligned data of {pair}"]
        needed = [f"pretraining data of both languages of {pair}, in two or more pools"]
    needed = "; ".join(dict.fromkeys(needed))
    return finding(pair, majority(votes), said, needed, numbers)


def _gains(curves: Sequence[CurveFit]) -> list[tuple[CurveFit, Range]]:
    """The gains that have an interval, from the smallest pool to the largest."""
    found = []
    for curve_fit in sorted(curves, key=lambda curve_fit: curve_fit.curve.place.of_study.pool):
        numbers = worth_it(curve_fit).numbers
        if numbers and translates(curve_fit):
            found.append((curve_fit, Range(*numbers)))
    return found


def _gains_shrink(
    evidence: Evidence, gains: Sequence[tuple[CurveFit, Range]]
) -> tuple[Vote, list[str], str]:
    if not gains:
        return None, [], "runs without pretraining and 3 or more D_p"
    (first, small), (last, large) = gains[0], gains[-1]
    metric = first.curve.metric
    name = metric_name(metric)
    if len(gains) < 2:
        place = f"in the pool of {first.curve.place.pool:,}, the only one that gives an interval"
        words = [f"{name}: the gain is {small.value:+.3g}{_factor(first)} {place}"]
        return None, words, "a second finetuning pool"
    seen = [
        evidence.seen.get((c.curve.place.task, c.curve.place.pool), math.inf) for c in (first, last)
    ]
    half = math.hypot(small.high - small.value, large.high - large.value)
    shrinks = Range(small.value - large.value, small.value - large.value - half,
                    small.value - large.value + half)  # fmt: skip
    apart = shrinks if shrinks.value >= 0 else Range(-shrinks.value, -shrinks.high, -shrinks.low)
    words = [
        f"{name}: the gain {'shrinks' if shrinks.value >= 0 else 'grows'} from {small.value:+.3g}"
        f"{_factor(first)} in the smallest pool to {large.value:+.3g}{_factor(last)} in the "
        f"largest, by {with_interval(apart.value, apart.low, apart.high)}"
    ]
    if math.isfinite(seen[0]) and seen[1] < FARTHER * seen[0]:
        words.append("a run draws hardly more from the largest pool than from the smallest")
        return None, words, "longer finetuning: the largest pools are not seen"
    none = max(NEARLY_NONE * small.value, resolution_of(metric))
    if shrinks.sure < 0 or large.low > none:
        if large.low > none and shrinks.sure > 0:
            words.append("the gain shrinks, but does not vanish")
        return False, words, ""
    if shrinks.sure > 0 and large.value < none:
        return True, words, ""
    return None, words, "more seeds at D_p = 0 and the largest D_p, or a larger pool"


def _factor(curve_fit: CurveFit) -> str:
    """Of a BLEU: how many times the baseline."""
    base, best = curve_fit.curve.baseline_value, list(means(curve_fit.curve).values())[-1]
    if not curve_fit.curve.metric.startswith(BLEU) or not base:
        return ""
    return f" ({best / base:.2g}-fold)"


# (c), (d) data that do not match


def scores_break(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    kinds = {SOURCE, UNRELATED}
    if score is None:
        needed = _more_of_score(evidence, pair, score) if evidence.of(pair, LOSS, kinds) else (
            f"source-only or unrelated data for {pair}")  # fmt: skip
        return finding(pair, None, [evidence.why_no_score(pair)], needed)
    curves = evidence.of(pair, score, kinds)
    if not curves:
        needed = f"source-only or unrelated data for {pair}"
        return finding(pair, None, ["neither source-only nor unrelated data"], needed)
    votes, name = [], metric_name(score)
    for curve_fit in curves:
        loss = evidence.beside(curve_fit, LOSS)
        loss_improves = loss is not None and loss.verdict.improves
        vote = improvement_vote(curve_fit) if translates(curve_fit) else None
        votes.append(False if vote else True if vote is False and loss_improves else None)
    said = [counted(f"{name} breaks while cross-entropy improves", votes)]
    numbers = _changes(evidence, curves, votes)
    vote, targets = majority(votes), evidence.of(pair, score, {TARGET})
    if targets:
        holds = [improvement_vote(curve_fit) for curve_fit in targets]
        numbers += _changes(evidence, targets, holds)
        said.append(counted(f"with target-only data {name} keeps improving", holds))
        if vote and majority(holds) is False:
            vote = False
    needed = "" if vote is not None else f"more seeds at each D_p, so that a fall of {name} shows"
    return finding(pair, vote, said, needed, numbers)


def unrelated_fit(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    curves = evidence.of(pair, score, {UNRELATED}) if score else []
    if score is None or not curves:
        if evidence.of(pair, LOSS, {UNRELATED}):
            needed = _more_of_score(evidence, pair, score)
            return finding(pair, None, [evidence.why_no_score(pair)], needed)
        return finding(pair, None, ["no unrelated data"], f"data of other languages for {pair}")
    votes = [law_vote(curve_fit) for curve_fit in curves]
    name = metric_name(score)
    said = [counted(f"{name} does as the log-law says", votes)]
    needed = f"more seeds at each D_p, so that a trend of {name} shows"
    numbers = _changes(evidence, curves, votes)
    return finding(pair, majority(votes), [*said, *_errors(curves)], needed, numbers)


def _changes(
    evidence: Evidence, curves: Sequence[CurveFit], votes: Sequence[Vote]
) -> list[Measurement]:
    """How far each curve goes, its shape and its vote; by data, the smallest pool first."""

    def order(one: tuple[CurveFit, Vote]) -> tuple[bool, str, int]:
        curve = one[0].curve
        return curve.metric != LOSS, curve.place.of_study.data, curve.place.of_study.pool

    return [
        Measurement(
            curve_fit.curve.metric, evidence.place_words(curve_fit), CHANGE,
            curve_fit.verdict.change, shape=curve_fit.verdict.shape, vote=Answer.by(vote),
            place=curve_fit.curve.place,
        )
        for curve_fit, vote in sorted(zip(curves, votes, strict=True), key=order)
    ]  # fmt: skip


# (e) which side of the pair the data should be of


def target_suffices(evidence: Evidence, pair: str) -> Finding:
    score, votes, said, numbers = evidence.score(pair), [], [], []
    for metric in [LOSS] + ([score] if score else []):
        kinds = [[c for c in evidence.of(pair, metric, {kind}) if translates(c)]
                 for kind in (BALANCED, TARGET, SOURCE)]  # fmt: skip
        behind = {}
        for kind, curves in zip((TARGET, SOURCE), kinds[1:], strict=True):
            behind[kind] = {
                (x, pool): better(metric) * (mine - other)
                for x, pool, mine, other in at_equal_sizes(kinds[0], curves)
            }
        both = [place for place in behind[SOURCE] if place in behind[TARGET]]
        loss_s = mean_range([behind[SOURCE][p] for p in both])
        loss_t = mean_range([behind[TARGET][p] for p in both])
        half = mean_range([behind[SOURCE][p] / 2 - behind[TARGET][p] for p in both])
        if loss_s is None or loss_t is None or half is None:
            continue
        votes.append(
            True if loss_s.sure > 0 and half.sure > 0
            else False if loss_s.sure < 0 or half.sure < 0 else None
        )  # fmt: skip
        said.append(
            f"{metric_name(metric)} behind balanced data: target-only {loss_t.value:.3g}, "
            f"source-only {loss_s.value:.3g}, over {loss_s.count} pairs of equal D_p"
        )
        numbers += [
            Measurement(metric, kind, "behind balanced data", lost.value, lost.low, lost.high,
                        vote=Answer.by(votes[-1]))
            for kind, lost in ((TARGET, loss_t), (SOURCE, loss_s))
        ]  # fmt: skip
    if not said:
        return finding(
            pair, None, ["not all three kinds of data"],
            f"balanced, target-only and source-only data for {pair} at 3 or more equal D_p",
        )  # fmt: skip
    needed = "more D_p, pools or seeds of these three data"
    return finding(pair, majority(votes), said, needed, numbers)


# (f) score against loss


def exponential(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    if score is None:
        needed = _more_of_score(evidence, pair, score)
        return finding(pair, None, [evidence.why_no_score(pair)], needed)
    results, said, numbers = [], [], []
    for name, kinds, holds in (
        ("aligned", ALIGNED, True),
        ("source-only or unrelated", {SOURCE, UNRELATED}, False),
    ):
        votes = []
        for curve_fit in evidence.of(pair, score, kinds):
            loss = evidence.beside(curve_fit, LOSS)
            if loss is None or not translates(curve_fit):
                continue
            relation = relate(curve_fit, loss)
            clear = curve_fit.verdict.improves or curve_fit.verdict.breaks
            known = relation.exponential is not None and clear
            votes.append(relation.exponential == holds if known else None)
            if relation.fit:
                # At the end of its bounds k is no number but says that the score does not fall.
                k, low, high = (
                    0.0 if abs(end) < FLAT else end for end in relation.fit.coefficients["k"]
                )
                numbers.append(
                    Measurement(
                        score, evidence.place_words(curve_fit), "k of C * e^(k * cross-entropy)",
                        k, low, high, vote=Answer.by(votes[-1]), place=curve_fit.curve.place,
                    )
                )  # fmt: skip
        results.append(majority(votes))
        if votes:
            kind = "an exponential" if holds else "no exponential"
            said.append(counted(f"{name} data: {metric_name(score)} is {kind} of the loss", votes))
        else:
            said.append(f"no {name} data")
    vote = False if False in results else None if None in results else True
    missing = [kind for kind, result in zip(("aligned", "source-only or unrelated"), results,
                                            strict=True) if result is None]  # fmt: skip
    needed = f"more D_p or seeds of {' and '.join(missing)} data" if missing else ""
    return finding(pair, vote, said, needed, numbers)


# (g) what a fall of BLEU is made of


def precision_drives(evidence: Evidence, pair: str) -> Finding:
    votes, penalties, shares, numbers = [], [], [], []
    for curve_fit in evidence.of(pair, BLEU):
        part = evidence.parts.get((curve_fit.curve.place, "bleu_brevity_penalty"))
        if part is None or not translates(curve_fit):
            continue
        scores, penalty = means(curve_fit.curve), means(part)
        sizes = [x for x in scores if x in penalty and scores[x] > 0 and penalty[x] > 0]
        if len(sizes) < 3:
            continue
        logs = np.log([[scores[x], penalty[x]] for x in sizes])
        changes = np.abs(np.diff(np.stack([logs[:, 1], logs[:, 0] - logs[:, 1]]), axis=1)).sum(1)
        share = float(changes[1] / changes.sum()) if changes.sum() else math.nan
        noise = curve_fit.verdict.noise / float(np.mean([scores[x] for x in sizes]))
        is_one = float(np.mean(np.abs(logs[:, 1]))) <= max(PENALTY, 2 * noise)
        votes.append(None if math.isnan(share) else is_one and share > 0.5)
        penalties += [penalty[x] for x in sizes]
        shares.append(share)
        what, own = evidence.place_words(curve_fit), [penalty[x] for x in sizes]
        numbers += [
            Measurement(BLEU, what, "brevity penalty (mean; smallest and largest)",
                        float(np.mean(own)), min(own), max(own), vote=Answer.by(votes[-1]),
                        place=curve_fit.curve.place),
            Measurement(BLEU, what, "share of precision in the changes of log BLEU", share,
                        vote=Answer.by(votes[-1]), place=curve_fit.curve.place),
        ]  # fmt: skip
    if not votes:
        known = any(metric == "bleu_brevity_penalty" for *_, metric in evidence.parts)
        said = "the brevity penalty was not recorded" if not known else evidence.why_no_score(pair)
        needed = "evaluations with BLEU's parts" if not known else _more_of_score(
            evidence, pair, None)  # fmt: skip
        return finding(pair, None, [said], needed)
    curves = "curve" if len(shares) == 1 else "curves"
    said = [
        f"the brevity penalty is {np.mean(penalties):.3g} on average",
        f"n-gram precisions make {np.nanmedian(shares):.0%} of the changes of log BLEU from size "
        f"to size (median of {len(shares)} {curves}), the penalty the rest",
    ]
    needed = "curves of BLEU with real changes"
    return finding(pair, majority(votes), said, needed, numbers)


# words


def finding(
    pair: str,
    vote: Vote,
    said: Iterable[str],
    needed: str,
    numbers: Iterable[Measurement] = (),
) -> Finding:
    """What a vote makes of the sentences `said`."""
    text = ". ".join(map(capitalised, said)) + "."
    return Finding(pair, Answer.by(vote), text, needed if vote is None else "", tuple(numbers))


def counted(what: str, votes: Sequence[Vote]) -> str:
    """ "what: in 2 of 3 curves, 1 undecided"."""
    undecided = sum(vote is None for vote in votes)
    ayes = sum(vote is True for vote in votes)
    curves = "curve" if len(votes) == 1 else "curves"
    return f"{what} in {ayes} of {len(votes)} {curves}" + (
        f", {undecided} undecided" if undecided else ""
    )


def _by_data(curves: Sequence[CurveFit]) -> list[list[CurveFit]]:
    groups: dict[str, list[CurveFit]] = {}
    for curve_fit in curves:
        groups.setdefault(curve_fit.curve.place.of_study.data, []).append(curve_fit)
    return list(groups.values())


def _more_of_score(evidence: Evidence, pair: str, score: str | None, where: str = "") -> str:
    if score:
        return f"more seeds {where}".strip() + f", so that a trend of {metric_name(score)} shows"
    largest = max((p.x for c in evidence.of(pair, LOSS) for p in c.curve.points), default=0)
    steps = f"a larger model, more finetuning steps or D_p beyond {size(largest)}"
    return f"{steps}, so that BLEU rises above {TRANSLATES:g}"
