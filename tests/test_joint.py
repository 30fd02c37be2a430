"""Laws of two sizes: formula, derivatives, limits, recovery from planted points, refusals."""

import numpy as np
import pytest

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.compare import compare
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Frame
from t5scaling.errors import UserError

FIRST, SECOND = 1e8 * 2.0 ** np.arange(6), 1e5 * 10.0 ** np.arange(3)
GRID = np.array([(first, second) for first in FIRST for second in SECOND]).T
ROOT_MEAN = np.exp(np.log(GRID).mean(1))
PLANTED = {
    "zhang": {"E": 1.5, "A": 60.0, "a": 0.12, "b": 0.1},
    "zhang-additive": {"E": 1.5, "A": 200.0, "B": 60.0, "a": 0.3, "b": 0.35},
    "chinchilla": {"E": 1.8, "A": 480.0, "B": 150.0, "alpha": 0.34, "beta": 0.37},
    "kaplan": {"Nc": 9e13, "Dc": 5e9, "aN": 0.076, "aD": 0.103},
    "hernandez": {"k": 2.0, "a": 0.2, "b": 0.4},
    "muennighoff": {"E": 1.9, "B": 900.0, "beta": 0.36, "R*": 15.39},
    "barnett": {"E": 1.2, "G": 20.0, "A": 8e4, "alpha": 0.45, "beta": 0.2},
    "ghorbani": {"E": 1.4, "A": 150.0, "p_e": 0.16, "p_d": 0.2},
    "clark": {"a": -0.082, "b": -0.108, "c": 0.0039, "d": 2.5},
}
DETERMINED = {"chinchilla": ("alpha", "E"), "kaplan": ("aD",), "zhang": ("a", "b"),
              "zhang-additive": ("a", "E"), "hernandez": ("a", "b"),
              "muennighoff": ("beta", "R*"), "clark": ("a", "b", "c")}  # fmt: skip
JOINT = {name: law for name, law in LAWS.items() if len(law.sizes) == 2}


def sizes_of(name):
    """Repeated data need D >= U, experts are few, others are on a grid."""
    if name in ("ghorbani", "clark"):
        second = 1e8 * 2.0 ** np.arange(4) if name == "ghorbani" else 4.0 ** np.arange(4)
        return np.array([(first, two) for first in FIRST for two in second]).T
    if name != "muennighoff":
        return GRID
    unique = [1e7, 4e7, 1.6e8]
    return np.array([(u * e, u) for u in unique for e in (1, 2, 4, 8, 16, 32)]).T


def curve(name):
    x = sizes_of(name)
    return x, LAWS[name].published(x, PLANTED[name])


def test_every_joint_law_has_a_planted_truth():
    assert set(PLANTED) == set(JOINT)


@pytest.mark.parametrize("name", PLANTED)
def test_starts_formula_and_derivatives(name):
    law, (x, y) = LAWS[name], curve(name)
    frame, log_x = Frame.of(x, y), np.log(x)
    starts = law.starts(log_x, np.log(y), frame)
    lower, upper = law.bounds(frame)
    assert np.all((starts >= lower) & (starts <= upper))
    assert law.log_value(starts, log_x, frame).shape == (len(starts), x.shape[1])
    inner = np.clip(starts, lower + 0.05, upper - 0.05)
    exact = law.jacobian(inner, log_x, frame)
    for i in range(law.num_parameters):
        step = 1e-6 * np.eye(law.num_parameters)[i]
        up, down = (law.log_value(inner + s, log_x, frame) for s in (step, -step))
        np.testing.assert_allclose(exact[..., i], (up - down) / 2e-6, rtol=1e-4, atol=1e-6)
    for theta in inner[::5]:
        c = law.coefficients(theta, frame)
        assert set(c) == {k.name for k in law.coefficient_table}
        value = np.exp(law.log_value(theta, log_x, frame))
        np.testing.assert_allclose(law.published(x, c), value, rtol=1e-8)


@pytest.mark.parametrize("name", PLANTED)
def test_recovered_from_exact_points_and_moves_one_way(name):
    law, (x, y) = LAWS[name], curve(name)
    fit = fit_curve(law, x, y, hold_out=1, delta=np.inf)
    assert fit.converged and fit.held_out_error < 1e-4
    assert all(point.x == x[0].max() or point.x2 == x[1].max() for point in fit.held_out)
    found = {key: fit.coefficients[key][0] for key in PLANTED[name]}
    assert found == pytest.approx(PLANTED[name], rel=1e-2)
    for row in (0, 1):
        path = np.repeat(x[:, -1:], 50, axis=1)
        path[row] *= np.geomspace(1, 100, 50) if row == 0 else np.geomspace(1, 0.1, 50)[::-1]
        assert np.all(law.direction * np.diff(fit.predict(path)) >= -1e-9)


@pytest.mark.parametrize(
    "name", ["zhang", "zhang-additive", "chinchilla", "muennighoff", "barnett"]
)
def test_unlimited_data_end_at_the_floor(name):
    law, (x, y) = LAWS[name], curve(name)
    fit = fit_curve(law, x, y, hold_out=0, delta=np.inf)
    assert fit.predict(np.full((2, 1), 1e60))[0] == pytest.approx(PLANTED[name]["E"], rel=1e-2)


@pytest.mark.parametrize("name", DETERMINED)  # of the others: benchmarks/coverage.py
def test_intervals_cover(monkeypatch, name):
    monkeypatch.setattr(intervals, "REPLICATES", 200)
    law, (x, y) = LAWS[name], curve(name)
    studies, hits = 40, {key: 0 for key in (*DETERMINED[name], "new point")}
    target = x[:, -1:] * np.array([[4.0], [1.0]])
    for seed in range(studies):
        draw = np.random.default_rng(seed)
        noisy = y * np.exp(0.005 * draw.standard_normal(len(y)))
        fit = fit_curve(law, x, noisy, hold_out=0, delta=np.inf)
        for key in DETERMINED[name]:
            _, low, high = fit.coefficients[key]
            hits[key] += low <= PLANTED[name][key] <= high
        low, high = fit.band(target)
        new = law.published(target, PLANTED[name])[0] * np.exp(0.005 * draw.standard_normal())
        hits["new point"] += low[0] <= new <= high[0]
    for key, count in hits.items():  # 90 %; three standard errors over 40 studies are 14 %
        assert count / studies >= 0.75, (name, key, count / studies)


def test_the_multiplicative_law_is_told_from_the_additive_one():
    def noisy(y, seed):
        return y * np.exp(0.002 * np.random.default_rng(seed).standard_normal(len(y)))

    laws = [LAWS["zhang"], LAWS["zhang-additive"]]
    for name in ("zhang", "zhang-additive"):
        x, y = curve(name)
        found = compare([(x, noisy(y, seed)) for seed in range(3)], laws)
        assert found.families[0].law.name == name
        assert found.winner is not None


def test_too_few_points_and_one_value_of_a_size_are_refused():
    x, y = curve("zhang")
    with pytest.raises(UserError, match=r"3 distinct points to fit \(1 of D_p and 3 of D_f\)"):
        fit_curve(LAWS["zhang"], x[:, :3], y[:3])
    line = x[:, x[1] == SECOND[0]]
    with pytest.raises(UserError, match="1 of D_f"):
        fit_curve(LAWS["zhang"], line, y[x[1] == SECOND[0]], hold_out=0)
    with pytest.raises(UserError, match="is a law of D_p and D_f"):
        fit_curve(LAWS["zhang"], x[0], y)


def test_unlimited_pretraining_data_end_at_the_transfer_gap():
    law, (x, y), c = LAWS["barnett"], curve("barnett"), PLANTED["barnett"]
    fit = fit_curve(law, x, y, hold_out=0, delta=np.inf)
    pool = 1e6
    left = c["E"] + c["G"] / pool ** c["beta"]
    assert fit.predict(np.array([[1e30], [pool]]))[0] == pytest.approx(left, rel=1e-3)
