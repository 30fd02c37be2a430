"""Which run to pay for next: the one that narrows the wanted prediction most per device-hour.

The Fisher information of a fit is I = J^T S^-1 J, with J the derivatives of log values by the
law's parameters at the measured points and S the variances of their noise, which may grow with
size. The variance of the law's log value at a target x* is g^T I^-1 g, with g the derivatives
there; a further run at c adds the row j of c to J, and by the Sherman-Morrison formula the variance
falls by (g^T I^-1 j)^2 / (s_c^2 + j^T I^-1 j). The law is not linear: J, and with it the best c,
depends on parameters that are known with an error. So the fall is averaged over the fit's bootstrap
replicates (a Bayesian design; Chaloner and Verdinelli, 1995) and divided by the price of the run.

Such variances are too small: they leave out how curved the law is, how few degrees of freedom its
noise rests on, and what points share. The bootstrap knows all of it for the points that are there,
so half widths are put in its unit: the one before a further run is the bootstrap's own, and those
after it fall in the ratio of the variances.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.fitting.intervals import percentiles
from t5scaling.analysis.fitting.significance import student_quantile

SAMPLES = 150  # bootstrap replicates that the design is averaged over


@dataclass(frozen=True)
class Cost:
    """Device-hours. per_token: of pretraining, in the unit of x. per_run: of one finetuning with
    its evaluation. pretrained: the largest size for which checkpoints are there already; up to it a
    finetuning alone is paid."""

    per_token: float
    per_run: float
    pretrained: float = 0.0

    def of(self, size: float) -> float:
        return self.per_run + self.per_token * max(0.0, size - self.pretrained)

    def after(self, size: float) -> "Cost":
        """The cost of further runs once one at this size was made."""
        return Cost(self.per_token, self.per_run, max(self.pretrained, size))


@dataclass(frozen=True)
class NextRun:
    """A run that could be made. x2: its second size, of a joint law. repeats: how many points are
    there at this place already; a further one is another seed.

    before, after: half widths of the interval of the law's log value at the target, that is about
    relative errors; device_hours: the price.
    """

    x: float
    x2: float | None
    repeats: int
    before: float
    after: float
    device_hours: float

    @property
    def worth(self) -> float:
        """Fall of the half width per device-hour."""
        return (self.before - self.after) / self.device_hours


class Design:
    """The measured points of a fit, the target, and what further points would tell."""

    def __init__(self, fit: Fit, target: np.ndarray):
        """target: (1,), or (2, 1) for a law of two sizes."""
        self.fit = fit
        thetas = fit.replicates[:: max(1, len(fit.replicates) // SAMPLES)]
        self._thetas = np.vstack([fit.theta, thetas])
        lower, upper = fit.law.bounds(fit.frame)
        measured = np.exp(fit.problem.log_x)
        slopes = self._slopes(measured) / np.sqrt(self._noise(measured))[:, None]
        # What the bounds of the parameters say, and no more, keeps the matrix invertible.
        prior = np.diag(12.0 / (upper - lower) ** 2)
        self._covariance = np.linalg.inv(slopes.transpose(0, 2, 1) @ slopes + prior)
        self._target = self._slopes(target)[:, 0]
        self._unit = self._bootstrap(target) / self._deviation(self.variance())

    def _noise(self, x: np.ndarray) -> np.ndarray:
        """Variance of the log value of one point at each x, (N,)."""
        return np.maximum(self.fit.noise.at(self.fit.law.main_size(x)), 1e-6) ** 2

    def _bootstrap(self, target: np.ndarray) -> float:
        """Half width of the interval of the law's log value at the target; Student's where the
        bootstrap knows none."""
        low, high = percentiles(self.fit.log_values(target, self.fit.replicates)[:, 0])
        half = float(high - low) / 2
        if np.isfinite(half) and half > 0:
            return half
        return student_quantile(self.fit.noise_df) * float(self._deviation(self.variance()))

    @staticmethod
    def _deviation(variance: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(variance, 0.0)).mean(0)

    def half_width(self, variance: np.ndarray) -> np.ndarray:
        """Of the interval, from variances of the replicates (axis 0) before or after a run."""
        return self._unit * self._deviation(variance)

    def _slopes(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = self.fit.law.jacobian(self._thetas, np.log(x), self.fit.frame)
        return np.clip(np.nan_to_num(found, nan=0.0, posinf=1e3, neginf=-1e3), -1e3, 1e3)

    def variance(self) -> np.ndarray:
        """Of the law's log value at the target, (R,)."""
        return np.einsum("rp,rpq,rq->r", self._target, self._covariance, self._target)

    def with_each(self, x: np.ndarray) -> np.ndarray:
        """The same after one more point at each x, (R, N)."""
        rows = self._slopes(x)  # (R, N, P)
        moved = np.einsum("rnp,rpq->rnq", rows, self._covariance)
        fall = np.einsum("rnp,rp->rn", moved, self._target) ** 2
        return self.variance()[:, None] - fall / (
            self._noise(x) + np.einsum("rnp,rnp->rn", moved, rows)
        )

    def add(self, x: np.ndarray) -> None:
        """One more point, (1,) or (2, 1)."""
        row = self._slopes(x)[:, 0]
        moved = np.einsum("rpq,rq->rp", self._covariance, row)
        gain = moved[:, :, None] * moved[:, None, :]
        scale = self._noise(x) + np.einsum("rp,rp->r", moved, row)
        self._covariance = self._covariance - gain / scale[:, None, None]


def candidates(fit: Fit, largest: float, pools: Sequence[float] = ()) -> np.ndarray:
    """Sizes between the measured ones, at them (further seeds), and doublings beyond them up to
    `largest`; for a law of two sizes, each with each pool. (N,) or (2, N)."""
    sizes = np.unique(np.atleast_2d(fit.x)[0])
    between = np.sqrt(sizes[:-1] * sizes[1:])
    beyond = []
    while (size := (beyond or [sizes[-1]])[-1] * 2) <= largest * (1 + 1e-9):
        beyond.append(size)
    first = np.unique(np.concatenate([sizes, between, beyond]))
    if len(fit.law.sizes) == 1:
        return first
    return np.array(list(itertools.product(first, pools or np.unique(fit.x[1])))).T


def rank(
    fit: Fit, target: np.ndarray, places: np.ndarray, cost: Callable[[float], float]
) -> list[NextRun]:
    """Every candidate as the next run, the one that tells most per device-hour first."""
    return _ranked(Design(fit, target), places, cost, np.atleast_2d(fit.x))


def next_runs(
    fit: Fit,
    target: np.ndarray,
    places: np.ndarray,
    cost: Cost,
    *,
    budget: float,
    runs: int = 60,
) -> list[NextRun]:
    """What to do with a budget of device-hours: the runs in order of their worth.

    Checkpoints of one pretraining serve many runs, so that the first run at a new largest size is
    dear and those after it are cheap. For each largest size that the budget can pay for, it is
    paid, and the rest is spent run by run, each with those before it in place; the largest size
    that ends with the narrowest interval is taken. Empty if nothing can be paid.
    """
    places = np.atleast_2d(places)
    best: list[NextRun] = []
    for largest in sorted({cost.pretrained, *places[0][places[0] > cost.pretrained]}):
        extended = cost.after(largest)
        left = budget - cost.per_token * (extended.pretrained - cost.pretrained)
        if left < cost.per_run:
            continue
        chosen = _spend(fit, target, places[:, places[0] <= largest], cost, left, runs)
        if chosen and (not best or chosen[-1].after < best[-1].after):
            best = chosen
    return best


def _spend(fit: Fit, target, places, cost: Cost, left: float, runs: int) -> list[NextRun]:
    """Runs from checkpoints that are paid for; each run's price counts what it pays first."""
    design, measured = Design(fit, target), np.atleast_2d(fit.x)
    chosen: list[NextRun] = []
    flat = places[0] if len(fit.law.sizes) == 1 else places
    while places.shape[1] and len(chosen) + 1 <= min(runs, left / cost.per_run + 1e-9):
        run = max(_ranked(design, flat, cost.of, measured), key=lambda run: run.before - run.after)
        at = np.array([run.x]) if run.x2 is None else np.array([[run.x], [run.x2]])
        design.add(at)
        measured = np.concatenate([measured, np.atleast_2d(at)], axis=1)
        cost = cost.after(run.x)
        chosen.append(run)
    return chosen


def _ranked(design: Design, places, cost, measured) -> list[NextRun]:
    before = design.half_width(design.variance())
    after = design.half_width(design.with_each(places))
    found = []
    for i, place in enumerate(np.atleast_2d(places).T):
        same = np.all(np.isclose(measured, place[:, None]), axis=0)
        found.append(
            NextRun(
                x=float(place[0]), x2=float(place[1]) if len(place) == 2 else None,
                repeats=int(same.sum()), before=float(before), after=float(after[i]),
                device_hours=float(cost(place[0])),
            )
        )  # fmt: skip
    return sorted(found, key=lambda run: -run.worth)
