"""A formula of one's own: read safely, fitted as the library's own laws are, refused clearly."""

import numpy as np
import pytest

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Frame
from t5scaling.analysis.laws.formula import Formula, is_formula, parsed_bounds
from t5scaling.errors import UserError

X = 1e6 * 2.0 ** np.arange(9)
NOISE = np.exp(0.002 * np.random.default_rng(1).standard_normal(9))
LOSS = (1.5 + 60 * X**-0.25) * NOISE
SCORE = np.log(1e-3 * X**0.6) ** 1.7 * NOISE
GRID = np.array([(n, d) for n in 1e8 * 4.0 ** np.arange(4) for d in 1e9 * 4.0 ** np.arange(4)]).T


@pytest.mark.parametrize(
    ("text", "law", "y", "same"),
    [
        ("E + A/D**alpha", "power", LOSS, {"E": "E", "A": "A", "alpha": "alpha"}),
        ("b * (1/D + g)^c", "m3", LOSS, {"b": "b", "g": "g", "c": "c"}),
        ("C / (1 + (half/D)**k)", "hill", SCORE, {"C": "C", "half": "D_half", "k": "k"}),
        ("s * log(D/D0)**beta", "log", SCORE, {"s": "s", "D0": "D0", "beta": "beta"}),
    ],
)
def test_the_same_numbers_as_the_built_in_law(monkeypatch, text, law, y, same):
    monkeypatch.setattr(intervals, "REPLICATES", 100)
    own = Formula(text, ("D",), direction=LAWS[law].direction)
    mine, theirs = (fit_curve(one, X, y, hold_out=1, delta=np.inf) for one in (own, LAWS[law]))
    assert mine.converged and mine.objective == pytest.approx(theirs.objective, rel=1e-6)
    for name, known in same.items():
        (value, *ends), (wanted, *others) = mine.coefficients[name], theirs.coefficients[known]
        assert value == pytest.approx(wanted, rel=1e-3)
        # Replicates are followed to within 0.05 standard errors (intervals.OFFSET) of their end.
        assert ends == pytest.approx(others, rel=1e-3, abs=0.05 * (others[1] - others[0]))
    assert mine.predict(X * 8) == pytest.approx(theirs.predict(X * 8), rel=1e-5)


def test_two_sizes(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 40)
    y = 1.8 + 480 / GRID[0] ** 0.34 + 150 / GRID[1] ** 0.37
    own = Formula("E + A/N**alpha + B/D**beta", ("N", "D"))
    fit = fit_curve(own, GRID, y, hold_out=0, delta=np.inf)
    planted = {"E": 1.8, "A": 480, "alpha": 0.34, "B": 150, "beta": 0.37}
    assert {k: v[0] for k, v in fit.coefficients.items()} == pytest.approx(planted, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_the_sizes_does_not_matter(monkeypatch, unit):
    monkeypatch.setattr(intervals, "REPLICATES", 10)
    fit = fit_curve(Formula("E + A/D**alpha", ("D",)), X * unit, LOSS, hold_out=0, delta=np.inf)
    theirs = fit_curve(LAWS["power"], X, LOSS, hold_out=0, delta=np.inf)
    for name in ("E", "alpha"):
        assert fit.coefficients[name][0] == pytest.approx(theirs.coefficients[name][0], rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "E + A/D**alpha",
        "-a*D**-0.3 + sqrt(b + D)**k + exp(-c*D/1e8)*log(2 + D**g)",
        "2**(a/log(D)) - +b*(D - 1e5)/(c + D)",
        "(D - 3e7)**2 / 1e12 + a*D^b",
    ],
)
def test_derivatives_are_exact(text):
    law = Formula(text, ("D",), {"b": (-np.inf, np.inf)} if "b" in text else None)
    y = np.linspace(3, 2, len(X))
    frame, log_x = Frame.of(X, y), np.log(X)
    theta = 0.3 * np.random.default_rng(0).standard_normal((5, law.num_parameters))
    exact = law.jacobian(theta, log_x, frame)
    assert exact.shape == (5, len(X), law.num_parameters)
    for i in range(law.num_parameters):
        step = 1e-6 * np.eye(law.num_parameters)[i]
        up, down = (law.log_value(theta + s, log_x, frame) for s in (step, -step))
        np.testing.assert_allclose(exact[..., i], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)
    found = law.coefficients(theta[0], frame)
    value = np.exp(law.log_value(theta[0], log_x, frame))
    np.testing.assert_allclose(law.published(X, found), value, rtol=1e-12)


def test_bounds_hold_and_let_a_coefficient_be_negative(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    law = Formula("E + A/D**alpha", ("D",), parsed_bounds("alpha=0:0.2, E=:"))
    fit = fit_curve(law, X, LOSS, hold_out=0, delta=np.inf)
    assert fit.coefficients["alpha"][0] == pytest.approx(0.2)
    assert fit.at_bound == ("alpha is at its bound of 0.2",)
    sinking = 10 - 0.4 * np.log(X) * NOISE
    law = Formula("a + b*log(D)", ("D",), parsed_bounds("b=:"))
    fit = fit_curve(law, X, sinking, hold_out=0, delta=np.inf)
    assert fit.coefficients["b"][0] == pytest.approx(-0.4, rel=0.02)
    with pytest.raises(UserError, match="gives no positive values"):
        fit_curve(Formula("b - exp(D/1e6)", ("D",), {"b": (0, 2)}), X, LOSS, hold_out=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A * B / D**c", "cannot determine A and B, because other values of them"),
        ("A / D**c + 0*g", "cannot determine g, because it makes no difference"),
        ("A / D**(b + c)", "cannot determine b and c"),
    ],
)
def test_coefficients_that_no_points_determine_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        fit_curve(Formula(text, ("D",)), X, LOSS, hold_out=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("E + sin(D)", r"at character 5 \('sin\(D\)'\): functions are log, exp, sqrt"),
        ("E^2 + A.real/D", r"at character 7 \('A.real/D'\): a formula has numbers"),
        ("a + b^(D+", r"at character 7 \('\(D\+'\): this is not arithmetic"),
        ("__import__('os').system('x') + D", "functions are log, exp, sqrt"),
        ("[A for A in D]", "and nothing else"),
        ("A if D else B", "and nothing else"),
        ("A < D", "and nothing else"),
        ("A // D", "and nothing else"),
        ("A*D + 'x'", "expected a number or a name"),
        ("A*D + True", "expected a number or a name"),
        ("A*D + 2j", "expected a number or a name"),
        ("L = E + A/D", "expected a formula alone, without ="),
        ("A*D + 1e999", "this number is too large"),
        ("log + D", r"log is a function; write log\(...\)"),
        ("log(D, 2)", "of one argument each"),
        ("E + A/tokens**a", "does not hold D, the column of x; write the sizes by the names"),
        ("D**2", "has no coefficient to fit"),
        ("(" * 199 + "D" + ")" * 199, "nested|arithmetic|no coefficient"),
        ("-" * 399 + "D", "nested|no coefficient"),
        ("A+" * 200 + "D", "has 401 characters, at most 400"),
        ("", "not arithmetic"),
    ],
)
def test_what_is_no_formula_is_refused_with_the_place(text, message):
    with pytest.raises(UserError, match=message):
        Formula(text, ("D",))


def test_a_column_that_is_no_word_is_named():
    with pytest.raises(UserError, match="write the column 'data size' as one word"):
        Formula("E + A/D", ("data size",))


@pytest.mark.parametrize(
    "text", ["alpha", "alpha=1", "alpha=2:1", "alpha=a:b", "1=0:1", "a=0:1,a=0:2", "a:0=1"]
)
def test_bounds_that_are_none(text):
    with pytest.raises(UserError, match="bounds"):
        parsed_bounds(text)


def test_bounds_of_another_name_are_refused():
    assert parsed_bounds("alpha=0:2,E=0:") == {"alpha": (0, 2), "E": (0, np.inf)}
    with pytest.raises(UserError, match="has no such coefficient, but E, A, alpha"):
        Formula("E + A/D**alpha", ("D",), {"beta": (0, 1)})


def test_names_of_laws_are_no_formulas():
    assert not [name for name in (*LAWS, "all", "zhang-aditive", "powr") if is_formula(name)]
    assert is_formula("E + A/D^a") and is_formula("a*D")
