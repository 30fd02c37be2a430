"""Fits one law to one curve: Huber loss on log values, held-out points, bootstrap intervals.

All points are fitted unless some are held out, by number or by a mark at each (`protocol` says
which are in the paper's protocol). A law needs as many sizes as it has coefficients.

The noise of a point, which all intervals rest on (see `intervals`), comes from

- the residuals of the fit (see `noise`) when n - P >= 2, or else
- the deviations of inner points from the straight line (in log D) between their neighbours,
  with as many degrees of freedom as there are inner points. Curvature counts as noise here:
  the interval errs on the wide side.

With 3 fitted sizes intervals are therefore very wide. That is what 3 sizes can say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.noise import Noise, even, noise_of
from t5scaling.analysis.fitting.problem import RESIDUALS, Problem, best_theta, precision
from t5scaling.analysis.fitting.protocol import held_out_by
from t5scaling.analysis.fitting.significance import student_half_width
from t5scaling.analysis.laws.base import Frame, Law
from t5scaling.errors import UserError, nearest


@dataclass(frozen=True)
class HeldOutPoint:
    """A point that the fit has not seen. Errors are predicted minus measured. x2: its second size,
    of a law of two."""

    x: float
    value: float
    predicted: float
    low: float
    high: float
    x2: float | None = None

    @property
    def error(self) -> float:
        return self.predicted - self.value

    @property
    def relative_error(self) -> float:
        return self.error / self.value

    @property
    def log_error(self) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log(self.predicted) - np.log(self.value))

    @property
    def inside(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    x, y: the fitted points, (N,) each, or x (2, N) for a law of two sizes; held_out: the others.
    coefficients: name -> (value, low, high), where a coefficient that overflows is inf.
    determined: the same for what the points do tell: the law's value and its slope in logs at the
    centre of the points. interval: one of `intervals.INTERVALS`. noise: of the points' log values;
    sigma: its standard deviation at the centre, on `noise_df` degrees of freedom. at_bound: in
    words, for each internal parameter on its bound. extrapolation: decades of (the first) x from
    the farthest fitted to the farthest held-out size, 0 if that lies between fitted ones.
    """

    problem: Problem
    x: np.ndarray
    y: np.ndarray
    theta: np.ndarray
    objective: float
    converged: bool
    coefficients: dict[str, tuple[float, float, float]]
    determined: dict[str, tuple[float, float, float]]
    interval: str
    noise: Noise
    replicates: np.ndarray  # (R, P)
    replicate_noise: np.ndarray  # (R,): each one's draw of the noise of a new point at the centre
    replicate_growth: np.ndarray  # (R,): and of how it grows, see `new_noise`
    held_out: tuple[HeldOutPoint, ...]
    extrapolation: float
    at_bound: tuple[str, ...]

    @property
    def sigma(self) -> float:
        return self.noise.sigma

    @property
    def noise_df(self) -> int:
        return self.noise.df

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the coefficients should know: bounds that were met, uneven noise."""
        return (*self.at_bound, *self.noise.notes)

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def frame(self) -> Frame:
        return self.problem.frame

    @property
    def delta(self) -> float:
        return self.problem.delta

    @property
    def centre(self) -> np.ndarray:
        """The (first) size at the centre of the fitted points, and the second one if there is."""
        return np.exp(np.ravel(self.frame.log_centre))

    def log_values(self, x: np.ndarray, theta: np.ndarray | None = None) -> np.ndarray:
        """Log of the law's value, (..., N), for one theta or many; of the replicates: theirs."""
        theta = self.theta if theta is None else theta
        with np.errstate(divide="ignore"):  # no tokens of a source
            log_x = np.log(np.asarray(x, float))
        return self.law.log_value(theta, log_x, self.frame)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The law's value at x (shape (N,) or (2, N), same unit as the fitted x)."""
        return np.exp(self.log_values(x))

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the interval for a new measurement at each x."""
        if self.interval == "profile":
            return self._profile_band(np.asarray(x, float))
        drawn = self.log_values(x, self.replicates)
        return intervals.percentiles(drawn + self.new_noise(x), np.exp)

    def new_noise(self, x: np.ndarray) -> np.ndarray:
        """Each replicate's draw of the error of a new log value at each x, (R, N)."""
        growth = np.exp(self.replicate_growth[:, None] * self.noise.places(self.law.main_size(x)))
        return self.replicate_noise[:, None] * growth

    def curve_band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for the law's own value, without the noise of a measurement."""
        return intervals.percentiles(self.log_values(x, self.replicates), np.exp)

    def _profile_band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise = student_half_width(self.sigma, self.noise_df) if self.noise_df else 0.0
        at = self.log_values(x)
        ends = []
        for i in range(x.shape[-1]):
            place = x[..., i : i + 1]
            ends.append(
                intervals.profile(
                    self.problem, self.theta, self.replicates, self.sigma, self.noise_df,
                    lambda theta, place=place: self.log_values(place, theta)[..., 0],
                )
            )  # fmt: skip
        low, high = np.array(ends).T
        # The two parts are independent: their squares add up.
        return (np.exp(at - np.hypot(at - low, noise)), np.exp(at + np.hypot(high - at, noise)))

    @property
    def held_out_sizes(self) -> tuple[HeldOutPoint, ...]:
        """One entry per held-out size, with the mean of its points as the value."""
        by_size: dict[tuple, list[HeldOutPoint]] = {}
        for point in self.held_out:
            by_size.setdefault((point.x, point.x2), []).append(point)
        return tuple(
            replace(points[0], value=sum(p.value for p in points) / len(points))
            for points in by_size.values()
        )

    @property
    def held_out_error(self) -> float | None:
        """Root mean square of the held-out log errors; None if nothing was held out."""
        if not self.held_out:
            return None
        return float(np.sqrt(np.mean([point.log_error**2 for point in self.held_out])))


def fit_curve(
    law: Law,
    x: np.ndarray,
    y: np.ndarray,
    *,
    hold_out: int | None = None,
    held_out: np.ndarray | None = None,
    delta: float | None = None,
    residual: str = "log",
    worse_counts: float = 1.0,
    errors: np.ndarray | None = None,
    seeds: Sequence | np.ndarray | None = None,
    interval: str = "noise",
    x_name: str = "x",
    y_name: str = "y",
) -> Fit:
    """Fits `law` to the points (x, y), several of which may share an x.

    Args:
      x: (N,), or (k, N) for a law of k sizes. y: (N,).
      hold_out: how many of the largest distinct x are held out, of each size; of the smallest where
        x is a loss. None: none.
      held_out: instead, which points are held out, (N,) bool.
      delta: Huber's threshold on residuals; None: the law's own; inf: squares.
      residual: one of RESIDUALS. The objective of "reducible" has its global minimum where points
        lie at the floor, or at floor 0; of its minima the lowest within the bounds is taken.
      worse_counts: weight of the loss of a point that is worse than the law, relative to one that
        is better: below 1 where some runs are thought under-tuned.
      errors: standard errors of y, (N,): residuals are counted in their unit before Huber's loss,
        which for squares weights points by their inverse square. Only how they differ from point
        to point matters; the noise itself still comes from the points.
      seeds: labels of the points' seeds, (N,), which intervals over seeds need; the others widen
        where seeds shift whole curves.
      interval: one of `intervals.INTERVALS`.

    Raises:
      UserError: a value that is not positive, too few points, a law without a floor term for
        residuals of what lies above it, or points held out in two ways.
    """
    _check_options(law, delta, residual, worse_counts)
    x, y = np.asarray(x, float), np.asarray(y, float)
    if np.atleast_2d(x).shape[0] != len(law.sizes):
        raise UserError(f"the {law.title} is a law of {' and '.join(law.sizes)}")
    if held_out is not None and hold_out is not None:
        raise UserError("points are held out by their number or by a mark at each, not by both")
    check_positive(law, x, y, x_name, y_name)
    if held_out is None:
        held_out = held_out_by(law, x, "rollout", hold_out)
    order = np.lexsort((y, *np.atleast_2d(x)[::-1]))
    x, y, fitted = x[..., order], y[order], ~np.asarray(held_out, bool)[order]
    scale = None if errors is None else precision(np.asarray(errors, float)[order], y)
    labels = None if seeds is None else np.asarray(seeds)[order]
    intervals.check_kind(interval, labels)
    _check_enough(law, x, fitted, x_name)
    problem = Problem.of(
        law, x[..., fitted], y[fitted], delta, residual=residual, worse_counts=worse_counts,
        scale=None if scale is None else scale[fitted],
    )  # fmt: skip

    theta, objective, converged = best_theta(problem)
    of_fitted = None if labels is None else labels[fitted]
    noise = _noise(problem, theta, of_fitted)
    thetas, new_noise, growth = intervals.bootstrap(
        problem, theta, noise, kind=interval, seeds=of_fitted
    )
    fit = Fit(
        problem=problem, x=x[..., fitted], y=y[fitted], theta=theta, objective=objective,
        converged=converged, coefficients={}, determined={}, interval=interval, noise=noise,
        replicates=thetas, replicate_noise=new_noise, replicate_growth=growth, held_out=(),
        extrapolation=_extrapolation(law, law.main_size(x), fitted),
        at_bound=_at_bound(problem, theta),
    )  # fmt: skip
    fit = replace(fit, coefficients=_coefficients(fit), determined=_determined(fit))
    return _with_held_out(fit, x[..., ~fitted], y[~fitted])


def _check_options(law: Law, delta: float | None, residual: str, worse_counts: float) -> None:
    if residual not in RESIDUALS:
        raise UserError(f"residual {residual!r}: unknown{nearest(residual, RESIDUALS)}")
    if residual == "reducible" and type(law).floor is Law.floor:
        raise UserError(f"the {law.title} has no floor of its own to take residuals above")
    if delta is not None and not delta > 0:
        raise UserError(f"delta = {delta:g}: Huber's threshold must be positive")
    if not 0 < worse_counts <= 1:
        raise UserError(f"worse_counts = {worse_counts:g}: expected above 0 and at most 1")


def check_positive(law: Law, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Raises UserError where a logarithm does not exist."""
    law.check_sizes(x, x_name)
    if not np.all(y > 0):
        bad = int(np.argmax(~(y > 0)))
        raise UserError(
            f"{y_name} = {y[bad]:g} at {x_name} = {np.atleast_2d(x)[0, bad]:g}: the {law.title} is "
            "fitted to log values, which need values > 0; leave this point out or fit another "
            "metric"
        )


def noise_between_neighbours(log_x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Noise of a point from each inner point's deviation from the line between its neighbours.

    Points must have distinct, rising log_x. Returns (standard deviation, number of inner points);
    (0, 0) with fewer than 3 points. After Gasser, Sroka and Jennen-Steinmetz (1986).
    """
    if len(log_x) < 3:
        return 0.0, 0
    deviation = deviations_from_neighbours(log_x, y)
    return float(np.sqrt(np.mean(deviation**2))), len(deviation)


def deviations_from_neighbours(log_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each inner point from the line between its neighbours, (N - 2,), in the unit of the noise
    of a point."""
    right_weight = (log_x[1:-1] - log_x[:-2]) / (log_x[2:] - log_x[:-2])
    left_weight = 1 - right_weight
    deviation = y[1:-1] - left_weight * y[:-2] - right_weight * y[2:]
    return deviation / np.sqrt(1 + left_weight**2 + right_weight**2)


def _check_enough(law: Law, x: np.ndarray, fitted: np.ndarray, x_name: str) -> None:
    """Raises UserError if the fitted points are too few for the law."""
    needed = law.num_parameters
    places = np.unique(np.atleast_2d(x)[:, fitted], axis=1)
    besides = "" if fitted.all() else ", besides those held out"
    if len(places) > 1:
        law.check_design(places, besides)
    elif places.shape[1] < needed:
        raise UserError(
            f"{places.shape[1]} distinct {x_name} to fit: too few points for the {law.title}, "
            f"which needs {needed} for its {needed} coefficients{besides}"
        )


def _extrapolation(law: Law, main: np.ndarray, fitted: np.ndarray) -> float:
    """Decades by which the farthest held-out size lies beyond the fitted ones."""
    if fitted.all():
        return 0.0
    seen, held = np.log10(main[fitted]), np.log10(main[~fitted])
    return float(max(seen.min() - held.min() if law.of_loss else held.max() - seen.max(), 0.0))


def _noise(problem: Problem, theta: np.ndarray, seeds: np.ndarray | None) -> Noise:
    log_x, log_y = problem.log_x, problem.log_y
    df = len(log_y) - problem.law.num_parameters
    if df >= 2 or (log_x.ndim == 2 and df):
        return noise_of(problem, theta, seeds)
    if log_x.ndim == 2:
        return even(problem, 0.0, 0)
    sizes, where = np.unique(log_x, return_inverse=True)
    means = np.bincount(where, log_y) / np.bincount(where)
    return even(problem, *noise_between_neighbours(sizes, means))


def _coefficients(fit: Fit) -> dict[str, tuple[float, float, float]]:
    point = fit.law.coefficients(fit.theta, fit.frame)
    spread = fit.law.coefficients(fit.replicates, fit.frame)
    found = {}
    for name, value in point.items():
        if fit.interval == "profile":
            low, high = _profile_of(fit, name, spread[name])
        else:
            low, high = (end[0] for end in intervals.percentiles(spread[name][:, None]))
        found[name] = (float(value), float(low), float(high))
    return found


def _profile_of(fit: Fit, name: str, seen: np.ndarray) -> tuple[float, float]:
    """In logs where the coefficient is spread over more than a factor of 10."""
    low, high = np.quantile(seen, [0.05, 0.95], method="inverted_cdf")
    wide = low > 0 and high > 10 * low

    def quantity(theta: np.ndarray) -> np.ndarray:
        value = fit.law.coefficients(theta, fit.frame)[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(value) if wide else value

    ends = intervals.profile(
        fit.problem, fit.theta, fit.replicates, fit.sigma, fit.noise_df, quantity
    )
    return (float(np.exp(ends[0])), float(np.exp(ends[1]))) if wide else ends


def _determined(fit: Fit) -> dict[str, tuple[float, float, float]]:
    """The law's value and its slopes in logs at the centre of the fitted points."""
    step = 1e-4
    centre = np.asarray(fit.frame.log_centre, float).reshape(len(fit.law.sizes), 1)
    one = len(fit.law.sizes) == 1

    def at(shift: np.ndarray | float) -> np.ndarray:
        return np.exp((centre + shift)[0] if one else centre + shift)

    def interval_of(quantity: Callable, transform=lambda v: v):
        low, high = intervals.percentiles(quantity(fit.replicates)[:, None], transform)
        return float(transform(quantity(fit.theta))), float(low[0]), float(high[0])

    found = {"value": interval_of(lambda theta: fit.log_values(at(0), theta)[..., 0], np.exp)}
    for i, size in enumerate(fit.law.sizes):
        shift = np.zeros_like(centre)
        shift[i] = step

        def slope(theta: np.ndarray, shift: np.ndarray = shift) -> np.ndarray:
            up, down = fit.log_values(at(shift), theta), fit.log_values(at(-shift), theta)
            return (up - down)[..., 0] / (2 * step)

        found["slope" if one else f"slope in {size}"] = interval_of(slope)
    return found


def _at_bound(problem: Problem, theta: np.ndarray) -> tuple[str, ...]:
    law = problem.law
    lower, upper = law.bounds(problem.frame)
    notes = []
    for name, value, low, high in zip(law.theta_names, theta, lower, upper, strict=True):
        for side, bound in (("low", low), ("high", high)):
            if abs(value - bound) < 1e-6 and (name, side) in law.at_bound:
                notes.append(law.at_bound[name, side])
    return tuple(dict.fromkeys(notes))


def _with_held_out(fit: Fit, x: np.ndarray, y: np.ndarray) -> Fit:
    if not len(y):
        return fit
    predicted, (low, high) = fit.predict(x), fit.band(x)
    two = len(fit.law.sizes) == 2 and not fit.law.sources
    main, second = fit.law.main_size(x), [x[1]] if two else []
    points = tuple(
        HeldOutPoint(*map(float, row))
        for row in zip(main, y, predicted, low, high, *second, strict=True)
    )
    return replace(fit, held_out=points)
