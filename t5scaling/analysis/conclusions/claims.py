"""What Isik et al. (arXiv 2402.04177) claim, judged on a study of one's own.

Answers: yes (reproduced), no (not reproduced), cannot tell. The paper gives no thresholds: the
rules are OURS and were written before there was a study to judge. Words such as predictable,
improves and breaks are those of `shapes`, which weighs every change against noise; who votes, and
intervals, as in `evidence`. Aligned data: both languages of the pair and nothing else. Score: the
one that speaks for the pair (`representatives`).

For one language pair:

(a) Aligned curves vote. Of cross-entropy: for, if it improves; against, if it breaks. Of the score:
    for, if it is predictable; against, if it breaks or improves otherwise than the log-law says;
    not at all, if nothing checks that. The majority of the votes decides. Shown beside it: the
    error in the paper's own protocol, fitted to the 4 smallest D_p, on all others.
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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from t5scaling.analysis.conclusions.claim_rules import (
    Finding,
    Vote,
    aligned_follow,
    counted,
    exponential,
    finding,
    law_vote,
    pools_matter,
    precision_drives,
    scores_break,
    target_suffices,
    unrelated_fit,
)
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.conclusions.evidence import Evidence, majority
from t5scaling.analysis.conclusions.representatives import translates
from t5scaling.analysis.metrics import (
    BLEU,
    LOWER_IS_BETTER,
)


@dataclass(frozen=True)
class Claim:
    """named: the pair that the paper says it of; the other findings then stand beside it."""

    letter: str
    title: str
    paper: str
    answer: Answer
    findings: tuple[Finding, ...]
    needed: str
    named: str = ""

    @property
    def differ(self) -> bool:
        """Whether pairs contradict each other."""
        return {Answer.YES, Answer.NO} <= {finding.answer for finding in self.findings}


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
            found.append(_claim(text, Answer.OPEN, findings, needed))
        else:
            deciding = [f for f in findings if not text.named or f.pair == text.named]
            answer = _of_pairs(deciding)
            needs = dict.fromkeys(f.needed for f in deciding if f.needed)
            needed = "; ".join(needs) if answer.is_open else ""
            if not findings:
                needed = "a translation task whose record names its two languages"
            found.append(_claim(text, answer, findings, needed))
    absent = []
    for (letter, title), judge in _FURTHER.items():
        claim = judge(evidence, letter, title)
        if claim:
            found.append(claim)
        else:
            absent.append(f"({letter}) {title}")
    return found, absent


def _claim(text: _Text, answer: Answer, findings: tuple[Finding, ...], needed: str) -> Claim:
    return Claim(text.letter, text.title, text.paper, answer, findings, needed, text.named)


def _of_pairs(findings: Sequence[Finding]) -> Answer:
    answers = {finding.answer for finding in findings}
    return next((a for a in (Answer.NO, Answer.YES) if a in answers), Answer.OPEN)


# (h), (i), (j): only where a study has the data


def _comet(evidence: Evidence, letter: str, title: str) -> Claim | None:
    findings = []
    for pair in evidence.pairs:
        votes = []
        for curve_fit in evidence.of(pair, "comet"):
            bleu = evidence.beside(curve_fit, BLEU)
            if bleu and translates(bleu):
                clear = curve_fit.verdict.is_clear and bleu.verdict.is_clear
                votes.append(curve_fit.verdict.improves == bleu.verdict.improves if clear else None)
        if evidence.of(pair, "comet"):
            said = [counted("COMET and BLEU both improve or neither does", votes)]
            findings.append(finding(pair, majority(votes), said, "models that translate"))
    return _further(letter, title, findings)


def _other_tasks(evidence: Evidence, letter: str, title: str) -> Claim | None:
    by_task: dict[str, list[Vote]] = {}
    for curve_fit in evidence.other_fits:
        if curve_fit.curve.metric not in LOWER_IS_BETTER:
            task = curve_fit.curve.place.of_study.task
            by_task.setdefault(task, []).append(law_vote(curve_fit))
    findings = [
        finding(task, majority(votes), [counted("scores do as the log-law says", votes)],
                 "more D_p or seeds") for task, votes in sorted(by_task.items())
    ]  # fmt: skip
    return _further(letter, title, findings)


def _other_models(evidence: Evidence, letter: str, title: str) -> Claim | None:
    findings = []
    for model, other in evidence.others.items():
        if "en-fr" in evidence.pairs and "en-fr" in other.pairs:
            one, two = scores_break(evidence, "en-fr"), scores_break(other, "en-fr")
            vote = None if Answer.OPEN in (one.answer, two.answer) else one.answer is two.answer
            said = [f"claim (c) on {evidence.model}: {one.answer}, on {model}: {two.answer}"]
            findings.append(finding("en-fr", vote, said, "what claim (c) needs, of both models"))
    return _further(letter, title, findings)


def _further(letter: str, title: str, findings: Sequence[Finding]) -> Claim | None:
    if not findings:
        return None
    answer = _of_pairs(findings)
    needed = "; ".join(dict.fromkeys(f.needed for f in findings)) if answer.is_open else ""
    return Claim(letter, title, f"{title}.", answer, tuple(findings), needed)


_TEXTS = (
    _Text("a", "Aligned data follow the laws",
          "With pretraining data of both languages, BLEU and cross-entropy improve steadily with "
          "D_p, and the log-law predicts BLEU at sizes it has not seen.", aligned_follow),
    _Text("b", "The larger the finetuning pool, the smaller the gain",
          "More finetuning data leave less to gain from pretraining; with the largest pool it "
          "brings almost nothing over no pretraining.", pools_matter),
    _Text("c", "Unmatched data break BLEU, not cross-entropy",
          "For en-fr, pretraining on English, German or Romanian alone makes BLEU fluctuate or "
          "fall while cross-entropy keeps improving; on French alone it does not.",
          scores_break, "en-fr"),
    _Text("d", "English to German fits even from unrelated data",
          "For en-de, BLEU follows the log-law even when the pretraining data are of other "
          "languages.", unrelated_fit, "en-de"),
    _Text("e", "Target-language data nearly suffice",
          "Pretraining on the target language alone is almost as good as on both; on the source "
          "language alone it is worse.", target_suffices),
    _Text("f", "BLEU is an exponential of cross-entropy only where data are aligned",
          "Where pretraining data match the pair, BLEU falls exponentially with cross-entropy; "
          "where they do not, no such relation holds.", exponential),
    _Text("g", "Precision, not length, moves BLEU",
          "The brevity penalty is 1 throughout: where BLEU breaks, n-gram precision does it.",
          precision_drives),
)  # fmt: skip
_FURTHER = {
    ("h", "COMET behaves like BLEU"): _comet,
    ("i", "the log-law also fits SuperGLUE tasks"): _other_tasks,
    ("j", "a second model breaks on the same data"): _other_models,
}
