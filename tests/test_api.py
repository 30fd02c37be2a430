"""Laws in Python: what goes in, what comes out, what a notebook shows, and the document's code."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

import t5scaling.analysis
from t5scaling.analysis import LAWS, ComparedLaws, Estimate, FittedLaw, UserError, compare, fit
from t5scaling.analysis.fit_table import fit_table
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.results.load import Columns
from tests.conftest import REPOSITORY

X = 1e6 * 2.0 ** np.arange(7)
Y = (2.0 + 60.0 * X**-0.25) * np.exp(0.002 * np.random.default_rng(0).standard_normal(7))
FRAME = pd.DataFrame({"tokens": X, "loss": Y})


@pytest.fixture(autouse=True)
def fewer_replicates(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    matplotlib.use("agg")


def test_the_document_s_code_runs_and_says_what_it_says():
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (Path(REPOSITORY) / "docs/python.md").read_text(), re.M | re.S
    )
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 5
    assert names["own"].coefficients["alpha"].value == pytest.approx(0.25, abs=0.01)
    assert names["own"].predict(1e9) == pytest.approx(
        fit(names["runs"], x="tokens", y="loss", law="power").predict(1e9), rel=1e-4
    )
    assert list(names["laws"]) == ["web", "books"]
    assert len(names["axes"].lines) > 2  # both curves
    assert 15 < names["best"].ratio.value < 25
    assert names["compared"].errors


def test_frame_path_and_arrays_give_the_command_line_s_numbers(tmp_path, capsys):
    path = tmp_path / "a.csv"
    FRAME.to_csv(path, index=False)
    (known,) = fit_table(path, Columns(("tokens",), "loss"), hold_out=1)
    capsys.readouterr()
    found = [
        fit(FRAME, x="tokens", y="loss", hold_out=1),
        fit(path, x="tokens", y="loss", hold_out=1),
        fit(str(path), hold_out=1),
        fit(x=FRAME.tokens, y=FRAME.loss, hold_out=1),
        fit(x=list(X), y=Y, hold_out=1),
    ]
    for law in found:
        assert law.name == "power"
        assert law.coefficients == known.fit.coefficients
        assert isinstance(law.coefficients["E"], Estimate)
        assert law.predict(X).shape == X.shape and isinstance(law.predict(1e9), float)
        low, high = law.interval(1e9)
        assert low < law.predict(1e9) < high
        low, high = law.interval(X.reshape(1, -1))
        assert low.shape == high.shape == (1, 7)
    assert found[0].curve_fit.curve.x_name == found[3].curve_fit.curve.x_name == "tokens"
    assert found[4].curve_fit.curve.x_name == "x"


def test_what_a_notebook_shows_is_what_the_terminal_prints_escaped(tmp_path, capsys):
    frame = FRAME.assign(data="<b>&web")
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    fit_table(path, Columns(("tokens",), "loss", ("data",)), hold_out=1)
    printed = capsys.readouterr().out
    law = fit(frame, x="tokens", y="loss", group="data", hold_out=1)["<b>&web"]
    assert [line.rstrip() for line in str(law).splitlines()] == [
        line.rstrip() for line in printed.rstrip().splitlines()
    ]
    shown = law._repr_html_()
    assert "&lt;b&gt;&amp;web" in shown and "<b>" not in shown
    assert "power law with floor" in shown and "90% interval" in shown
    assert repr(law).startswith("<power law with floor L(D) = E + A / D^alpha: E ")
    assert law.verdict.startswith(law.curve_fit.verdict.word)


def test_plots_of_one_size_and_of_two():
    law = fit(FRAME.rename(columns={"loss": "$\\loss$"}), x="tokens", y="$\\loss$", hold_out=2)
    axes = law.plot()
    assert axes.get_xlabel() == "tokens" and axes.get_xscale() == "log"
    before = len(axes.lines)
    assert law.plot(axes) is axes and len(axes.lines) == 2 * before
    axes.get_figure().canvas.draw()  # a $ in a name is a $
    grid = np.array(
        [(n, d) for n in 1e8 * 4.0 ** np.arange(4) for d in 1e9 * 4.0 ** np.arange(4)]
    ).T
    loss = LAWS["chinchilla"].published(
        grid, {"E": 1.8, "A": 480.0, "B": 150.0, "alpha": 0.34, "beta": 0.37}
    )
    law = fit(x=pd.DataFrame(grid.T, columns=["N", "D"]).to_numpy().T, y=loss, law="chinchilla",
              hold_out=0)  # fmt: skip
    assert law.predict((1e9, 1e10)) == pytest.approx(
        1.8 + 480 / 1e9**0.34 + 150 / 1e10**0.37, rel=1e-4
    )
    assert law.predict(grid).shape == (16,)
    axes = law.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x1", "x2")
    assert axes.get_legend().get_texts()[0].get_text() == "best split of a budget"
    best = law.frontier(1e21)
    assert best.sizes[0].value * best.sizes[1].value * 6 == pytest.approx(1e21)
    with pytest.raises(UserError, match="is a law of N and D: expected x as 2 sizes"):
        law.predict(1e9)


def test_a_curve_that_cannot_be_fitted_is_left_out_with_a_warning():
    short = pd.DataFrame({"tokens": [1e6, 2e6], "loss": [3.0, 2.0], "run": "short"})
    frame = pd.concat([FRAME.assign(run="long"), short])
    with pytest.warns(UserWarning, match="short is left out: 2 distinct tokens"):
        laws = fit(frame, x="tokens", y="loss", group=["run"], hold_out=0)
    assert list(laws) == ["long"] and isinstance(laws["long"], FittedLaw)
    with pytest.raises(UserError, match="2 distinct tokens"):
        fit(short, x="tokens", y="loss")


def test_compared_laws():
    found = compare(FRAME[:5], x="tokens", y="loss")
    assert isinstance(found, ComparedLaws) and found.winner in (None, *LAWS)
    assert next(iter(found.errors)) == found.comparison.families[0].law.name
    assert found.sentence in " ".join(str(found).split())
    assert found._repr_html_().startswith("<pre")
    both = pd.concat([FRAME[:5].assign(run="a"), FRAME[:5].assign(run="b", loss=Y[4::-1])])
    with pytest.raises(UserError, match="not all curves can be compared by the same laws"):
        compare(both.rename(columns={"loss": "y"}), x="tokens", y="y", group="run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a table"),
        ({"x": "tokens", "y": "loss"}, "expected a table"),
        ({"table": FRAME, "x": "token", "y": "loss"}, "did you mean 'tokens'"),
        ({"table": FRAME, "x": "tokens", "y": "loss", "law": "powr"}, "did you mean 'power'"),
        ({"table": FRAME, "x": "tokens", "y": "loss", "law": "all"}, "fit takes one law"),
        ({"table": FRAME, "x": "tokens", "y": "loss", "bounds": "E=0:"}, "they are for the coeff"),
        ({"table": 3, "x": "tokens", "y": "loss"}, "a table of type int"),
        ({"x": X, "y": Y[:3]}, "make no table"),
        ({"x": FRAME.loss, "y": FRAME.loss}, "both called 'loss'"),
        ({"table": "nowhere.csv"}, "no such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        fit(**arguments)


def test_places_that_are_none():
    law = fit(FRAME, x="tokens", y="loss", hold_out=1)
    for x in (-1.0, 0, np.nan, [1e6, np.inf]):
        with pytest.raises(UserError, match="sizes must be positive"):
            law.predict(x)
    with pytest.raises(UserError, match="expected numbers"):
        law.predict("many")
    with pytest.raises(UserError, match="is a law of D: a budget of compute"):
        law.frontier(1e21)


def test_the_package_gives_its_names_when_asked():
    assert set(t5scaling.analysis.__all__) <= set(dir(t5scaling.analysis))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        t5scaling.analysis.fitt  # noqa: B018
