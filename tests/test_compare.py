"""Families of laws compared by what they have not seen."""

import numpy as np
import pytest

from t5scaling.analysis.fitting.compare import compare, predictions
from t5scaling.analysis.laws import LAWS
from t5scaling.errors import UserError

X = 1e8 * 2.0 ** np.arange(9)
RISING = [LAWS[name] for name in ("log", "ceiling", "hill")]
FALLING = [LAWS[name] for name in ("power", "m1", "m3")]


def noisy(values, seed, noise=0.01):
    return values * np.exp(np.random.default_rng(seed).normal(0, noise, len(values)))


def saturating(seed):
    return X, noisy(40 - 30 * (X / X[0]) ** -0.7, seed)


def unbounded(seed):
    return X, noisy(0.5 * (np.log(X) - np.log(2e7)) ** 2, seed)


def test_a_rollout_predicts_each_size_from_those_below_it():
    x = np.repeat(X, 2)
    y = np.repeat(2.0 * (X / 1e8) ** -0.3, 2)
    steps = predictions(LAWS["m1"], x, y)
    assert [step.k for step in steps] == [3, 4, 5, 6, 7, 8]
    assert [step.x for step in steps] == X[3:].tolist()
    assert all(step.converged and abs(step.log_error) < 1e-6 for step in steps)
    assert all(step.decades == pytest.approx(np.log10(2)) for step in steps)


def test_a_point_does_not_change_the_predictions_before_it():
    x, y = saturating(0)
    changed = y.copy()
    changed[-1] *= 3
    before, after = (predictions(LAWS["ceiling"], x, values) for values in (y, changed))
    assert [s.log_error for s in before[:-1]] == [s.log_error for s in after[:-1]]
    assert before[-1].log_error != after[-1].log_error


def test_saturating_curves_prefer_a_ceiling_and_the_log_law_overshoots():
    found = compare([saturating(seed) for seed in range(4)], RISING)
    assert found.winner is not None and found.winner.name in ("ceiling", "hill")
    (log,) = [family for family in found.families if family.law.name == "log"]
    assert np.mean([step.log_error for step in log.predictions]) > 0.02  # predicted too high
    assert "better than" in found.sentence


def test_curves_without_a_ceiling_keep_the_log_law():
    found = compare([unbounded(seed) for seed in range(4)], RISING)
    assert found.families[0].law.name == "log"


def test_a_floor_is_told_from_none():
    floor = [(X, noisy(1.5 + (X / X[0]) ** -0.4, seed, 0.003)) for seed in range(4)]
    found = compare(floor, FALLING)
    assert found.winner is not None and found.winner.name == "power"
    assert found.families[-1].law.name == "m1"
    assert found.families[-1].aicc > found.families[0].aicc


def test_no_winner_where_the_data_cannot_tell():
    pure = [(X, noisy(3 * (X / X[0]) ** -0.2, seed)) for seed in range(3)]
    found = compare(pure, [LAWS["power"], LAWS["m3"]])
    assert found.winner is None and found.p_value > 0.05
    assert "cannot be distinguished from" in found.sentence
    short = compare([(X[:6], pure[0][1][:6])], [LAWS["power"], LAWS["m3"]])
    assert short.winner is None and short.p_value is None
    assert "too few predictions to test" in short.sentence


def test_too_short_curves_say_how_many_sizes_are_needed():
    with pytest.raises(UserError, match=r"no curve has more than 4 sizes: .* 5 are needed"):
        compare([(X[:4], 2 - 0.1 * np.arange(4))], FALLING)
