"""What the law of a table of two sizes means for the next purchase: which size to double, how to
split a budget, what to expect, and which run would tell most.

The law is fitted to all points. It is checked beside that: fitted without the points at the largest
(first) size, it predicts them.
"""

import math
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.frontier import FLOPS, Estimate, Optimum, frontier
from t5scaling.analysis.conclusions.named_law import lower_is_better
from t5scaling.analysis.conclusions.next_experiment import Design
from t5scaling.analysis.conclusions.prediction import Expected, expected
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError

TARGET = 4.0  # times the largest measured of each size, where no place is named
_STEPS = 12  # sizes that a next run is looked for among


@dataclass(frozen=True)
class Doubling:
    """What twice the one size changes the value by, at the dearest measured point."""

    size: str
    change: Estimate


@dataclass(frozen=True)
class Telling:
    """The run at `place`, of those no dearer than the dearest measured one, that narrows the
    forecast most. before, after: half widths of the interval of the law's log value there."""

    place: tuple[float, float]
    before: float
    after: float


@dataclass(frozen=True)
class JointAdvice:
    """On one curve. held_out_error: root mean square of the log errors of the check; None without
    enough points for it. dearest: the measured point with the largest product of its sizes.
    optimum: of the compute; None for a law without one. fit and the rest are None or empty
    where no law could be fitted."""

    curve_fit: CurveFit
    held_out_error: float | None = None
    dearest: tuple[float, float] | None = None
    doublings: tuple[Doubling, ...] = ()
    forecast: Expected | None = None
    optimum: Optimum | None = None
    telling: Telling | None = None


def advise_joint(
    curve: Curve,
    law: Law,
    *,
    at: tuple[float, ...] | None = None,
    compute: float | None = None,
    flops: float = FLOPS,
) -> JointAdvice:
    """The advice on a curve of two sizes.

    Args:
      at: the place asked for; None: TARGET times the largest measured of each size.
      compute: the budget to be split; None: what the place asked for costs.

    Raises:
      UserError: a place that is no pair of positive sizes; a budget that is not positive, or one
        for a law that has no use for it.
    """
    better = lower_is_better(curve, law)
    curve_fit = fit_one(curve, law, lower_is_better=better, hold_out=0)
    fit = curve_fit.fit
    if fit is None:
        return JointAdvice(curve_fit)
    check = fit_one(curve, law, lower_is_better=better, hold_out=1).fit
    place = at or tuple(float(size) for size in TARGET * fit.x.max(axis=1))
    (forecast,) = expected(fit, [place])
    best = None
    if compute is not None:
        (best,) = frontier(fit, [compute], flops=flops)
    elif law.sizes == ("N", "D"):
        try:
            (best,) = frontier(fit, [flops * math.prod(place)], flops=flops)
        except UserError:  # nobody asked for it, and the law has none
            best = None
    dearest = fit.x[:, fit.x.prod(axis=0).argmax()]
    return JointAdvice(
        curve_fit,
        check.held_out_error if check else None,
        (float(dearest[0]), float(dearest[1])),
        tuple(_doubling(fit, dearest, i, name) for i, name in enumerate(_names(curve))),
        forecast,
        best,
        _telling(fit, np.array(place)[:, None], dearest),
    )


def _names(curve: Curve) -> tuple[str, ...]:
    return tuple(name for name in (curve.x_name, curve.x2_name) if name)


def _doubling(fit: Fit, place: np.ndarray, row: int, name: str) -> Doubling:
    both = np.repeat(place[:, None], 2, axis=1)
    both[row, 1] *= 2

    def change(theta: np.ndarray) -> np.ndarray:
        values = np.exp(fit.log_values(both, theta))
        return values[..., 1] - values[..., 0]

    low, high = intervals.percentiles(change(fit.replicates)[:, None])
    return Doubling(name, Estimate(float(change(fit.theta)), float(low[0]), float(high[0])))


def _telling(fit: Fit, target: np.ndarray, dearest: np.ndarray) -> Telling | None:
    """None where the noise is not known, or no run would narrow the forecast."""
    if not fit.noise_df:
        return None
    ends = fit.x.min(axis=1), fit.x.max(axis=1) * 2
    grid = [np.geomspace(*pair, _STEPS) for pair in zip(*ends, strict=True)]
    places = np.array(np.meshgrid(*grid)).reshape(2, -1)
    places = places[:, places.prod(axis=0) <= dearest.prod() * (1 + 1e-9)]
    design = Design(fit, target)
    before = design.half_width(design.variance())
    after = design.half_width(design.with_each(places))
    best = int(after.argmin())
    if not after[best] < before:
        return None
    first, second = (float(size) for size in places[:, best])
    return Telling((first, second), float(before), float(after[best]))
