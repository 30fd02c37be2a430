"""The compute-optimal frontier: closed form, search, published numbers, refusals."""

import numpy as np
import pytest

from t5scaling.analysis.conclusions import frontier as module
from t5scaling.analysis.conclusions.frontier import frontier
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.formula import Formula
from t5scaling.errors import UserError

GRID = np.array([(n, d) for n in 1e8 * 4.0 ** np.arange(5) for d in 1e9 * 4.0 ** np.arange(5)]).T
# Besiroglu et al., arXiv 2404.10102, Table 1; and Kaplan et al., arXiv 2001.08361.
BESIROGLU = {"E": 1.817236, "A": 477.84, "B": 2143.86, "alpha": 0.347313, "beta": 0.367183}
KAPLAN = {"Nc": 9e13, "Dc": 5e9, "aN": 0.076, "aD": 0.103}
CHINCHILLA = 5.76e23  # operations that its training took


@pytest.fixture(scope="module")
def fit_of():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPLICATES", 60)
        noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(GRID.shape[1]))
        fits = {
            name: fit_curve(
                LAWS[name], GRID, LAWS[name].published(GRID, c) * (noise if noisy else 1.0),
                hold_out=0, delta=np.inf,
            )
            for name, c, noisy in (
                ("chinchilla", BESIROGLU, False), ("kaplan", KAPLAN, True), ("zhang", {
                "E": 1.5, "A": 60.0, "a": 0.12, "b": 0.1}, True),
            )
        }  # fmt: skip
    return fits.__getitem__


def test_the_published_coefficients_give_what_follows_from_them(fit_of):
    (best,) = frontier(fit_of("chinchilla"), [CHINCHILLA])
    c = BESIROGLU
    power = c["beta"] / (c["alpha"] + c["beta"])
    factor = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / (c["alpha"] + c["beta"]))
    model = factor * (CHINCHILLA / 6) ** power
    assert best.exponent.value == pytest.approx(power, rel=1e-4) == pytest.approx(0.5139, abs=1e-4)
    assert best.sizes[0].value == pytest.approx(model, rel=1e-3)
    assert best.sizes[1].value == pytest.approx(CHINCHILLA / 6 / model, rel=1e-3)
    assert 17 < best.ratio.value < 21  # "around 20 tokens per parameter"
    assert best.value.value == pytest.approx(
        LAWS["chinchilla"].published(np.array([model, CHINCHILLA / 6 / model]), c), rel=1e-5
    )
    assert best.decades == pytest.approx(np.log10(CHINCHILLA / (6 * GRID.prod(0).max())))


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
def test_search_and_closed_form_agree(fit_of, name):
    fit = fit_of(name)
    thetas = np.vstack([fit.theta, fit.replicates])
    for log_product in (40.0, 52.0):
        closed = module._optimum(fit, thetas, log_product)
        np.testing.assert_allclose(module._searched(fit, thetas, log_product), closed, atol=1e-4)


def test_intervals_hold_the_value_and_a_better_split_is_not_to_be_found(fit_of):
    fit = fit_of("kaplan")
    (best,) = frontier(fit, [1e22], flops=7.0)
    for found in (*best.sizes, best.ratio, best.value, best.exponent):
        assert found.low < found.value < found.high
    assert best.sizes[0].value * best.sizes[1].value * 7 == pytest.approx(1e22)
    others = best.sizes[0].value * np.geomspace(0.5, 2, 9)
    assert fit.predict(np.array([others, 1e22 / 7 / others])).min() == pytest.approx(
        best.value.value, rel=1e-6
    )


def test_a_formula_of_two_sizes_has_one_too(monkeypatch, fit_of):
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    law = Formula("E + A/params**a + B/tokens**b", ("params", "tokens"))
    y = LAWS["chinchilla"].published(GRID, BESIROGLU)
    (best,) = frontier(fit_curve(law, GRID, y, hold_out=0, delta=np.inf), [1e21])
    (known,) = frontier(fit_of("chinchilla"), [1e21])
    assert best.sizes[0].value == pytest.approx(known.sizes[0].value, rel=1e-3)
    assert best.exponent.value == pytest.approx(known.exponent.value, rel=1e-3)


def test_without_an_optimum_or_a_meaning_there_is_no_answer(monkeypatch, fit_of):
    with pytest.raises(UserError, match="is a law of D_p and D_f: a budget of compute is shared"):
        frontier(fit_of("zhang"), [1e21])
    for budget in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(UserError, match="expected a positive number of operations"):
            frontier(fit_of("kaplan"), [budget])
    with pytest.raises(UserError, match="expected a positive number"):
        frontier(fit_of("kaplan"), [1e21], flops=0.0)
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    product = Formula("E + A/(N**a * D**b)", ("N", "D"))
    y = 1.5 + 60 / (GRID[0] ** 0.12 * GRID[1] ** 0.1)
    fit = fit_curve(product, GRID, y, hold_out=0, delta=np.inf)
    with pytest.raises(UserError, match="it always prefers a larger N"):
        frontier(fit, [1e21])
