"""The shape of a curve in one word, decided against the noise of its points.

The words are those of Lourie et al. (2025): predictable, inverse, nonmonotonic, noisy, trendless,
breakthrough; and two of ours for a clear trend: unpredicted, where the law gets it wrong, and
unchecked, where nothing says whether it does. The paper (Isik et al., arXiv 2402.04177, section
3.5) publishes no thresholds. All of these are OURS:

- Noise of a point: the spread among seeds at the same size, if it has 2 degrees of freedom or more:
  of all curves of its task, pool and metric and their baseline (`curves`), or of the curve's own
  points where those are more. Two or three pairs of seeds alone can lie close together by chance.
  Without such seeds, the deviation of inner points from the line between their neighbours, which
  takes a curve that goes up and down for noise: only seeds tell the two apart.
- A change is real if fewer than 5 % of bootstrap replicates of a flat curve with that noise (and
  with the noise's own uncertainty) show one as large. Two kinds are tested: the largest rise and
  the largest fall between any two sizes (against the largest rise of the flat curve, so that
  looking at all pairs costs nothing), and the straight-line trend over log D.
- Changes below a metric's resolution (`metrics`) mean nothing, whatever their order: BLEU of 0.04
  and 0.18 are both no translation.
- NOISY_SHARE: noise above this share of the total change makes a trend noisy.
- BREAKTHROUGH_SHARE: one step holding more than this share of the total change, of 5 sizes or more.
- Among ENOUGH sizes or more, one inner size without which the noise between neighbours is less than
  OUTLIER of what it is with it is set aside, where seeds do not measure the noise: one stray
  measurement is no shape.
- Whether the law predicts is decided by its check (`rollout.Check`). A prediction is met if it errs
  by no more than STEP_TOLERANCE of what the metric changes from the last fitted size to the
  predicted one, or than twice the noise of a point. Not of the value: a cross-entropy that falls
  from 6.4 to 5.9 is met within 10 % by any constant. Else it is missed if the measurement lies
  outside its interval, or farther off than the noise of a point can explain (twice that noise,
  times what it comes to at the predicted size): a law that does not fit its own points has wide
  intervals. It is met if it lies inside and the interval is narrower than that change. All others
  decide nothing; nor does a prediction whose error or whose interval reaches NOTHING of the value,
  as long as it lies inside. The law is unpredicted if more than half of all are missed, predictable
  if half of them or more are met, and unchecked if neither holds, or nothing was predicted: so one
  outlier, and what it does to the next few predictions, does not condemn a law.

In order: trendless if the whole range is below the resolution; nonmonotonic if there is a real rise
and a real fall; trendless if there is no real change; inverse if the real change is for the worse;
noisy; breakthrough; unpredicted; predictable; unchecked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from t5scaling.analysis.fitting.fit import deviations_from_neighbours, noise_between_neighbours
from t5scaling.analysis.fitting.rollout import Prediction
from t5scaling.analysis.fitting.significance import SIGNIFICANCE

NOISY_SHARE = 0.25
BREAKTHROUGH_SHARE = 0.75
STEP_TOLERANCE = 0.5
NOTHING = 0.9
ENOUGH = 7
OUTLIER = 0.5
REPLICATES = 4000


class Shape(StrEnum):
    """What a curve does as the size grows."""

    PREDICTABLE = "predictable"
    UNPREDICTED = "unpredicted"
    UNCHECKED = "unchecked"
    BREAKTHROUGH = "breakthrough"
    NOISY = "noisy"
    TRENDLESS = "trendless"
    NONMONOTONIC = "nonmonotonic"
    INVERSE = "inverse"

    @property
    def improves(self) -> bool:
        """It gets better, beyond noise."""
        return self in (
            Shape.PREDICTABLE, Shape.UNPREDICTED, Shape.UNCHECKED, Shape.BREAKTHROUGH,
        )  # fmt: skip

    @property
    def breaks(self) -> bool:
        """It gets worse, at some sizes or at all."""
        return self in (Shape.NONMONOTONIC, Shape.INVERSE)

    @property
    def has_no_law(self) -> bool:
        """It does not improve: no law is for such a curve."""
        return self.breaks or self is Shape.TRENDLESS

    @property
    def meaning(self) -> str:
        """What the curve does, as the rest of a sentence that begins with it."""
        return {
            Shape.PREDICTABLE: "improves with pretraining, and the law comes close to what it was "
            "not shown",
            Shape.INVERSE: "gets worse with more pretraining",
            Shape.NONMONOTONIC: "improves and worsens again, beyond noise",
            Shape.NOISY: "improves, but the points scatter too much to trust a law",
            Shape.TRENDLESS: "does not change beyond noise; no law should be read into it",
            Shape.BREAKTHROUGH: "improves almost all at once at one size",
            Shape.UNPREDICTED: "improves clearly, but not as the law says",
            Shape.UNCHECKED: "improves clearly, but nothing checks what the law says of it",
        }[self]


@dataclass(frozen=True)
class Verdict:
    """shape: None if the curve has too few sizes for any. reason: a sentence with the numbers.

    change: from the smallest to the largest size, in the metric's unit (mean over seeds).
    noise: standard deviation of one point, in the metric's unit, 0 if nothing shows it; known with
    noise_df degrees of freedom, 0 if those were not counted.
    """

    shape: Shape | None
    reason: str
    change: float
    noise: float
    noise_df: int = 0

    @property
    def improves(self) -> bool:
        return self.shape is not None and self.shape.improves

    @property
    def breaks(self) -> bool:
        return self.shape is not None and self.shape.breaks

    @property
    def has_no_law(self) -> bool:
        """False also where the sizes are too few for a shape."""
        return self.shape is not None and self.shape.has_no_law

    @property
    def is_clear(self) -> bool:
        """Whether it says that the curve gets better, or that it does not."""
        return self.improves or self.has_no_law

    @property
    def word(self) -> str:
        return self.shape or "no verdict"


def judge(
    x: np.ndarray,
    y: np.ndarray,
    *,
    lower_is_better: bool,
    resolution: float = 0.0,
    check: Sequence[Prediction] = (),
    seed_noise: tuple[float, int] | None = None,
) -> Verdict:
    """Judges the points (x, y) of one curve, fitted and held out together; x > 0.

    check: what its law predicts of points that it was not fitted to.
    seed_noise: (standard deviation, degrees of freedom) of a point, from this and other curves.
    """
    log_x, y = np.log(np.asarray(x, float)), np.asarray(y, float)
    sizes, where, counts = np.unique(log_x, return_inverse=True, return_counts=True)
    means = np.bincount(where, y) / counts
    change = float(means[-1] - means[0])
    sigma, df = _noise(sizes, means, y - means[where], counts, seed_noise)
    aside, note = None, ""
    if int(counts.sum()) - len(counts) < 2 and not (seed_noise and seed_noise[1] >= 2):
        aside = _outlier(sizes, means)
    if aside is not None:
        stray = float(np.exp(sizes[aside]))
        check = [p for p in check if not np.isclose(p.x, stray)]
        note = f" (the point at {stray:,.0f} is set aside as an outlier)"
        sizes, means, counts = (np.delete(column, aside) for column in (sizes, means, counts))
        sigma, df = noise_between_neighbours(sizes, means)

    def verdict(shape: Shape | None, reason: str) -> Verdict:
        return Verdict(shape, reason + note, change, sigma, df)

    if len(sizes) < 3:
        return verdict(None, f"{len(sizes)} sizes are too few for a shape")

    spread = float(np.ptp(means))
    if spread < resolution:
        return verdict(
            Shape.TRENDLESS,
            f"all values lie within {spread:.3g}, below the {resolution:g} that we take as the "
            "smallest difference with a meaning",
        )
    sign = -1.0 if lower_is_better else 1.0
    better, worse = _largest_rise(sign * means), _largest_rise(-sign * means)
    trend = sign * float(_trend(sizes, means))
    threshold, trend_threshold = (
        sigma * change for change in _changes_of_noise(df, tuple(sizes), tuple(counts))
    )
    noise_words = f"noise of a point is about {sigma:.2g}"
    if better > threshold and worse > threshold:
        return verdict(
            Shape.NONMONOTONIC,
            f"it improves by {better:.3g} and worsens by {worse:.3g}, both more than noise makes "
            f"({threshold:.3g}); {noise_words}",
        )
    improves = better > threshold or trend > trend_threshold
    worsens = worse > threshold or trend < -trend_threshold
    if not improves and not worsens:
        return verdict(
            Shape.TRENDLESS,
            f"no change exceeds what noise alone makes between its points ({threshold:.3g}); "
            f"{noise_words}",
        )
    if worsens and not improves:
        return verdict(
            Shape.INVERSE,
            f"it worsens by {worse:.3g} from best to worst with more pretraining; {noise_words}",
        )
    total = sign * change
    if total <= 0 or sigma > NOISY_SHARE * total:
        return verdict(Shape.NOISY, f"it changes by {change:+.3g} in all, but {noise_words}")
    steps = sign * np.diff(means)
    if len(sizes) >= 5 and steps.max() > BREAKTHROUGH_SHARE * total:
        at = np.exp(sizes[int(np.argmax(steps)) + 1])
        return verdict(
            Shape.BREAKTHROUGH,
            f"{steps.max() / total:.0%} of the improvement comes in the one step to {at:,.0f}",
        )
    shape, reason = _checked(check, sigma, lower_is_better)
    return verdict(shape, f"it improves by {total:.3g}; {noise_words}; {reason}")


def _checked(check: Sequence[Prediction], sigma: float, lower_is_better: bool) -> tuple[Shape, str]:
    """What the check of its law makes of a curve with a clear trend, and why."""
    if not check:
        return Shape.UNCHECKED, "there are too few sizes to check a law"
    outcomes = [_outcome(p, sigma) for p in check]
    missed, met = outcomes.count(False), outcomes.count(True)
    many = f"{len(check)} predictions of sizes that it was not fitted to" if len(check) > 1 else (
        "one prediction of a size that it was not fitted to")  # fmt: skip
    errors = [abs(p.relative_error) for p in check]
    if 2 * missed > len(check):
        worst = max((p for p, outcome in zip(check, outcomes, strict=True) if outcome is False),
                    key=lambda p: abs(p.error))  # fmt: skip
        optimistic = (worst.error < 0) == lower_is_better
        misses = "the law misses " + (f"{missed} of {many}" if len(check) > 1 else f"its {many}")
        return Shape.UNPREDICTED, (
            f"{misses}, at worst that at {worst.x:,.4g} by {worst.error:+.3g} (too "
            f"{'optimistic' if optimistic else 'pessimistic'})"
        )
    if 2 * met >= len(check):
        meets = "the law meets " + (f"{met} of {many}" if len(check) > 1 else f"its {many}")
        return Shape.PREDICTABLE, f"{meets}, with a median error of {np.median(errors):.1%}"
    return Shape.UNCHECKED, (
        f"{many} {'decide' if len(check) > 1 else 'decides'} nothing: the intervals are too wide, "
        f"and the median error is {np.median(errors):.1%}"
    )


def _outcome(p: Prediction, sigma: float) -> bool | None:
    """Whether a prediction is met; None if it decides nothing."""
    step = abs(p.measured - p.last)
    if abs(p.relative_error) >= NOTHING:
        return None if p.inside else False
    if p.high >= (1 + NOTHING) * p.predicted:
        return None if p.inside else False
    if abs(p.error) <= max(STEP_TOLERANCE * step, 2 * sigma):
        return True
    if not p.inside or abs(p.error) > 2 * sigma * p.leverage:
        return False
    return True if (p.high - p.low) / 2 <= max(step, 2 * sigma) else None


def _outlier(sizes: np.ndarray, means: np.ndarray) -> int | None:
    """The inner size that nearly all noise between neighbours comes from; None if there is none."""
    if len(sizes) < ENOUGH:
        return None
    with_it, _ = noise_between_neighbours(sizes, means)
    squares = np.pad(deviations_from_neighbours(sizes, means) ** 2, 1)
    touched = squares[:-2] + squares[1:-1] + squares[2:]  # by leaving out an inner size
    if (squares.sum() - touched.max()) >= (OUTLIER * with_it) ** 2 * (len(sizes) - 3):
        return None  # whatever the lines without it are
    without = [
        noise_between_neighbours(np.delete(sizes, i), np.delete(means, i))[0]
        for i in range(1, len(sizes) - 1)
    ]
    least = int(np.argmin(without))
    return least + 1 if without[least] < OUTLIER * with_it else None


def _noise(sizes, means, residuals, counts, seed_noise) -> tuple[float, int]:
    df = int(counts.sum()) - len(counts)
    if seed_noise and seed_noise[1] >= max(2, df):
        return seed_noise
    if df >= 2:
        return float(np.sqrt(np.sum(residuals**2) / df)), df
    return noise_between_neighbours(sizes, means)


def _largest_rise(means: np.ndarray) -> float | np.ndarray:
    """max over i < j of means[..., j] - means[..., i]."""
    return (means - np.minimum.accumulate(means, axis=-1)).max(-1)


def _trend(sizes: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Change of the least-squares line from the smallest to the largest size; means (..., N)."""
    centred = sizes - sizes.mean()
    return means @ centred / (centred @ centred) * (sizes[-1] - sizes[0])


@lru_cache(16)  # curves of one table often share their sizes
def _changes_of_noise(
    df: int, sizes: tuple[float, ...], counts: tuple[int, ...]
) -> tuple[float, float]:
    """Largest rise, and size of the trend, that a flat curve exceeds in 5 % of all cases, with
    noise of 1 at a point, known with so many degrees of freedom."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(df / rng.chisquare(df, REPLICATES))
    flat = rng.standard_normal((REPLICATES, len(counts))) / np.sqrt(counts) * scale[:, None]
    rises, trends = _largest_rise(flat), np.abs(_trend(np.array(sizes), flat))
    level = 1 - SIGNIFICANCE
    return float(np.quantile(rises, level)), float(np.quantile(trends, level))
