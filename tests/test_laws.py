"""The laws as formulas: both parametrisations agree, derivatives are exact, limits hold."""

import numpy as np
import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Frame
from t5scaling.analysis.laws.one_size import _root

X = 1e5 * 2.0 ** np.arange(8)
ONE_SIZE = {name: law for name, law in LAWS.items() if len(law.sizes) == 1}
LOG = LAWS["log"]
POWER = LAWS["power"]
THETAS = {
    "log": [(2.5, 0.3, 0.5), (1.0, 0.05, 4.0), (3.0, 0.8, -2.0), (-1.0, 2.0, 1.0)],
    "power": [(1.7, 0.05, 0.0), (1.7, 0.05, 1.2), (0.5, 0.3, 0.2), (1.0, 0.01, 4.0)],
    "m1": [(1.7, 0.05), (-1.0, 0.6)],
    "m3": [(1.7, 0.05, -4.0), (0.5, 0.3, 0.2), (1.0, 0.2, 2.0)],
    "onset": [(1.7, 0.05, -4.0), (0.5, 0.3, 0.2), (1.0, 0.2, 2.0)],
    "m4": [(0.6, 0.2, 0.8, -1.0, 0.5), (0.3, 0.05, 0.1, 1.0, 1.0), (0.0, 0.5, 3.0, 0.0, 2.5)],
    "bnsl": [(1.7, 0.1, 0.4, 0.5, -1.0, 0.8), (0.5, 0.5, 0.1, -1.0, 0.5, 0.1)],
    "ceiling": [(1.0, -0.5, 0.3), (2.5, 1.5, -3.0), (0.1, 0.0, 2.0)],
    "gordon": [(2.0, 0.5), (3.0, 4.0)],
    "gadre": [(1.0, -0.5, 0.3), (0.1, 0.0, 2.0)],
    "lin": [(1.0, -2.0, 0.5, -1.0), (0.5, 1.0, -3.0, 0.0), (1.5, -5.0, 2.0, -2.0)],
    "rising": [(1.7, 0.05), (-1.0, 0.6)],
    "rising-floor": [(1.7, 0.05, 0.0), (1.7, 0.05, 1.2), (0.5, 0.3, 0.2), (1.0, 0.01, 4.0)],
    "hill": [(1.0, 0.3, 0.5), (3.0, 0.05, -2.0), (0.0, 1.0, 3.0)],
}
CASES = [(name, theta) for name, thetas in THETAS.items() for theta in thetas]


def test_no_law_is_left_out():
    assert THETAS.keys() == ONE_SIZE.keys()


def frame_of(law):
    y = np.linspace(1, 3, len(X))
    return Frame.of(X, y)


@pytest.mark.parametrize(("name", "theta"), CASES)
def test_jacobian_is_the_derivative(name, theta):
    law, theta = LAWS[name], np.array(theta)
    frame, log_x = frame_of(law), np.log(X)
    exact = law.jacobian(theta, log_x, frame)
    assert exact.shape == (len(X), law.num_parameters)
    for i in range(law.num_parameters):
        step = np.zeros(law.num_parameters)
        step[i] = 1e-6
        # log rho ends at 0: one-sided there.
        if (name, i) in (("power", 2), ("rising-floor", 2)) and theta[2] == 0:
            numeric = (
                -3 * law.log_value(theta, log_x, frame)
                + 4 * law.log_value(theta + step, log_x, frame)
                - law.log_value(theta + 2 * step, log_x, frame)
            ) / 2e-6
        else:
            up = law.log_value(theta + step, log_x, frame)
            numeric = (up - law.log_value(theta - step, log_x, frame)) / 2e-6
        np.testing.assert_allclose(exact[:, i], numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "theta"), CASES)
def test_coefficients_give_the_published_formula(name, theta):
    law, theta = LAWS[name], np.array(theta)
    frame = frame_of(law)
    value = np.exp(law.log_value(theta, np.log(X), frame))
    c = law.coefficients(theta, frame)
    np.testing.assert_allclose(law.published(X, c), value, rtol=1e-9)
    if name == "log":
        identified = c["s"] * (np.log(X) - np.log(c["D0"])) ** c["beta"]
        np.testing.assert_allclose(identified, value, rtol=1e-9)
        assert c["s"] == pytest.approx(c["alpha"] ** c["beta"], rel=1e-9)


@pytest.mark.parametrize(("name", "theta"), CASES)
def test_every_law_moves_one_way_only(name, theta):
    law = LAWS[name]
    log_x = np.linspace(np.log(X[0]), np.log(X[-1]) + 10, 200)
    value = law.log_value(np.array(theta), log_x, frame_of(law))
    assert np.all(law.direction * np.diff(value) >= -1e-12)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("power", "E"),
        ("m3", "floor"),
        ("m4", "e"),
        ("bnsl", "a"),
        ("ceiling", "C"),
        ("hill", "C"),
        ("gadre", "e"),
        ("lin", "E"),
    ],
)
def test_limits_for_unlimited_data(name, limit):
    law, theta = LAWS[name], np.array(THETAS[name][1])
    with np.errstate(over="ignore"):  # a loss of e^3000
        far = np.exp(law.log_value(theta, np.array([3000.0]), frame_of(law)))
    assert far[0] == pytest.approx(float(law.coefficients(theta, frame_of(law))[limit]), rel=1e-6)


def test_the_onset_starts_from_the_value_without_pretraining():
    """And far above d it is the power law b d^c / D^c."""
    law, theta = LAWS["onset"], np.array(THETAS["onset"][1])
    b, d, c = (float(v) for v in law.coefficients(theta, frame_of(law)).values())
    near, far = np.exp(law.log_value(theta, np.log([1e-9 * d, 1e9 * d]), frame_of(law)))
    assert near == pytest.approx(b, rel=1e-6) and far == pytest.approx(b * 1e9**-c, rel=1e-6)


def test_log_law_predicts_nothing_below_d0():
    frame, theta = frame_of(LOG), np.array([2.5, 0.3, 0.5])
    d0 = float(LOG.coefficients(theta, frame)["D0"])
    assert d0 < X[0]
    below, above = np.exp(LOG.log_value(theta, np.log([0.5 * d0, 1.5 * d0]), frame))
    assert below == 0
    assert 0 < above < np.exp(LOG.log_value(theta, np.log(X[:1]), frame))[0]


def test_power_law_without_floor_is_a_straight_line_in_logs():
    log_value = POWER.log_value(np.array([1.7, 0.07, 0.0]), np.log(X), frame_of(POWER))
    np.testing.assert_allclose(np.diff(log_value) / np.diff(np.log(X)), -0.07, rtol=1e-9)


@pytest.mark.parametrize("law", ONE_SIZE.values(), ids=ONE_SIZE)
def test_starts_lie_within_bounds_and_work_for_a_batch(law):
    frame, log_x = frame_of(law), np.log(X)
    log_y = law.direction * 0.1 * (log_x - log_x.mean())
    starts = law.starts(log_x, log_y, frame)
    lower, upper = law.bounds(Frame.of(X, np.exp(log_y)))
    assert len(starts) >= (4 if law.num_parameters == 2 else 20)
    assert np.all((starts >= lower) & (starts <= upper))
    assert law.log_value(starts, log_x, frame).shape == (len(starts), len(X))
    assert np.isfinite(law.jacobian(starts, log_x, frame)).all()


@pytest.mark.parametrize("law", ONE_SIZE.values(), ids=ONE_SIZE)
def test_every_coefficient_is_explained(law):
    names = {c.name for c in law.coefficient_table}
    theta = law.starts(np.log(X), np.log(X) * law.direction * 0.1, frame_of(law))[0]
    assert set(law.coefficients(theta, frame_of(law))) == names
    assert {name for name, _ in law.at_bound} <= set(law.theta_names)


def test_losses_get_the_power_law_and_scores_the_log_law():
    assert law_of_metric("cross_entropy") is POWER
    assert law_of_metric("bleu") is LOG
    assert law_of_metric("chrf") is LOG


@pytest.mark.parametrize("a", [0.0, 1e-6, 0.3, 1.0, 7.0, 1e4])
def test_the_sigmoidal_laws_root_solves_its_equation(a):
    goal = np.array([-300.0, -20.0, -1.0, -1e-3, *((0.0, 0.5, 30.0) if a > 0.1 else ())])
    z = _root(np.array([[a]]), goal[None])[0]
    solved = a * np.logaddexp(0, z) - np.logaddexp(0, -z)
    np.testing.assert_allclose(solved, goal, rtol=1e-9, atol=1e-9)


def test_the_power_law_with_floor_is_finite_far_out():
    far = np.log([1e-250, 1e250])
    values = POWER.log_value(np.array([0.0, 10.0, 5.0]), far, Frame.of(X, X**-0.1))
    slopes = POWER.jacobian(np.array([0.0, 10.0, 5.0]), far, Frame.of(X, X**-0.1))
    assert np.isfinite(values).all() and np.isfinite(slopes).all() and values[0] > values[1]
