"""What a study has to say on claims: its curves by language pair and role, and their differences.

A claim is weighed by curves, each of one (task, pretraining data, finetuning pool, metric):

- Each curve votes for the claim, against it, or not at all. A curve that is trendless or noisy, or
  has too few sizes for a verdict, does not vote; the rules are in `claims`.
- BLEU near 0 is noise: a BLEU curve votes only if its mean at some size, or without pretraining,
  is that of a translation. Which score speaks for a pair: `representatives`.
- Intervals hold 90 %. Of a gain: Student's t with the noise of a point that the curve's verdict
  found (among seeds, or between neighbouring sizes). Of paired differences: Student's t over the
  pairs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import means, models_by_curves, speaking_score
from t5scaling.analysis.fitting.significance import student_half_width
from t5scaling.analysis.metrics import BLEU, CHRF, better
from t5scaling.analysis.results.curves import Curve, curves_of
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.pools import pools
from t5scaling.analysis.results.roles import OTHER, roles_of

SAME_SIZE = 0.1  # of the logs: D_p of two data sets that count as equal


@dataclass(frozen=True)
class Range:
    """A difference, in the better direction, with its 90 % interval; over `count` pairs."""

    value: float
    low: float
    high: float
    count: int = 1

    @property
    def sure(self) -> int:
        """+1 or -1 if the whole interval lies on one side of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Evidence:
    """The curves of one model of a study, the one with the most; translation tasks only."""

    def __init__(
        self,
        curve_fits: Sequence[CurveFit],
        runs: Sequence[RunRecord],
        rows: Sequence[Mapping[str, Any]],
        model: str | None = None,
    ):
        self.roles = roles_of(runs)
        self.models = models_by_curves(curve_fits)
        self.model = model or self.models[0]
        own = [curve_fit for curve_fit in curve_fits if curve_fit.curve.place.model == self.model]
        pairs = {task for task, _ in self.roles.of if self._translates(task)}
        self.fits = [curve_fit for curve_fit in own if curve_fit.curve.place.task in pairs]
        self.other_fits = [
            curve_fit for curve_fit in own if curve_fit.curve.place.task not in pairs
        ]
        self.pairs = sorted({self.roles.pair(curve_fit.curve.place) for curve_fit in self.fits})
        self.others: dict[str, Evidence] = {}
        if model is None:
            self.others = {name: Evidence(curve_fits, runs, rows, name) for name in self.models[1:]}
        self.parts: dict[tuple[Place, str], Curve] = {
            (curve.place, curve.metric): curve for curve in curves_of(rows, parts=True)
        }
        # Of a pool, what a run draws from it: pools that no run sees whole do not differ.
        self.seen = {
            (p.task, p.examples): p.examples * min(1.0, p.share or 1.0) for p in pools(runs)
        }

    def _translates(self, task: str) -> bool:
        return any(role.kind != OTHER for (name, _), role in self.roles.of.items() if name == task)

    def of(self, pair: str, metric: str, kinds: Iterable[str] | None = None) -> list[CurveFit]:
        """The curves of a pair and metric, of data with these roles; by data and pool."""
        wanted = None if kinds is None else set(kinds)
        return [
            curve_fit
            for curve_fit in self.fits
            if self.roles.pair(curve_fit.curve.place) == pair
            and curve_fit.curve.metric == metric
            and (wanted is None or self.roles.kind(curve_fit.curve.place) in wanted)
        ]

    def score(self, pair: str) -> str | None:
        """The score that speaks for the pair (`representatives`); None if none decides."""
        return speaking_score([*self.of(pair, BLEU), *self.of(pair, CHRF)]).deciding

    def why_no_score(self, pair: str) -> str:
        if not self.of(pair, BLEU):
            return "no translation score was measured"
        highest = max(max(means(curve_fit.curve).values()) for curve_fit in self.of(pair, BLEU))
        return f"BLEU stays at {highest:.2g} or below, which is no translation"

    def words(self, curve_fit: CurveFit) -> str:
        return self.roles.words(curve_fit.curve.place)

    def place_words(self, curve_fit: CurveFit) -> str:
        """The data and the pool of a curve."""
        return f"{self.words(curve_fit)}, pool of {curve_fit.curve.place.pool:,}"

    def beside(self, curve_fit: CurveFit, metric: str) -> CurveFit | None:
        """The curve of another metric over the same runs."""
        wanted = metric, curve_fit.curve.place
        return next((o for o in self.fits if (o.curve.metric, o.curve.place) == wanted), None)


def majority(votes: Iterable[bool | None]) -> bool | None:
    """What more than half of those who vote say; None if nobody votes, or both sides are equal."""
    cast = [vote for vote in votes if vote is not None]
    ayes = sum(cast)
    return None if 2 * ayes == len(cast) else 2 * ayes > len(cast)


def at_equal_sizes(
    one: Sequence[CurveFit], other: Sequence[CurveFit]
) -> list[tuple[float, int, float, float]]:
    """(D_p, pool, value of one, value of the other) at equal D_p and pool; D_p = 0 left out.

    D_p counts as equal within SAME_SIZE: data sets are cut at whole batches, not at tokens.
    """
    found = []
    for a in one:
        pool = a.curve.place.pool
        for b in other:
            if b.curve.place.pool != pool:
                continue
            mine, others = ({x: v for x, v in means(c.curve).items() if x} for c in (a, b))
            for x, value in mine.items():
                near = min(others, key=lambda size, x=x: abs(math.log(size / x)))
                if abs(math.log(near / x)) < SAME_SIZE:
                    found.append((x, pool, value, others[near]))
    return found


def mean_range(differences: Sequence[float]) -> Range | None:
    """Their mean with Student's interval; None for fewer than 3."""
    if len(differences) < 3:
        return None
    values = np.asarray(differences, float)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half, mean = student_half_width(error, len(values) - 1), float(values.mean())
    return Range(mean, mean - half, mean + half, len(values))


def at_largest(one: CurveFit, other: CurveFit) -> Range | None:
    """By how much `one` is better than `other` at the largest D_p that both have, with the noise of
    their points; None without such a size or a noise."""
    common = at_equal_sizes([one], [other])
    noises = [c.verdict.noise for c in (one, other)]
    if not common or not all(noises):
        return None
    x, _, mine, others = max(common)
    variance = 0.0
    for curve_fit, noise in zip((one, other), noises, strict=True):
        here = sum(abs(math.log(p.x / x)) < SAME_SIZE for p in curve_fit.curve.points)
        variance += noise**2 / max(here, 1)
    df = min(c.verdict.noise_df for c in (one, other))
    half = student_half_width(math.sqrt(variance), df)
    gain = better(one.curve.metric) * (mine - others)
    return Range(gain, float(gain - half), float(gain + half))
