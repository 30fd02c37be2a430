"""The noise of a fit's points: how large it is, and how it is spread and shared among them.

On log values, a point's error is sigma * exp(growth * u) * e: u is the log of its (first) size from
the centre of the fitted points, as a share of their range, so that exp(growth) is how many times
the noise grows over the fitted sizes. The e have variance 1 and are

- independent;
- or correlated as rho^k between points k places apart among the checkpoints of one run (points of
  one seed, and one second size if there is one, in the order of their sizes);
- or shared in part by all points of a seed, whose shift has `shift` times the other noise's
  deviation (a random effect).

Nobody knows beforehand which holds, and a test that picks one leaves out how unsure the choice is.
So every structure on a grid keeps the probability that its restricted likelihood gives it
(Patterson and Thompson 1971; it allows for the coefficients, which take part of the noise with
them, and is much less biased for a correlation than the likelihood: Cheang and Reinsel 2000).
Before the points are seen, noise that does not grow has a probability of PLAIN, and so have seeds
that shift nothing; in a run of many points uncorrelated noise has UNCORRELATED (Bayesian model
averaging: Hoeting et al. 1999). The bootstrap draws each replicate's structure from these
probabilities, and sigma from its scaled inverse chi-squared distribution. With fewer than LEAST_DF
degrees of freedom points cannot tell, and noise counts as independent and even; in runs of fewer
than LEAST_SERIES points a correlation looks like a bend of the law, and is not looked for. (A dozen
runs of different sizes, of one seed each, look like a dozen checkpoints of one run: their intervals
are wider than they need to be.)

Residuals beyond CUT standard deviations are moved there before they are counted, so that one
outlier does not make all points look noisy (winsorised variance; Huber 1981, section 7.6).
"""

import math
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fitting.problem import Problem

LEAST_DF = 6
LEAST_SERIES = 12  # points of one run, in whose order a correlation can be seen
CUT = 2.5
GROWTH = np.log([1.0, 2.0, 4.0, 8.0, 16.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
RHO = np.array([0.4, 0.6, 0.75, 0.85, 0.92, 0.97])
SHIFT = np.array([0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0])
PLAIN, UNCORRELATED = 2 / 3, 1 / 2
PROBABLE = 0.8  # what is said in words; the bootstrap weighs every structure
EXACT = 1e-9  # noise of log values below which points lie on their law but for rounding


@dataclass(frozen=True)
class Noise:
    """sigma: standard deviation of one point's log value at the centre, on df degrees of freedom.

    growth, rho, shift, probability, variance: (K,) of each structure that is possible; its variance
    is that of what points do not share. place: (N,) u of each fitted point; centre, width: of log
    size, for other points. previous: (N,) the point before in its run, -1 if there is none. seed:
    (N,) number of its seed.
    """

    sigma: float
    df: int
    growth: np.ndarray
    rho: np.ndarray
    shift: np.ndarray
    probability: np.ndarray
    variance: np.ndarray
    place: np.ndarray
    centre: float
    width: float
    previous: np.ndarray
    seed: np.ndarray

    def _mean(self, values: np.ndarray) -> float:
        return float(self.probability @ values)

    @property
    def grows(self) -> float:
        """Expected log factor of the noise over the range of fitted sizes; 0 if even noise is not
        improbable."""
        return self._mean(self.growth) if self._mean(self.growth != 0) > PROBABLE else 0.0

    def at(self, x: np.ndarray) -> np.ndarray:
        """Standard deviation of the log value of a new point, (N,), at sizes x (N,) as
        `Law.main_size` has them."""
        return self.sigma * np.exp(self.grows * self.places(x))

    def places(self, x: np.ndarray) -> np.ndarray:
        """u of each size x (N,), as `Law.main_size` has them."""
        return (np.log(np.asarray(x, float)) - self.centre) / self.width

    @property
    def notes(self) -> tuple[str, ...]:
        """What probably departs from independent noise of one size, in words."""
        found = []
        if self.grows:
            times = math.exp(self.grows)
            found.append(
                f"the noise {'grows' if times > 1 else 'falls'} about "
                f"{max(times, 1 / times):.1f} times over the fitted sizes: intervals allow for it"
            )
        if (chance := self._mean(self.rho > 0)) > PROBABLE:
            found.append(
                "the errors of neighbouring checkpoints are correlated (about "
                f"{self._mean(self.rho) / chance:.2f}): intervals are widened for it"
            )
        if self._mean(self.shift > 0) > PROBABLE:
            found.append("seeds shift whole curves: intervals are widened for it")
        return tuple(found)

    def draw(
        self, rng: np.random.Generator, replicates: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> (errors of the points (R, N), of a new point at the centre (R,), growth (R,)).

        The errors of a new point elsewhere are exp(growth * u) times as large.
        """
        count = len(self.place)
        pick = rng.choice(len(self.probability), replicates, p=self.probability)
        scale = np.zeros(replicates)
        if self.df:
            scale = np.sqrt(self.variance[pick] * self.df / rng.chisquare(self.df, replicates))
        growth, rho, shift = self.growth[pick], self.rho[pick], self.shift[pick]
        errors = rng.standard_normal((replicates, count))
        shared = rng.standard_normal((replicates, self.seed.max() + 1))
        new = rng.standard_normal(replicates) * np.hypot(1, shift) * scale
        if rho.any():
            rest = np.sqrt(1 - rho**2)
            for i in np.flatnonzero(self.previous >= 0):  # in order: the one before is ready
                errors[:, i] = rho * errors[:, self.previous[i]] + rest * errors[:, i]
        errors += shift[:, None] * shared[:, self.seed]
        errors *= scale[:, None] * np.exp(growth[:, None] * self.place)
        return errors, new, growth


def even(problem: Problem, sigma: float, df: int) -> Noise:
    """Independent noise of the same size everywhere."""
    log_x = np.log(problem.law.main_size(np.exp(problem.log_x)))
    count, zero = len(log_x), np.zeros(1)
    return Noise(
        sigma, df, zero, zero, zero, np.ones(1), np.array([sigma**2]), np.zeros(count),
        float(np.unique(log_x).mean()), float(max(np.ptp(log_x), 1e-6)), np.full(count, -1),
        np.zeros(count, int),
    )  # fmt: skip


def noise_of(problem: Problem, theta: np.ndarray, seeds: np.ndarray | None) -> Noise:
    """The noise of a fit whose points are sorted by size. seeds: (N,) labels, None if unknown.

    Needs at least one degree of freedom.
    """
    log_x = np.atleast_2d(problem.log_x)
    count, parameters = len(problem.log_y), problem.law.num_parameters
    df = count - parameters
    factor = np.ones(count) if problem.scale is None else problem.scale
    residuals = (problem.log_y - problem.log_values(theta)) * factor
    with np.errstate(all="ignore"):
        slopes = problem.law.jacobian(theta, problem.log_x, problem.frame) * factor[:, None]
    slopes = np.clip(np.nan_to_num(slopes, nan=0.0, posinf=1e3, neginf=-1e3), -1e3, 1e3)
    tangent, sizes, _ = np.linalg.svd(slopes, full_matrices=False)
    tangent = tangent[:, sizes > 1e-8 * sizes.max()]
    plain = even(problem, 0.0, df)
    main = np.log(problem.law.main_size(np.exp(problem.log_x)))
    place = (main - plain.centre) / plain.width
    seed = np.zeros(count, int) if seeds is None else np.unique(seeds, return_inverse=True)[1]
    # Of mixtures of several sources nothing says which are one run's.
    previous = np.full(count, -1) if problem.law.sources else _previous(log_x, seed)
    grid = _grid(df, previous, seed, log_x, grows=bool(np.ptp(main) > 0))
    cut = CUT * _robust_scale(residuals, df) if df >= LEAST_DF else np.inf
    growth = 0.0
    _, whole = _restricted(residuals, tangent, place, previous, seed, grid)
    for _ in range(4):
        limit = cut * np.exp(growth * place)
        kept = np.clip(residuals, -limit, limit)
        logs, rss = _restricted(kept, tangent, place, previous, seed, grid)
        probability = np.exp(logs - logs.max())
        probability /= probability.sum()
        inside = max(np.mean(np.abs(residuals) <= limit), 0.5)
        variance = np.minimum(rss / inside**2, whole) / df  # never more than without moving any
        sigma = float(np.sqrt(probability @ (variance * (1 + grid[2] ** 2))))
        growth = float(probability @ grid[0])
        if not np.isfinite(cut) or sigma < EXACT or abs(cut / (CUT * sigma) - 1) < 0.01:
            break
        cut = CUT * sigma
    if sigma < EXACT:
        return even(problem, sigma, df)
    if probability[0] > 0.5:  # the structure in which nothing is shared and nothing grows
        sigma = float(np.sqrt(variance[0]))
    growth_of, rho, shift = grid
    return Noise(
        sigma, df, growth_of, rho, shift, probability, variance, place, plain.centre, plain.width,
        previous, seed,
    )  # fmt: skip


def _robust_scale(residuals: np.ndarray, df: int) -> float:
    """Standard deviation from winsorised residuals, from their median upwards."""
    size = np.sort(np.abs(residuals))
    scale = 1.4826 * float(np.median(size[-df:]))  # as many are 0 as there are coefficients
    for _ in range(50):
        inside = max(float(np.mean(size <= CUT * scale)), 0.5)
        last, scale = (
            scale,
            float(np.sqrt(np.sum(np.minimum(size, CUT * scale) ** 2) / df)) / inside,
        )
        if abs(scale - last) <= 1e-3 * last:
            break
    return scale


def _previous(log_x: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """(N,): the point before in the same run, -1 if there is none. All -1 where points of one run
    share a size: their order is not known."""
    others = (seed, *log_x[1:])
    order = np.lexsort((log_x[0], *others))
    same = np.all([row[order][1:] == row[order][:-1] for row in others], axis=0)
    previous = np.full(len(seed), -1)
    previous[order[1:][same]] = order[:-1][same]
    repeated = log_x[0][order][1:][same] == log_x[0][order][:-1][same]
    return np.full(len(seed), -1) if repeated.any() else previous


def _longest(previous: np.ndarray) -> int:
    length = np.ones(len(previous), int)
    for i in np.flatnonzero(previous >= 0):
        length[i] = length[previous[i]] + 1
    return int(length.max())


def _grid(
    df: int, previous: np.ndarray, seed: np.ndarray, log_x: np.ndarray, *, grows: bool
) -> np.ndarray:
    """(3, K): growth, rho and shift of each structure; the first is the plain one."""
    if df < LEAST_DF:
        return np.zeros((3, 1))
    shared = [(0.0, 0.0)]
    if _longest(previous) >= LEAST_SERIES:
        shared += [(rho, 0.0) for rho in RHO]
    places = np.unique(log_x, axis=1, return_inverse=True)[1].ravel()
    several = [len(set(places[seed == one])) > 1 for one in range(seed.max() + 1)]
    if sum(several) > 1:
        shared += [(0.0, shift) for shift in SHIFT]
    growth = GROWTH if grows else GROWTH[:1]
    return np.array([(g, rho, shift) for rho, shift in shared for g in growth]).T


def _prior(grid: np.ndarray) -> np.ndarray:
    """Log of the probability of each structure before the points are seen, (K,): PLAIN or
    UNCORRELATED for what is absent, the rest in equal parts for its possible sizes."""
    growth, rho, shift = grid
    log_odds = np.zeros(len(growth))
    for values, absent in (
        (growth, PLAIN),
        (rho + 1j * shift, UNCORRELATED if rho.any() else PLAIN),
    ):
        others = len(np.unique(values[values != 0]))
        if others:
            log_odds += np.log(np.where(values == 0, absent, (1 - absent) / others))
    return log_odds


def _restricted(
    residuals: np.ndarray,
    tangent: np.ndarray,
    place: np.ndarray,
    previous: np.ndarray,
    seed: np.ndarray,
    grid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """-> (log probability (K,) up to a constant, sum of squares (K,)) of each structure."""
    growth, rho, shift = grid
    count, rank = tangent.shape
    columns = np.column_stack([tangent, residuals])
    white = columns * np.exp(-growth[:, None] * place)[:, :, None]  # (K, N, P + 1)
    log_det = 2 * growth * place.sum()
    if rho.any():
        later, one = np.flatnonzero(previous >= 0), rho > 0
        some, r = white[one], rho[one, None, None]
        moved = (some[:, later] - r * some[:, previous[later]]) / np.sqrt(1 - r**2)
        some = some.copy()
        some[:, later] = moved
        white[one] = some
        log_det += len(later) * np.log1p(-(rho**2))
    if shift.any():
        one = shift > 0
        some, squares = white[one], shift[one] ** 2
        for label in range(seed.max() + 1):
            mine = seed == label
            spread = 1 + mine.sum() * squares
            log_det[one] += np.log(spread)
            mean = some[:, mine].mean(1, keepdims=True)
            some[:, mine] -= (1 - 1 / np.sqrt(spread))[:, None, None] * mean
        white[one] = some
    gram = white.transpose(0, 2, 1) @ white
    gram[:, -1, -1] += 1e-300
    own, cross = gram[:, :rank, :rank], gram[:, :rank, rank]
    solved = np.linalg.solve(own, cross[:, :, None])[:, :, 0]
    rss = np.maximum(gram[:, rank, rank] - (cross * solved).sum(-1), 1e-300)
    df = count - rank
    logs = -0.5 * (log_det + np.linalg.slogdet(own)[1] + df * np.log(rss))
    return logs + _prior(grid), rss
