"""The noise of a fit's points: what is found of it, and what random numbers curves share."""

import math

import numpy as np
import pytest

from t5scaling.analysis.conclusions.forecast import Outlook, chance_of_best, overtakes
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.fitting.noise import PLAIN, UNCORRELATED, _restricted
from t5scaling.analysis.fitting.problem import Problem, best_theta, refit
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.places import Place

M1, POWER = LAWS["m1"], LAWS["power"]
SIZES = 1e8 * 2.0 ** np.arange(8)
X, SEEDS = np.repeat(SIZES, 3), np.tile([0, 1, 2], 8)
U = (np.log(X) - np.log(SIZES).mean()) / np.log(SIZES[-1] / SIZES[0])
RUN = np.geomspace(SIZES[0], SIZES[-1], 24)


def curve(errors, x=X, noise=0.01, exponent=0.15):
    return 3 * (x / 1e8) ** -exponent * np.exp(noise * errors)


def fitted(errors, x=X, seeds=None, noise=0.01, **options):
    options = {"delta": np.inf, **options}  # quicker than the laws' own
    return fit_curve(M1, x, curve(errors, x, noise), hold_out=0, seeds=seeds, **options)


def normal(seed, count=24):
    return np.random.default_rng(seed).standard_normal(count)


def correlated(seed, rho=0.9):
    found = normal(seed)
    for i in range(1, len(found)):
        found[i] = rho * found[i - 1] + np.sqrt(1 - rho**2) * found[i]
    return found


SITUATIONS = {
    "growing": (X, SEEDS, lambda seed: normal(seed) * 8**U, "noise grows about"),
    "falling": (X, None, lambda seed: normal(seed) * 8**-U, "noise falls about"),
    "seeds": (X, SEEDS, lambda seed: normal(seed) + 3 * np.tile([-1, 0, 1], 8), "seeds shift"),
    "checkpoints": (RUN, None, correlated, "neighbouring checkpoints are correlated"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_uneven_and_shared_noise_is_noticed_and_widens_intervals(monkeypatch, name):
    monkeypatch.setattr(intervals, "REPLICATES", 200)
    x, seeds, errors, note = SITUATIONS[name]
    fits = [fitted(errors(seed), x, seeds) for seed in range(5)]
    assert sum(note in " ".join(fit.noise.notes) for fit in fits) >= 3
    assert all(set(fit.noise.notes) <= set(fit.notes) for fit in fits)
    monkeypatch.setattr("t5scaling.analysis.fitting.fit.noise_of", plain_noise_of)
    plain = [fitted(errors(seed), x, seeds) for seed in range(5)]
    far = np.array([x.max() * 8])
    if name != "falling":
        assert np.mean([width(f, far) for f in fits]) > 1.2 * np.mean(
            [width(f, far) for f in plain]
        )


def plain_noise_of(problem, theta, seeds):
    from t5scaling.analysis.fitting.noise import even

    df = len(problem.log_y) - problem.law.num_parameters
    residuals = problem.log_y - problem.log_values(theta)
    return even(problem, float(np.sqrt(np.sum(residuals**2) / df)), df)


def width(fit, x):
    low, high = fit.band(x)
    return float(np.log(high / low)[0])


@pytest.mark.parametrize(("x", "seeds"), [(X, SEEDS), (RUN, None)], ids=["seeds", "run"])
def test_independent_noise_is_seldom_taken_for_anything_else(monkeypatch, x, seeds):
    monkeypatch.setattr(intervals, "REPLICATES", 2)
    noted = [bool(fitted(normal(seed), x, seeds).noise.notes) for seed in range(20)]
    assert sum(noted) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_one_outlier_does_not_make_all_points_look_noisy(seed):
    errors = normal(seed)
    clean = fitted(errors, delta=1e-3).sigma
    errors[5] += 20
    assert clean < fitted(errors, delta=1e-3).sigma < 1.5 * clean


def test_without_outliers_the_noise_is_that_of_the_residuals():
    fit = fitted(np.clip(normal(1), -2, 2), delta=np.inf)
    residuals = np.log(fit.y) - fit.log_values(fit.x)
    assert fit.sigma == pytest.approx(np.sqrt(np.sum(residuals**2) / (len(X) - 2)), rel=1e-6)


@pytest.mark.parametrize(
    ("growth", "rho", "shift"), [(0, 0, 0), (0.7, 0, 0), (0.7, 0.6, 0), (-0.7, 0, 1.4)]
)
def test_the_restricted_likelihood_is_that_of_the_covariance_matrix(growth, rho, shift):
    """Of log |V| + log |J' V^-1 J| + df log(r' P r), with all matrices written out."""
    seed = SEEDS[:9] if shift else np.zeros(9, int)
    place = np.linspace(-0.5, 0.5, 9)
    previous = np.arange(-1, 8)
    tangent = np.linalg.qr(np.c_[np.ones(9), place])[0]
    residuals = normal(0, 9)
    index = np.arange(9)
    shared = rho ** np.abs(index[:, None] - index) if rho else np.eye(9)
    shared = shared + shift**2 * (seed[:, None] == seed)
    size = np.exp(growth * place)
    covariance = size[:, None] * shared * size
    inverse = np.linalg.inv(covariance)
    inner = tangent.T @ inverse @ tangent
    projection = inverse - inverse @ tangent @ np.linalg.inv(inner) @ tangent.T @ inverse
    squares = residuals @ projection @ residuals
    wanted = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1] + 7 * np.log(squares)
    grid = np.array([[growth], [rho], [shift]], float)
    logs, rss = _restricted(residuals, tangent, place, previous, seed, grid)
    # What each departure had before the points are seen, the only one of its kind here.
    alone = sum(math.log(1 - PLAIN) for departure in (growth, shift) if departure)
    alone += math.log(1 - UNCORRELATED) if rho else 0
    assert rss[0] == pytest.approx(squares)
    assert logs[0] == pytest.approx(-wanted / 2 + alone)


def test_curves_have_random_numbers_of_their_own_whatever_their_units():
    one, two = (fitted(normal(seed), delta=np.inf) for seed in (1, 2))
    levels = [fit.replicates[:, 0] for fit in (one, two)]
    assert abs(np.corrcoef(levels)[0, 1]) < 0.15
    again = fit_curve(M1, X / 1e6, 100 * one.y, hold_out=0, delta=np.inf)
    assert again.coefficients["c"] == pytest.approx(one.coefficients["c"], rel=1e-6)


def test_a_seed_that_two_curves_share_moves_both():
    shift = np.tile([-3.0, 0.0, 3.0], 8)

    def levels(seed, labels):
        fit = fitted(normal(seed) + shift, seeds=labels, interval="seeds", delta=np.inf)
        return fit.log_values(SIZES[3:4], fit.replicates)[:, 0]

    one, same, other = levels(1, SEEDS), levels(2, SEEDS), levels(3, SEEDS + 10)
    assert np.corrcoef(one, same)[0, 1] > 0.9
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    # The standard error of a mean over 3 seeds, with the unbiased variance between them.
    assert np.std(one) == pytest.approx(0.03 / np.sqrt(3), rel=0.15)


def test_a_weight_of_2_is_a_point_twice():
    """In the linear part of Huber's loss, too."""
    y = curve(normal(4))
    doubled = np.r_[np.arange(24), 3, 7]
    twice = Problem.of(POWER, X[doubled], y[doubled], 1e-4)
    once = Problem.of(POWER, X, y, 1e-4)
    counts = np.bincount(doubled, minlength=24)[None].astype(float)
    theta, objective, _ = refit(once, once.log_y[None], once.starts(), counts)
    wanted, lowest, _ = best_theta(twice)
    assert objective[0] == pytest.approx(lowest, rel=1e-6)
    assert once.log_values(theta[0]) == pytest.approx(once.log_values(wanted), abs=1e-5)


def test_a_weight_of_a_quarter_for_worse_points_acts_as_a_quarter():
    """Where the loss is linear, 1 better point then weighs as much as 4 worse ones."""
    x = np.geomspace(1e8, 1e10, 100)
    fit = fit_curve(
        M1, x, curve(normal(0, 100), x), hold_out=0, delta=1e-4, worse_counts=0.25
    )  # fmt: skip
    better = np.mean(np.log(fit.y) < fit.log_values(fit.x))
    assert better == pytest.approx(0.2, abs=0.025)
    middle = np.median(fit.log_values(SIZES, fit.replicates), axis=0)
    assert np.abs(middle - fit.log_values(SIZES)).max() < 0.2 * fit.sigma


def outlook(errors, laws=(M1,), **options):
    values = zip(X, curve(errors, **options), strict=True)
    points = tuple(Point(float(x), float(y)) for x, y in values)
    return Outlook(Curve(Place(), "cross_entropy", "D_p", points), list(laws))


def test_equal_laws_are_seldom_told_apart(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 200)
    one = [outlook(normal(seed)) for seed in range(40)]
    chances = [
        chance_of_best({"one": a, "two": b}, 1e11, -1)["one"]
        for a, b in zip(one[::2], one[1::2], strict=True)
    ]
    # Of 20, 2 are expected beyond 95 %; more than 6 in 1 of 1000 cases.
    assert sum(chance > 0.95 or chance < 0.05 for chance in chances) <= 6


def test_chances_are_averages_over_families_with_ties_shared():
    def chance(laws):
        pair = {name: outlook(normal(i), laws) for i, name in enumerate(("one", "two"))}
        return chance_of_best(pair, 1e11, -1)["one"]

    assert chance((M1, POWER)) == pytest.approx((chance((M1,)) + chance((POWER,))) / 2)
    same = outlook(normal(1))
    assert chance_of_best({"a": same, "b": same}, 1e11, -1) == {"a": 0.5, "b": 0.5}


def test_a_planted_crossing_lies_within_its_interval():
    still = np.zeros(24)
    lower = outlook(np.full(24, 1.0), exponent=0.2, noise=0.1)
    crossing = overtakes(outlook(still, exponent=0.15, noise=0.0), lower)
    assert crossing.x == pytest.approx(1e8 * np.exp(0.1 / 0.05), rel=1e-3)
    hits = 0
    for seed in range(10):
        first = outlook(normal(seed), exponent=0.15)
        second = outlook(normal(100 + seed) + 10, exponent=0.2)
        crossing = overtakes(first, second)
        hits += crossing.low <= 1e8 * np.exp(0.1 / 0.05) <= crossing.high
    assert hits >= 6  # 9 expected
