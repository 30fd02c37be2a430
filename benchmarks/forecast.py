"""Whether the advice on half of a study foresees the other half: its largest pretraining size.

    python benchmarks/forecast.py results/techdoc

From each curve of cross-entropy and BLEU the points above half of its largest D_p are taken away;
`advise` is asked for that size, and its 90 % interval is held against the mean of what was measured
there. The curves that it calls predictable count; wanted are at least 80 % of them within.
"""

import argparse
import dataclasses
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rich.console import Console
from rich.table import Table

from t5scaling.analysis.conclusions.advice import CurveAdvice, advise_curves
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.harvest import runs_of
from t5scaling.analysis.results.load import load_curves

METRICS = ("cross_entropy", "bleu")
HALF = 0.5 * 1.05  # D_p are whole batches: half of 4,000,047 is 2,000,989
SAME = 1.02  # two largest D_p, as many steps of texts of other lengths
WANTED = 0.8
FEWEST = 4  # sizes that a law needs


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """measured: mean over seeds at the size that was taken away."""

    curve: Curve
    advice: CurveAdvice
    measured: float

    @property
    def predictable(self) -> bool:
        shape = self.advice.curve_fit.verdict.shape
        return shape is Shape.PREDICTABLE and bool(self.advice.forecast)

    @property
    def inside(self) -> bool:
        forecast = self.advice.forecast
        return forecast is not None and forecast.low <= self.measured <= forecast.high


def foresee(path: str) -> list[Foreseen]:
    """Every curve with enough sizes up to half of its largest."""
    found: list[Foreseen] = []
    pairs: list[tuple[float, Curve, Curve]] = []
    for curve in load_curves(path):
        end = max(point.x for point in curve.points)
        kept = tuple(point for point in curve.points if point.x <= HALF * end)
        if curve.metric in METRICS and len({point.x for point in kept}) >= FEWEST:
            pairs.append((end, curve, dataclasses.replace(curve, points=kept)))
    # Curves of one study are advised on together, as far as they end at the same D_p.
    pairs.sort(key=lambda pair: pair[0])
    while pairs:
        end = pairs[0][0]
        together = [pair for pair in pairs if pair[0] <= SAME * end]
        pairs = pairs[len(together) :]
        advice = advise_curves([kept for *_, kept in together], runs=runs_of(path), at=end)
        for (own, curve, _), one in zip(
            together, advice.curves if advice else (), strict=bool(advice)
        ):
            values = [point.value for point in curve.points if point.x == own]
            found.append(Foreseen(curve, one, statistics.fmean(values)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="directory of a study, or its results.csv")
    found = foresee(parser.parse_args().study)
    table = Table("metric", "curve", "verdict", "forecast", "90 % interval", "measured", "")
    for one in found:
        forecast = one.advice.forecast
        shown = ("none", "")
        if forecast:
            shown = (f"{forecast.value:.4g}", f"{forecast.low:.4g} to {forecast.high:.4g}")
        table.add_row(
            one.curve.metric, one.curve.label, one.advice.curve_fit.verdict.word,
            *shown, f"{one.measured:.4g}",
            ("inside" if one.inside else "outside") if forecast else "",
        )  # fmt: skip
    console = Console(width=160)
    console.print(table)
    counted = [one for one in found if one.predictable]
    inside = sum(one.inside for one in counted)
    share = f" ({inside / len(counted):.0%}, wanted {WANTED:.0%})" if counted else ""
    console.print(f"{inside} of {len(counted)} predictable curves inside{share}")


if __name__ == "__main__":
    main()
