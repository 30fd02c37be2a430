"""Laws of several sources: formula, derivatives, recovery from planted points, refusals."""

import numpy as np
import pandas as pd
import pytest

from t5scaling.analysis.draw import draw
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import of_sources
from t5scaling.analysis.laws.several_sources import KINDS
from t5scaling.analysis.results.load import Columns
from t5scaling.command_line import main
from t5scaling.errors import UserError

NAMES = ("de", "en", "fr")
SHARES = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5], [0.2, 0.5, 0.3], [0.7, 0.3, 0]]
).T
TOTALS = 1e6 * 2.0 ** np.arange(5)
PLANTED = {
    "sources": {"E": 1.5, "A": 300.0, "alpha": 0.4, "w_en": 0.6, "w_fr": 0.05},
    "sources-pair": {"E": 1.5, "A": 300.0, "alpha": 0.4, "w_en": 0.9, "w_fr": 0.05, "w_pair": 1.2},
    "sources-repeated": {
        "E": 1.5, "A": 300.0, "alpha": 0.4, "w_en": 0.6, "w_fr": 0.05, "lambda": 0.3,
    },
    "ye": {"c": 1.4, "k": 0.8, "t_en": 0.5, "t_fr": 1.5},
    "shukor": {
        "E": 1.0, "B": 100.0, "beta": 0.35, "C_de": 1.5, "C_en": 0.9, "C_fr": 0.3,
        "gamma_de": 0.4, "gamma_en": 0.5, "gamma_fr": 0.3,
    },
}  # fmt: skip


def curve(kind):
    """Seven mixtures at five totals (one total for the law of one size); each language has 2M
    unique tokens."""
    totals = TOTALS[:1] if kind == "ye" else TOTALS
    x = np.concatenate([SHARES * total for total in totals], axis=1)
    if kind == "sources-repeated":
        x = np.concatenate([x, np.where(x > 0, 2e6, 0.0)])
    return x, of_sources(kind, NAMES).published(x, PLANTED[kind])


def test_every_kind_has_a_planted_truth():
    assert set(PLANTED) == set(KINDS)


@pytest.mark.parametrize("kind", PLANTED)
def test_starts_formula_and_derivatives(kind):
    law, (x, y) = of_sources(kind, NAMES), curve(kind)
    frame = law.frame(x, y)
    with np.errstate(divide="ignore"):
        log_x = np.log(x)
    starts = law.starts(log_x, np.log(y), frame)
    lower, upper = law.bounds(frame)
    assert np.all((starts >= lower) & (starts <= upper))
    assert law.log_value(starts, log_x, frame).shape == (len(starts), x.shape[1])
    inner = np.clip(starts, lower + 0.05, upper - 0.05)
    exact = law.jacobian(inner, log_x, frame)
    assert exact.shape == (len(starts), x.shape[1], law.num_parameters)
    for i in range(law.num_parameters):
        step = 1e-6 * np.eye(law.num_parameters)[i]
        up, down = (law.log_value(inner + s, log_x, frame) for s in (step, -step))
        np.testing.assert_allclose(exact[..., i], (up - down) / 2e-6, rtol=1e-4, atol=1e-6)
    for theta in inner[::7]:
        c = law.coefficients(theta, frame)
        assert list(c) == [k.name for k in law.coefficient_table]
        value = np.exp(law.log_value(theta, log_x, frame))
        np.testing.assert_allclose(law.published(x, c), value, rtol=1e-8)


@pytest.mark.parametrize("kind", PLANTED)
def test_recovered_from_exact_points(monkeypatch, kind):
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    x, y = curve(kind)
    if kind == "shukor":  # with nine coefficients the bootstrap is slow
        monkeypatch.setattr(intervals, "REPLICATES", 2)
    fit = fit_curve(of_sources(kind, NAMES), x, y, hold_out=0, delta=np.inf)
    found = {key: fit.coefficients[key][0] for key in PLANTED[kind]}
    assert fit.converged
    assert found == pytest.approx(PLANTED[kind], rel=1e-2)


@pytest.mark.parametrize("kind", ["sources", "sources-pair"])
def test_held_out_along_the_total(monkeypatch, kind):
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    x, y = curve(kind)
    jitter = 1 + 0.003 * np.random.default_rng(0).standard_normal(x.shape[1])
    fit = fit_curve(of_sources(kind, NAMES), x * jitter, y, hold_out=1, delta=np.inf)
    assert [point.x for point in fit.held_out] == [1.6e7] * 7
    assert fit.held_out_error < 0.01


def test_units_change_no_price(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 20)
    x, y = curve("sources-pair")
    y = y * np.exp(0.003 * np.random.default_rng(1).standard_normal(len(y)))
    law = of_sources("sources-pair", NAMES)
    one, thousand = (
        fit_curve(law, x * unit, y, hold_out=0, delta=np.inf).coefficients for unit in (1, 1e-6)
    )
    for name in ("E", "alpha", "w_en", "w_fr", "w_pair"):
        assert one[name] == pytest.approx(thousand[name], rel=1e-4)


def test_the_price_of_a_token_is_covered(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    law, (x, y) = of_sources("sources", NAMES), curve("sources")
    hits = {"w_en": 0, "w_fr": 0}
    for seed in range(16):
        noise = 0.004 * np.random.default_rng(seed).standard_normal(len(y))
        fit = fit_curve(law, x, y * np.exp(noise), hold_out=0, delta=np.inf)
        for name in hits:
            _, low, high = fit.coefficients[name]
            hits[name] += low <= PLANTED["sources"][name] <= high
    assert min(hits.values()) >= 12, hits  # 90 %; two standard errors over 16 studies are 15 %


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (SHARES[:, :2] * [[1], [1], [0]], "too few"),
        (SHARES[:, [0, 1, 3, 6, 0, 1]] * [1, 1, 1, 1, 2, 2], "no fitted point has tokens of fr"),
        (np.array([[1, 2, 4, 8, 1, 2], [1, 2, 4, 8, 2, 4], [2, 4, 8, 16, 2, 4]]), "fixed"),
        (-SHARES, "expected 0 or more"),
        (np.zeros((3, 6)), "without tokens of any of de, en, fr"),
    ],
)
def test_what_cannot_be_fitted_is_refused(columns, said):
    x = 1e6 * np.asarray(columns, float)
    with pytest.raises(UserError, match=said):
        fit_curve(of_sources("sources", NAMES), x, 2 + np.arange(x.shape[1]), hold_out=0)


def test_the_law_of_one_size_refuses_several():
    x, y = curve("sources")
    with pytest.raises(UserError, match="mixtures of one total"):
        fit_curve(of_sources("ye", NAMES), x, y, hold_out=0)


def test_names_of_sources():
    with pytest.raises(UserError, match="two or more different names"):
        of_sources("sources", ("de", "de"))
    with pytest.raises(UserError, match="two or more different names"):
        of_sources("sources", ("de",))


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_has_a_line_for_each_mixture(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    x, y = curve(kind)
    unique = [f"unique_{name}" for name in NAMES] if kind == "sources-repeated" else []
    rows = pd.DataFrame(x.T, columns=[*NAMES, *unique])
    rows["loss"] = y * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(y)))
    table, folder = tmp_path / "table.csv", tmp_path / "drawn"
    rows.to_csv(table, index=False)
    arguments = [str(table), f"--sources={','.join(NAMES)}", "--y=loss", f"--law={kind}"]
    if unique:
        arguments.append(f"--unique={','.join(unique)}")
    assert main(["figures", *arguments, f"--output={folder}"]) == 0
    assert "1 figure as .png" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        f"sources--loss.{ending}" for ending in ("png", "svg", "csv")
    }
    drawn = pd.read_csv(folder / "sources--loss.csv")
    assert (drawn.kind == "fitted").sum() == len(y)
    law = drawn[drawn.kind == "law"]
    assert set(law.mixture) == {
        "de", "en", "fr", "50 % de, 50 % en", "50 % de, 50 % fr", "20 % de, 50 % en, 30 % fr",
        "70 % de, 30 % en",
    }  # fmt: skip
    assert np.all((law.low <= law.value) & (law.value <= law.high))


def test_a_figure_of_many_mixtures_shows_points(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    random = np.random.default_rng(0)
    x = random.dirichlet((1, 1, 1), 60).T * 10 ** random.uniform(6, 7.5, 60)
    y = of_sources("sources", NAMES).published(x, PLANTED["sources"])
    table = tmp_path / "table.csv"
    pd.DataFrame({**dict(zip(NAMES, x, strict=True)), "loss": y}).to_csv(table, index=False)
    columns = Columns(y="loss", sources=NAMES)
    (figure,) = draw(table, columns, output=tmp_path / "drawn")
    rows = pd.read_csv(figure.stem.with_name(figure.stem.name + ".csv"))
    assert (rows.kind == "fitted").sum() == (rows.kind == "law").sum() == 60
    assert np.allclose(rows.value[rows.kind == "fitted"], rows.value[rows.kind == "law"], rtol=1e-3)


def test_figures_of_sources_refuse_what_is_not_theirs(tmp_path, capsys):
    x, y = curve("sources")
    table = tmp_path / "table.csv"
    pd.DataFrame({**dict(zip(NAMES, x, strict=True)), "loss": y}).to_csv(table, index=False)
    arguments = ["figures", str(table), f"--sources={','.join(NAMES)}", "--y=loss"]
    for extra, message in (
        ("--at=70B", "--at is for figures of one size"),
        ("--law=power", "'power' is not one of --sources"),
        ("--law=all", "figures takes one law"),
    ):
        assert main([*arguments, extra, f"--output={tmp_path / 'drawn'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "drawn").exists()
