"""Decisions on one curve: is pretraining worth it, and do these data suffice for a law?

The guide is that of Isik et al., section 3.5, which publishes no threshold; all are OURS:

- Is pretraining worth it? The largest size against runs without pretraining, with the noise of a
  point (Student's t): yes if the whole interval of the gain is above the smallest difference with
  a meaning, no if all of it is below.
- Do these data suffice, that is, match the task well enough for a law? Yes if the curve is
  predictable; no if it is nonmonotonic, inverse, trendless or unpredicted; open if it is noisy, or
  nothing checks its law.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.fitting.significance import student_half_width
from t5scaling.analysis.metrics import LOWER_IS_BETTER, resolution_of
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.wording import with_interval


class Answer(StrEnum):
    """To a question that measurements may leave open."""

    YES = "yes"
    NO = "no"
    OPEN = "cannot tell"

    @staticmethod
    def by(vote: bool | None) -> "Answer":
        """Of a vote, None being open."""
        return Answer.OPEN if vote is None else Answer.YES if vote else Answer.NO

    @property
    def is_open(self) -> bool:
        return self is Answer.OPEN


@dataclass(frozen=True)
class Decision:
    """An answer with its reason; low to high: the interval of `value`, None without one."""

    answer: Answer
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def numbers(self) -> tuple[float, float, float] | None:
        """(value, low, high); None where one of them is missing."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return self.value, self.low, self.high

    def turned(self, sign: float) -> tuple[float | None, float | None, float | None]:
        """(value, low, high) times +1 or -1: a gain in a loss is a change downwards."""
        if self.value is None or self.low is None or self.high is None:
            return None if self.value is None else sign * self.value, None, None
        low, high = sorted((sign * self.low, sign * self.high))
        return sign * self.value, low, high


def sign_of(curve: Curve, direction: int) -> int:
    """+1 if more is better."""
    return -1 if curve.metric in LOWER_IS_BETTER or direction < 0 else 1


def worth_it(curve_fit: CurveFit) -> Decision:
    """Is pretraining on the most of these data better than none?"""
    curve = curve_fit.curve
    if not curve.baseline:
        return Decision(Answer.OPEN, "there is no run without pretraining")
    largest = max(p.x for p in curve.points)
    best = [p.value for p in curve.points if p.x == largest]
    base = [p.value for p in curve.baseline]
    gain = sign_of(curve, curve_fit.law.direction) * float(np.mean(best) - np.mean(base))
    noise, df = curve_fit.verdict.noise, curve_fit.verdict.noise_df
    if not noise and curve_fit.verdict.shape is None:
        return Decision(Answer.OPEN, "too few sizes to know the noise of a point", gain)
    half = student_half_width(noise * math.sqrt(1 / len(best) + 1 / len(base)), df)
    low, high, least = gain - half, gain + half, resolution_of(curve.metric)
    answer = Answer.YES if low > least else Answer.NO if high < max(least, 1e-12) else Answer.OPEN
    words = {
        Answer.YES: "the whole interval is a gain",
        Answer.NO: "no part of the interval is a gain that counts",
        Answer.OPEN: "part of the interval is a gain that counts, and part of it is not",
    }  # fmt: skip
    return Decision(
        answer,
        f"{with_interval(gain, low, high, signed=True)} over no pretraining at the largest size: "
        f"{words[answer]}",
        gain, low, high,
    )  # fmt: skip


def suffices(curve_fit: CurveFit) -> Decision:
    """Do these data match the task well enough for a law to be trusted?"""
    verdict = curve_fit.verdict
    if verdict.shape is Shape.PREDICTABLE:
        return Decision(Answer.YES, f"the curve is predictable: {verdict.reason}")
    if verdict.has_no_law or verdict.shape is Shape.UNPREDICTED:
        return Decision(Answer.NO, f"the curve is {verdict.word}: {verdict.reason}")
    return Decision(Answer.OPEN, verdict.reason)
