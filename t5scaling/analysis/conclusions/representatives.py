"""What represents a study where one answer is wanted: one rule for the model, one for the score.

The main model is the one with the most curves; of equals, the first by name. The score that speaks
for a task is BLEU where its models translate; where they do not, chrF is shown but decides nothing,
for it says no more than a BLEU near 0. Where BLEU was not measured, chrF speaks, and without both
the first other score by name.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.metrics import BLEU, CHRF, LOWER_IS_BETTER, is_bleu
from t5scaling.analysis.results.curves import Curve

TRANSLATES = 1.0  # BLEU below this everywhere is no translation


@dataclass(frozen=True)
class Score:
    """name: the metric to show, None if no score was measured. decides: whether conclusions may
    rest on it; else cross-entropy alone answers."""

    name: str | None
    decides: bool

    @property
    def deciding(self) -> str | None:
        """Its name if it decides, else None."""
        return self.name if self.decides else None


def models_by_curves(curve_fits: Sequence[CurveFit]) -> list[str]:
    """The models of a study, the main one first."""
    counts = Counter(curve_fit.curve.place.of_study.model for curve_fit in curve_fits)
    return sorted(counts, key=lambda name: (-counts[name], name))


def speaking_score(curve_fits: Sequence[CurveFit]) -> Score:
    """Of curves that belong together: of one task or language pair, in one pool or in several."""
    names = {curve_fit.curve.metric for curve_fit in curve_fits} - LOWER_IS_BETTER
    if BLEU in names:
        if any(translates(curve_fit) for curve_fit in curve_fits if curve_fit.curve.metric == BLEU):
            return Score(BLEU, True)
        return Score(CHRF if CHRF in names else BLEU, False)
    name = CHRF if CHRF in names else min(names, default=None)
    own = [curve_fit for curve_fit in curve_fits if curve_fit.curve.metric == name]
    return Score(name, any(translates(curve_fit) for curve_fit in own))


def translates(curve_fit: CurveFit) -> bool:
    """Whether a curve's score is one of translations; True of metrics other than BLEU."""
    return not is_bleu(curve_fit.curve.metric) or max(means(curve_fit.curve).values()) >= TRANSLATES


def means(curve: Curve) -> dict[float, float]:
    """Size -> mean over seeds; 0: without pretraining, if that was measured."""
    values: dict[float, list[float]] = {}
    for p in (*curve.baseline, *curve.points):
        values.setdefault(p.x, []).append(p.value)
    return {x: math.fsum(v) / len(v) for x, v in sorted(values.items())}
