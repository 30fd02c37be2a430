"""Families of laws compared by what they have not seen."""

import numpy as np
import pytest

from t5scaling.analysis.fitting.compare import Family, compare, p_value
from t5scaling.analysis.fitting.protocol import folds, held_out_by
from t5scaling.analysis.fitting.rollout import Prediction, predictions
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
    for errors in (None, 0.01 * y * (1 + np.arange(len(y)) % 3)):
        before, after = (
            predictions(LAWS["ceiling"], x, values, errors=errors) for values in (y, changed)
        )
        of_both = [[(s.predicted, s.low, s.high) for s in found[:-1]] for found in (before, after)]
        assert np.allclose(*of_both, rtol=1e-12)
        assert before[-1].log_error != after[-1].log_error


def test_standard_errors_weigh_the_points_of_a_rollout():
    y = 2.0 * (X / 1e8) ** -0.3 * np.exp(0.001 * np.array([1, -1, 1, -1, 1, -1, 1, -1, 1]))
    y[2] *= 1.3  # measured badly, and known to be
    y[5] *= 1.2
    errors = 0.001 * y
    errors[[2, 5]] *= 200
    trusting = predictions(LAWS["m1"], X, y)
    found = predictions(LAWS["m1"], X, y, errors=errors)
    for step, other in zip(found, trusting, strict=True):
        if step.x == X[5]:  # its own error is in its interval, which holds it
            assert step.inside and step.high / step.low > 1.3
            continue
        assert abs(step.log_error) < 0.005
        assert np.log(step.high / step.low) < 0.05 * np.log(other.high / other.low)


def test_a_comparison_weighs_points_by_their_errors():
    """One bad point of 9 makes the power law with floor useless, unless it counts for less."""
    y = noisy(2.0 * (X / 1e8) ** -0.3, 1, 0.003)
    y[5] *= 1.25
    errors = np.full(len(y), 0.003) * y
    errors[5] *= 100
    found = compare([(X, y, errors)], FALLING)
    plain = compare([(X, y)], FALLING)
    errors_of = [{f.law.name: f.error for f in each.families} for each in (plain, found)]
    assert errors_of[1]["power"] < 0.6 * errors_of[0]["power"]
    assert min(found.families, key=lambda family: family.aicc).law.name == "m1"
    with pytest.raises(UserError, match="standard error of 0"):
        compare([(X, y, 0 * errors)], FALLING)


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
    pure = [(X, noisy(3 * (X / X[0]) ** -0.2, seed)) for seed in range(3, 6)]
    found = compare(pure, [LAWS["power"], LAWS["m3"]])
    assert found.winner is None and found.p_value > 0.05
    assert "cannot be distinguished from" in found.sentence
    short = compare([(X[:6], pure[0][1][:6])], [LAWS["power"], LAWS["m3"]])
    assert short.winner is None and short.p_value is None
    assert "too few predictions to test" in short.sentence


def family(errors, curves):
    made = tuple(
        Prediction(curve, 4, 1.0, 0.3, 1.0, float(np.exp(error)))
        for error, curve in zip(errors, curves, strict=True)
    )
    return Family(LAWS["power"], made, float(np.sqrt(np.mean(np.square(errors)))), 0.0)


def test_a_small_p_speaks_for_the_family_that_is_ranked_first():
    # The second errs less in 19 of 20 curves, the first far less in one: by squared errors the
    # first leads, and what speaks for the second must not make the lead look sure.
    curves = np.repeat(np.arange(20), 3)
    first = family(np.where(curves < 19, 0.02, 0.1), curves)
    second = family(np.where(curves < 19, 0.01, 0.3), curves)
    assert first.error < second.error and p_value([first, second]) > 0.3
    clear = family([0.5 * abs(p.log_error) for p in first.predictions], curves)
    assert p_value([clear, first]) < 0.01


def test_equal_families_differ_as_often_as_the_level_says():
    rng, curves = np.random.default_rng(0), np.repeat(np.arange(12), 4)
    rejected = 0
    for _ in range(200):
        bend = rng.standard_normal((2, 12))[:, curves]  # errors of one curve go together
        both = 0.05 * (bend + 0.5 * rng.standard_normal((2, 48)))
        pair = sorted((family(errors, curves) for errors in both), key=lambda f: f.error)
        rejected += p_value(pair) < 0.05
    assert rejected <= 0.09 * 200


def test_long_curves_make_a_limited_number_of_predictions():
    x = np.arange(1.0, 61.0)
    plan = folds(LAWS["power"], x)
    # From a tenth of the sizes on.
    assert len(plan) == 8 and plan[0][0].sum() == 6 and plan[-1][1][-1]
    assert all(x[seen].max() < x[wanted].min() for seen, wanted in plan)
    assert all(len(x[wanted]) == 1 for _, wanted in plan)


def test_laws_of_a_loss_are_checked_on_smaller_losses():
    loss = np.array([4.0, 3.5, 3.0, 2.6, 2.3, 2.1])
    steps = predictions(LAWS["gordon"], loss, 50 * np.exp(-0.8 * loss))
    assert [step.x for step in steps] == [2.6, 2.3, 2.1]
    assert all(abs(step.log_error) < 1e-4 for step in steps)
    assert held_out_by(LAWS["gordon"], loss, "paper", None).tolist() == 4 * [False] + 2 * [True]
    assert held_out_by(LAWS["gadre"], loss, "rollout", 1).tolist() == 5 * [False] + [True]


def test_joint_laws_are_held_out_by_the_largest_of_each_size():
    sizes = 2.0 ** np.arange(5)
    x = np.array([(a, b) for a in sizes for b in 10 * sizes[:4]]).T
    held = held_out_by(LAWS["zhang"], x, "rollout", 1)
    assert held.tolist() == ((x[0] == 16) | (x[1] == 80)).tolist()
    few = x[:, x[1] < 80]  # of 3 pools none is held out
    assert held_out_by(LAWS["zhang"], few, "rollout", 1).tolist() == (few[0] == 16).tolist()
    plan = folds(LAWS["zhang"], x)
    assert plan and all(not (seen & wanted).any() for seen, wanted in plan)
    assert plan[-1][1].tolist() == held.tolist()
    y = 1.5 + 3 / (x[0] ** 0.2 * x[1] ** 0.1)
    assert all(abs(step.log_error) < 1e-3 for step in predictions(LAWS["zhang"], x, y)[-6:])


def test_the_papers_protocol_fits_four_sizes():
    x, y = saturating(0)
    steps = predictions(LAWS["ceiling"], x, y, protocol="paper")
    assert {step.k for step in steps} == {4} and [step.x for step in steps] == X[4:].tolist()
    with pytest.raises(UserError, match=r"fits 4, and the broken power law has 6 coefficients"):
        compare([(x, 1 / y)], [LAWS["power"], LAWS["bnsl"]], protocol="paper")


def test_too_short_curves_say_how_many_sizes_are_needed():
    with pytest.raises(UserError, match=r"no curve has more than 4 sizes: .* 5 are needed"):
        compare([(X[:4], 2 - 0.1 * np.arange(4))], FALLING)
