"""What Isik et al. (arXiv 2402.04177) claim, judged on a study of one's own.

Verdicts: reproduced, not reproduced, cannot tell. The paper gives no thresholds: the rules are OURS
and were written before there was a study to judge. Words such as predictable are those of
`verdict`, which weighs every change against noise; who votes, and intervals, as in `evidence`.
Improves: predictable, unpredicted or breakthrough. Breaks: nonmonotonic or inverse. Aligned data:
both languages of the pair and nothing else. Score: BLEU where the models translate.

For one language pair:

(a) Aligned curves vote. Of cross-entropy: for, if it improves; against, if it breaks. Of the score:
    for, if it is predictable; against, if it breaks or improves otherwise than the log-law says.
    The majority of the votes decides.
(b) Of balanced data (mixed ones where there are none), cross-entropy and score vote. Gains are
    those of the largest D_p over none, in the smallest and in the largest pool. For: the 90 %
    interval of the difference of the two gains lies above 0, and the gain in the largest pool is
    nearly none: below NEARLY_NONE of that in the smallest, or no more than the smallest difference
    with a meaning. Against: that interval lies below 0, or the whole interval of the gain in the
    largest pool lies above that. Nobody votes if a run draws less than FARTHER times as many
    examples from the largest pool as from the smallest.
(c) Curves of source-only and unrelated data vote: for, if the score breaks while cross-entropy
    improves; against, if the score improves. The majority decides; target-only data must not break
    in the majority of theirs. The paper says it of en-fr: that pair's verdict is the claim's.
(d) Scores of unrelated data vote: for, if predictable; against, if they break, or improve otherwise
    than the log-law says. The paper says it of en-de.
(e) Cross-entropy and score vote, each by differences paired over D_p and pools: source-only behind
    balanced data, S, and target-only behind balanced data, T. For: the interval of the mean of S
    lies above 0 and so does that of S / 2 - T: target-only data lose less than half of what
    source-only data do. Against: one of the two lies below 0.
(f) BLEU as an exponential of cross-entropy (`diagnosis.relate`). Aligned curves vote for if it
    holds, against if it does not while the score improves or breaks. Source-only and unrelated
    curves vote the other way round. For: both majorities. Against: either is against.
(g) Curves of BLEU vote. For: the brevity penalty is 1 (the mean over sizes of its log is within
    PENALTY of 0, or within two standard deviations of a point's noise in log BLEU), and n-gram
    precisions make more than half of the changes of log BLEU between neighbouring sizes. Against:
    otherwise.
(h) COMET beside BLEU: a curve votes for if both improve or neither does. (i) Scores of tasks that
    are no translation: as those of (a). (j) A second model: it and the first agree on (c).

Of the whole study: reproduced if a pair reproduces it and no pair refutes it, not reproduced if a
pair refutes it (pairs that differ are named), else cannot tell. A vote of a verdict is wrong by
chance in about 5 of 100 cases, which is why one curve decides nothing among many.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions import evidence as ev
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.diagnosis import DOES_NOT, IMPROVES, relate
from t5scaling.analysis.conclusions.evidence import Evidence, Range, majority, means
from t5scaling.analysis.conclusions.valuation import worth_it
from t5scaling.analysis.metrics import (
    BLEU,
    LOSS,
    LOWER_IS_BETTER,
    better,
    metric_name,
    resolution_of,
)
from t5scaling.analysis.results.roles import ALIGNED, BALANCED, MIXED, SOURCE, TARGET, UNRELATED
from t5scaling.analysis.wording import interval, size

REPRODUCED, REFUTED, OPEN = "reproduced", "not reproduced", "cannot tell"
NEARLY_NONE = 0.25  # of the gain in the smallest pool
PENALTY = 0.05  # of log BLEU: a brevity penalty of 0.95
PAPER_ERROR = 0.061
BREAKS = frozenset({"nonmonotonic", "inverse"})
FARTHER = 2.0  # times as many examples seen: pools below that hardly differ

Vote = bool | None


@dataclass(frozen=True)
class Finding:
    """One claim on one pair. measured: in words, with numbers. needed: what would tell, if it
    cannot be told."""

    pair: str
    verdict: str
    measured: str
    needed: str = ""


@dataclass(frozen=True)
class Claim:
    """named: the pair that the paper says it of; the other findings then stand beside it."""

    letter: str
    title: str
    paper: str
    verdict: str
    findings: tuple[Finding, ...]
    needed: str
    named: str = ""

    @property
    def differ(self) -> bool:
        """Whether pairs contradict each other."""
        return {REPRODUCED, REFUTED} <= {finding.verdict for finding in self.findings}


@dataclass(frozen=True)
class _Text:
    letter: str
    title: str
    paper: str
    judge: Callable[[Evidence, str], Finding]
    named: str = ""


def judge_claims(evidence: Evidence) -> tuple[list[Claim], list[str]]:
    """The claims that the study speaks of, and the others in words."""
    found = []
    for text in _TEXTS:
        findings = tuple(text.judge(evidence, pair) for pair in evidence.pairs)
        if text.named and text.named not in evidence.pairs:
            needed = f"{text.named}, the pair that the paper says it of"
            found.append(_claim(text, OPEN, findings, needed))
        else:
            deciding = [f for f in findings if not text.named or f.pair == text.named]
            verdict = _of_pairs(deciding)
            needs = dict.fromkeys(f.needed for f in deciding if f.needed)
            needed = "; ".join(needs) if verdict == OPEN else ""
            if not findings:
                needed = "a translation task whose record names its two languages"
            found.append(_claim(text, verdict, findings, needed))
    absent = []
    for (letter, title), judge in _FURTHER.items():
        claim = judge(evidence, letter, title)
        if claim:
            found.append(claim)
        else:
            absent.append(f"({letter}) {title}")
    return found, absent


def _claim(text: _Text, verdict: str, findings: tuple[Finding, ...], needed: str) -> Claim:
    return Claim(text.letter, text.title, text.paper, verdict, findings, needed, text.named)


def _of_pairs(findings: Sequence[Finding]) -> str:
    verdicts = {finding.verdict for finding in findings}
    return REFUTED if REFUTED in verdicts else REPRODUCED if REPRODUCED in verdicts else OPEN


def _verdict(vote: Vote) -> str:
    return OPEN if vote is None else REPRODUCED if vote else REFUTED


# (a) aligned data follow the laws


def _law_vote(this: CurveFit) -> Vote:
    """Of a score: whether it does as the log-law says."""
    word = this.verdict.word
    if not ev.translates(this) or word not in IMPROVES | BREAKS:
        return None
    return word == "predictable"


def _loss_vote(this: CurveFit) -> Vote:
    word = this.verdict.word
    return True if word in IMPROVES else False if word in BREAKS else None


def _aligned_follow(evidence: Evidence, pair: str) -> Finding:
    losses, score = evidence.of(pair, LOSS, ALIGNED), evidence.score(pair)
    scores = evidence.of(pair, score, ALIGNED) if score else []
    votes = [_loss_vote(this) for this in losses]
    said = [_count("cross-entropy improves with D_p", votes)] if votes else []
    law_votes = [_law_vote(this) for this in scores]
    if scores:
        said.append(_count(f"{metric_name(score)} does as the log-law says", law_votes))
        said += _held_out(scores)
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
    return _finding(pair, vote, said, needed)


def _held_out(scores: Sequence[CurveFit]) -> list[str]:
    fits = [this.fit for this in scores if this.fit and this.fit.held_out]
    if not fits:
        return []
    errors = sorted(fit.held_out_error for fit in fits)
    points = [p for fit in fits for p in fit.held_out]
    inside = sum(p.inside for p in points)
    spread = f"{errors[0]:.2g}" + (f" to {errors[-1]:.2g}" if len(errors) > 1 else "")
    return [
        f"its error on held-out sizes is {spread} (root mean square of logs; the paper: at most "
        f"{PAPER_ERROR}), and {inside} of {len(points)} held-out points lie in its 90 % interval"
    ]


# (b) larger pools, smaller gain


def _pools_matter(evidence: Evidence, pair: str) -> Finding:
    votes, said, needed = [], [], []
    score = evidence.score(pair)
    for metric in [LOSS] + ([score] if score else []):
        matched = evidence.of(pair, metric, {BALANCED}) or evidence.of(pair, metric, {MIXED})
        for curves in _by_data(matched)[:1]:
            vote, words, need = _gains_shrink(evidence, curves)
            votes.append(vote)
            said += words
            needed += [need] if vote is None and need else []
    if not said:
        said = [f"no aligned data of {pair}"]
        needed = [f"pretraining data of both languages of {pair}, in two or more pools"]
    return _finding(pair, majority(votes), said, "; ".join(dict.fromkeys(needed)))


def _gains_shrink(evidence: Evidence, curves: Sequence[CurveFit]) -> tuple[Vote, list[str], str]:
    curves = sorted(curves, key=lambda this: this.curve.key["finetune_examples"])
    metric, gains = curves[0].curve.metric, []
    for this in curves:
        decision = worth_it(this)
        if decision.low is not None and ev.translates(this):
            gains.append((this, Range(decision.value, decision.low, decision.high)))
    if not gains:
        return None, [], "runs without pretraining and 3 or more D_p"
    words = [f"{metric_name(metric)}, {evidence.words(curves[0])}: " + "; ".join(
        f"pool of {this.curve.key['finetune_examples']:,} {_range(gain)}{_factor(this)}"
        for this, gain in gains
    )]  # fmt: skip
    if len(gains) < 2:
        return None, words, "a second finetuning pool"
    (first, small), (last, large) = gains[0], gains[-1]
    seen = [
        evidence.seen.get((c.curve.key["task"], c.curve.key["finetune_examples"]), math.inf)
        for c in (first, last)
    ]
    if math.isfinite(seen[0]) and seen[1] < FARTHER * seen[0]:
        words.append("a run draws hardly more from the largest pool than from the smallest")
        return None, words, "longer finetuning: the largest pools are not seen"
    half = math.hypot(small.high - small.value, large.high - large.value)
    shrinks = Range(small.value - large.value, small.value - large.value - half,
                    small.value - large.value + half)  # fmt: skip
    apart = shrinks if shrinks.value >= 0 else Range(-shrinks.value, -shrinks.high, -shrinks.low)
    words[-1] += f"; {'smaller' if shrinks.value >= 0 else 'larger'} by "
    words[-1] += f"{_range(apart, sign=False)} in the largest pool"
    none = max(NEARLY_NONE * small.value, resolution_of(metric))
    if shrinks.sure < 0 or large.low > none:
        if large.low > none and shrinks.sure > 0:
            words.append("the gain shrinks, but does not vanish")
        return False, words, ""
    if shrinks.sure > 0 and large.value < none:
        return True, words, ""
    return None, words, "more seeds at D_p = 0 and the largest D_p, or a larger pool"


def _factor(this: CurveFit) -> str:
    """Of a BLEU: how many times the baseline."""
    base, best = this.curve.baseline_value, list(means(this).values())[-1]
    if not this.curve.metric.startswith(BLEU) or not base:
        return ""
    return f", {best / base:.2g}-fold"


# (c), (d) data that do not match


def _scores_break(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    kinds = {SOURCE, UNRELATED}
    if score is None:
        needed = _more_of_score(evidence, pair, score) if evidence.of(pair, LOSS, kinds) else (
            f"source-only or unrelated data for {pair}")  # fmt: skip
        return _finding(pair, None, [evidence.why_no_score(pair)], needed)
    curves = evidence.of(pair, score, kinds)
    if not curves:
        needed = f"source-only or unrelated data for {pair}"
        return _finding(pair, None, ["neither source-only nor unrelated data"], needed)
    votes, name = [], metric_name(score)
    for this in curves:
        loss = evidence.beside(this, LOSS)
        falls = loss is not None and loss.verdict.word in IMPROVES
        word = this.verdict.word if ev.translates(this) else None
        votes.append(False if word in IMPROVES else True if word in BREAKS and falls else None)
    breaks = _count(f"{name} breaks while cross-entropy improves", votes)
    said = [breaks + _courses(evidence, curves)]
    vote, targets = majority(votes), evidence.of(pair, score, {TARGET})
    if targets:
        holds = [_breaks_not(this) for this in targets]
        said.append(_count(f"with target-only data {name} keeps improving", holds))
        if vote and majority(holds) is False:
            vote = False
    needed = "" if vote is not None else f"more seeds at each D_p, so that a fall of {name} shows"
    return _finding(pair, vote, said, needed)


def _breaks_not(this: CurveFit) -> Vote:
    word = this.verdict.word
    return True if word in IMPROVES else False if word in BREAKS else None


def _unrelated_fit(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    curves = evidence.of(pair, score, {UNRELATED}) if score else []
    if not curves:
        if evidence.of(pair, LOSS, {UNRELATED}):
            needed = _more_of_score(evidence, pair, score)
            return _finding(pair, None, [evidence.why_no_score(pair)], needed)
        return _finding(pair, None, ["no unrelated data"], f"data of other languages for {pair}")
    votes = [_law_vote(this) for this in curves]
    name = metric_name(score)
    said = [_count(f"{name} does as the log-law says", votes) + _courses(evidence, curves)]
    needed = f"more seeds at each D_p, so that a trend of {name} shows"
    return _finding(pair, majority(votes), [*said, *_held_out(curves)], needed)


def _courses(evidence: Evidence, curves: Sequence[CurveFit]) -> str:
    """From the smallest to the largest D_p, of each data set in its smallest pool."""
    said = {}
    for this in sorted(curves, key=lambda c: c.curve.key["finetune_examples"]):
        values = [v for x, v in means(this).items() if x]
        said.setdefault(
            evidence.words(this),
            f"{values[0]:.3g} to {values[-1]:.3g}, {this.verdict.word or 'no verdict'}",
        )
    return " (" + "; ".join(f"{name}: {words}" for name, words in said.items()) + ")"


# (e) which side of the pair the data should be of


def _target_suffices(evidence: Evidence, pair: str) -> Finding:
    score, votes, said = evidence.score(pair), [], []
    for metric in [LOSS] + ([score] if score else []):
        kinds = [[c for c in evidence.of(pair, metric, {kind}) if ev.translates(c)]
                 for kind in (BALANCED, TARGET, SOURCE)]  # fmt: skip
        behind = {}
        for kind, curves in zip((TARGET, SOURCE), kinds[1:], strict=True):
            behind[kind] = {
                (x, pool): better(metric) * (mine - other)
                for x, pool, mine, other in ev.paired(kinds[0], curves)
            }
        both = [place for place in behind[SOURCE] if place in behind[TARGET]]
        loss_s = ev.mean_range([behind[SOURCE][p] for p in both])
        loss_t = ev.mean_range([behind[TARGET][p] for p in both])
        half = ev.mean_range([behind[SOURCE][p] / 2 - behind[TARGET][p] for p in both])
        if loss_s is None or loss_t is None or half is None:
            continue
        votes.append(
            True if loss_s.sure > 0 and half.sure > 0
            else False if loss_s.sure < 0 or half.sure < 0 else None
        )  # fmt: skip
        said.append(
            f"{metric_name(metric)} behind balanced data, at equal D_p ({loss_s.count} pairs): "
            f"target-only {_range(loss_t, sign=False)}, source-only {_range(loss_s, sign=False)}"
        )
    if not said:
        return _finding(
            pair, None, ["not all three kinds of data"],
            f"balanced, target-only and source-only data for {pair} at 3 or more equal D_p",
        )  # fmt: skip
    return _finding(pair, majority(votes), said, "more D_p, pools or seeds of these three data")


# (f) score against loss


def _exponential(evidence: Evidence, pair: str) -> Finding:
    score = evidence.score(pair)
    if score is None:
        needed = _more_of_score(evidence, pair, score)
        return _finding(pair, None, [evidence.why_no_score(pair)], needed)
    results, said = [], []
    for name, kinds, holds in (
        ("aligned", ALIGNED, True),
        ("source-only or unrelated", {SOURCE, UNRELATED}, False),
    ):
        votes = []
        for this in evidence.of(pair, score, kinds):
            loss = evidence.beside(this, LOSS)
            if loss is None or not ev.translates(this):
                continue
            relation = relate(this, loss)
            told = relation.exponential is not None and this.verdict.word in IMPROVES | BREAKS
            votes.append(relation.exponential == holds if told else None)
        results.append(majority(votes))
        if votes:
            kind = "an exponential" if holds else "no exponential"
            said.append(_count(f"{name} data: {metric_name(score)} is {kind} of the loss", votes))
        else:
            said.append(f"no {name} data")
    vote = False if False in results else None if None in results else True
    missing = [kind for kind, result in zip(("aligned", "source-only or unrelated"), results,
                                            strict=True) if result is None]  # fmt: skip
    needed = f"more D_p or seeds of {' and '.join(missing)} data" if missing else ""
    return _finding(pair, vote, said, needed)


# (g) what a fall of BLEU is made of


def _precision_drives(evidence: Evidence, pair: str) -> Finding:
    votes, penalties, shares = [], [], []
    for this in evidence.of(pair, BLEU):
        part = evidence.parts.get((*this.curve.key.values(), "bleu_brevity_penalty"))
        if part is None or not ev.translates(this):
            continue
        scores, penalty = means(this), means(part)
        sizes = [x for x in scores if x in penalty and scores[x] > 0 and penalty[x] > 0]
        if len(sizes) < 3:
            continue
        logs = np.log([[scores[x], penalty[x]] for x in sizes])
        changes = np.abs(np.diff(np.stack([logs[:, 1], logs[:, 0] - logs[:, 1]]), axis=1)).sum(1)
        share = float(changes[1] / changes.sum()) if changes.sum() else math.nan
        noise = this.verdict.noise / float(np.mean([scores[x] for x in sizes]))
        is_one = float(np.mean(np.abs(logs[:, 1]))) <= max(PENALTY, 2 * noise)
        votes.append(None if math.isnan(share) else is_one and share > 0.5)
        penalties += [penalty[x] for x in sizes]
        shares.append(share)
    if not votes:
        known = any(metric == "bleu_brevity_penalty" for *_, metric in evidence.parts)
        said = "the brevity penalty was not recorded" if not known else evidence.why_no_score(pair)
        needed = "evaluations with BLEU's parts" if not known else _more_of_score(
            evidence, pair, None)  # fmt: skip
        return _finding(pair, None, [said], needed)
    said = [
        f"brevity penalty {np.mean(penalties):.3g} on average ({min(penalties):.3g} to "
        f"{max(penalties):.3g} over {len(penalties)} points)",
        f"n-gram precisions make {np.nanmedian(shares):.0%} of the changes of log BLEU from size "
        f"to size (median of {len(shares)} curves; {np.nanmin(shares):.0%} to "
        f"{np.nanmax(shares):.0%}), the penalty the rest",
    ]
    return _finding(pair, majority(votes), said, "curves of BLEU with real changes")


# (h), (i), (j): only where a study has the data


def _comet(evidence: Evidence, letter: str, title: str) -> Claim | None:
    findings = []
    for pair in evidence.pairs:
        votes = []
        for this in evidence.of(pair, "comet"):
            bleu = evidence.beside(this, BLEU)
            if bleu and ev.translates(bleu):
                words = {this.verdict.word, bleu.verdict.word}
                told = words <= IMPROVES | DOES_NOT
                votes.append(words <= IMPROVES or words <= DOES_NOT if told else None)
        if evidence.of(pair, "comet"):
            said = [_count("COMET and BLEU both improve or neither does", votes)]
            findings.append(_finding(pair, majority(votes), said, "models that translate"))
    return _further(letter, title, findings)


def _other_tasks(evidence: Evidence, letter: str, title: str) -> Claim | None:
    by_task: dict[str, list[Vote]] = {}
    for this in evidence.other_fits:
        if this.curve.metric not in LOWER_IS_BETTER:
            by_task.setdefault(this.curve.key["task"], []).append(_law_vote(this))
    findings = [
        _finding(task, majority(votes), [_count("scores do as the log-law says", votes)],
                 "more D_p or seeds") for task, votes in sorted(by_task.items())
    ]  # fmt: skip
    return _further(letter, title, findings)


def _other_models(evidence: Evidence, letter: str, title: str) -> Claim | None:
    findings = []
    for model, other in evidence.others.items():
        if "en-fr" in evidence.pairs and "en-fr" in other.pairs:
            one, two = _scores_break(evidence, "en-fr"), _scores_break(other, "en-fr")
            vote = None if OPEN in (one.verdict, two.verdict) else one.verdict == two.verdict
            said = [f"{evidence.model}: {one.verdict}, {model}: {two.verdict}"]
            findings.append(_finding("en-fr", vote, said, "what claim (c) needs, of both models"))
    return _further(letter, title, findings)


def _further(letter: str, title: str, findings: Sequence[Finding]) -> Claim | None:
    if not findings:
        return None
    verdict = _of_pairs(findings)
    needed = "; ".join(dict.fromkeys(f.needed for f in findings)) if verdict == OPEN else ""
    return Claim(letter, title, f"{title}.", verdict, tuple(findings), needed)


# words


def _finding(pair: str, vote: Vote, said: Iterable[str], needed: str) -> Finding:
    text = ". ".join(s[0].upper() + s[1:] for s in said) + "."
    return Finding(pair, _verdict(vote), text, needed if vote is None else "")


def _count(what: str, votes: Sequence[Vote]) -> str:
    """ "what: in 2 of 3 curves, 1 undecided"."""
    undecided = sum(vote is None for vote in votes)
    ayes = sum(vote is True for vote in votes)
    curves = "curve" if len(votes) == 1 else "curves"
    return f"{what} in {ayes} of {len(votes)} {curves}" + (
        f", {undecided} undecided" if undecided else ""
    )


def _range(gain: Range, *, sign: bool = True) -> str:
    value = f"{gain.value:+.3g}" if sign else f"{gain.value:.3g}"
    return f"{value} ({interval(float(f'{gain.low:.3g}'), float(f'{gain.high:.3g}'))})"


def _by_data(curves: Sequence[CurveFit]) -> list[list[CurveFit]]:
    groups: dict[str, list[CurveFit]] = {}
    for this in curves:
        groups.setdefault(this.curve.key["pretrain_data"], []).append(this)
    return list(groups.values())


def _more_of_score(evidence: Evidence, pair: str, score: str | None, where: str = "") -> str:
    if score:
        return f"more seeds {where}".strip() + f", so that a trend of {metric_name(score)} shows"
    largest = max((p.x for c in evidence.of(pair, LOSS) for p in c.curve.points), default=0)
    steps = f"a larger model, more finetuning steps or D_p beyond {size(largest)}"
    return f"{steps}, so that BLEU rises above {ev.TRANSLATES:g}"


_TEXTS = (
    _Text("a", "Aligned data follow the laws",
          "With pretraining data of both languages, BLEU and cross-entropy improve steadily with "
          "D_p, and the log-law predicts BLEU at sizes it has not seen.", _aligned_follow),
    _Text("b", "The larger the finetuning pool, the smaller the gain",
          "More finetuning data leave less to gain from pretraining; with the largest pool it "
          "brings almost nothing over no pretraining.", _pools_matter),
    _Text("c", "Unmatched data break BLEU, not cross-entropy",
          "For en-fr, pretraining on English, German or Romanian alone makes BLEU fluctuate or "
          "fall while cross-entropy keeps improving; on French alone it does not.",
          _scores_break, "en-fr"),
    _Text("d", "English to German fits even from unrelated data",
          "For en-de, BLEU follows the log-law even when the pretraining data are of other "
          "languages.", _unrelated_fit, "en-de"),
    _Text("e", "Target-language data nearly suffice",
          "Pretraining on the target language alone is almost as good as on both; on the source "
          "language alone it is worse.", _target_suffices),
    _Text("f", "BLEU is an exponential of cross-entropy only where data are aligned",
          "Where pretraining data match the pair, BLEU falls exponentially with cross-entropy; "
          "where they do not, no such relation holds.", _exponential),
    _Text("g", "Precision, not length, moves BLEU",
          "The brevity penalty is 1 throughout: where BLEU breaks, n-gram precision does it.",
          _precision_drives),
)  # fmt: skip
_FURTHER = {
    ("h", "COMET behaves like BLEU"): _comet,
    ("i", "the log-law also fits SuperGLUE tasks"): _other_tasks,
    ("j", "a second model breaks on the same data"): _other_models,
}
